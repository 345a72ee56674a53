//! What is done to the servers and the workers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::verdict::Lives;
use super::{Arena, writer_faults};
use crate::process::WorkerProcess;
use crate::support::wait_until;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    KillWorker,
    KillBothWorkers,
    KillAfterStores,
    KillAfterAdvance,
    KillInTags,
    KillInRevalidation,
    StopWorker,
    KillInWrite(&'static str),
    TerminateWriter,
    CancelWriter,
    HeldRows,
    Deadlocks,
    Conflicts,
    UnknownCommits,
    KillPostgres,
    RestartPostgres,
    KillOneBackend,
    TerminateFeed,
    PausePostgres,
    LongTransaction,
    DisabledTrigger,
    KillRedis,
    FlushRedis,
    OldDump,
    DeleteStamps,
    DeleteTagStamps,
    DeleteHead,
    DeleteCursor,
    DeleteWatermark,
    CutPubSub,
    CutClients,
    PauseRedis,
    FullRedis,
    ReadOnlyRedis,
    ForgottenScripts,
    LostValues,
}

impl Fault {
    const ON_WORKERS: &[Self] = &[
        Self::KillWorker,
        Self::KillBothWorkers,
        Self::KillAfterStores,
        Self::KillAfterAdvance,
        Self::KillInTags,
        Self::KillInRevalidation,
        Self::StopWorker,
    ];
    /// Each step of a command's way. Points that the code does not have yet are added here.
    const IN_A_WRITE: &[Self] = &[
        Self::KillInWrite("write.executed"),
        Self::KillInWrite("write.applied"),
        Self::KillInWrite("write.loaded"),
        Self::KillInWrite("write.finished"),
    ];
    const ON_WRITERS: &[Self] = &[
        Self::TerminateWriter,
        Self::CancelWriter,
        Self::HeldRows,
        Self::Deadlocks,
        Self::Conflicts,
        Self::UnknownCommits,
    ];
    const ON_POSTGRES: &[Self] = &[
        Self::KillPostgres,
        Self::RestartPostgres,
        Self::KillOneBackend,
        Self::TerminateFeed,
        Self::PausePostgres,
        Self::LongTransaction,
        Self::DisabledTrigger,
    ];
    const ON_REDIS: &[Self] = &[
        Self::KillRedis,
        Self::FlushRedis,
        Self::OldDump,
        Self::DeleteStamps,
        Self::DeleteTagStamps,
        Self::DeleteHead,
        Self::DeleteCursor,
        Self::DeleteWatermark,
        Self::CutPubSub,
        Self::CutClients,
        Self::PauseRedis,
        Self::FullRedis,
        Self::ReadOnlyRedis,
        Self::ForgottenScripts,
        Self::LostValues,
    ];

    pub fn all() -> impl Iterator<Item = Self> {
        let kinds = [Self::ON_WORKERS, Self::IN_A_WRITE, Self::ON_WRITERS, Self::ON_POSTGRES, Self::ON_REDIS];
        kinds.into_iter().flatten().copied()
    }

    pub async fn inject(
        self,
        arena: &Arena,
        workers: &mut [WorkerProcess],
        random: &mut StdRng,
        lives: &mut Lives,
    ) {
        let some_time = Duration::from_millis(random.random_range(50..400));
        if let Self::KillInWrite(point) = self {
            end_at(arena, workers, &format!("{point}={}", random.random_range(0..10)), random).await;
        } else if Self::ON_WORKERS.contains(&self) {
            self.on_worker(arena, workers, random).await;
        } else if Self::ON_WRITERS.contains(&self) {
            writer_faults::inject(self, arena, some_time).await;
        } else if Self::ON_POSTGRES.contains(&self) {
            self.on_postgres(arena, some_time, lives).await;
        } else {
            self.on_redis(arena, some_time, random).await;
        }
    }

    async fn on_worker(self, arena: &Arena, workers: &mut [WorkerProcess], random: &mut StdRng) {
        let one = random.random_range(0..workers.len());
        match self {
            Self::KillWorker => workers[one].replace(""),
            Self::KillBothWorkers => workers.iter_mut().for_each(|worker| worker.replace("")),
            Self::KillAfterStores => {
                end_at(arena, workers, &format!("feed.stored={}", random.random_range(0..20)), random).await;
            }
            Self::KillAfterAdvance => {
                end_at(arena, workers, &format!("feed.advanced={}", random.random_range(0..20)), random)
                    .await;
            }
            Self::KillInTags => {
                end_at(arena, workers, &format!("feed.tags={}", random.random_range(0..3)), random).await;
            }
            Self::KillInRevalidation => {
                // The lost table makes a revalidation pending; whoever runs it dies in the scan.
                arm(workers, "revalidation.page=0").await;
                redis(arena, &["DEL", "ck:{test:0}:stamps"]).await;
                wait_for_an_end(workers).await;
                replace_all(arena, workers, random).await;
            }
            Self::StopWorker => {
                workers[one].signal("STOP");
                // Longer than a lease: the other one takes over, and this one wakes up as a zombie.
                tokio::time::sleep(Duration::from_secs(11)).await;
                workers[one].signal("CONT");
            }
            _ => panic!("{self:?} is not done to a worker"),
        }
    }

    async fn on_postgres(self, arena: &Arena, some_time: Duration, lives: &mut Lives) {
        match self {
            Self::KillPostgres | Self::RestartPostgres => {
                let mut rig = arena.rig.lock().await;
                if self == Self::KillPostgres {
                    rig.postgres.kill();
                } else {
                    rig.postgres.stop();
                }
                tokio::time::sleep(some_time).await;
                rig.postgres.start_again().await.unwrap();
                drop(rig);
                lives.begin(arena).await;
            }
            Self::KillOneBackend => kill_one_backend(arena, lives).await,
            Self::TerminateFeed => {
                postgres(arena, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cachekeeper'").await;
            }
            Self::PausePostgres => {
                let rig = arena.rig.lock().await;
                rig.postgres.pause();
                tokio::time::sleep(some_time * 3).await;
                rig.postgres.resume();
            }
            Self::LongTransaction => {
                let mut session = arena.rig.lock().await.postgres.session().await.unwrap();
                session
                    .execute("begin; create temporary table held (n int); select pg_current_xact_id()")
                    .await
                    .unwrap();
                tokio::time::sleep(some_time * 3).await;
                session.execute("rollback").await.unwrap();
            }
            Self::DisabledTrigger => {
                // Within one transaction, so that nobody writes in between: the coverage check must still see it later.
                postgres(arena, "alter table items disable trigger all; alter table items enable always trigger cachekeeper_update; \
                     alter table items enable always trigger cachekeeper_insert; alter table items enable always trigger cachekeeper_delete; \
                     alter table items enable always trigger cachekeeper_truncate").await;
            }
            _ => panic!("{self:?} is not done to Postgres"),
        }
    }

    async fn on_redis(self, arena: &Arena, some_time: Duration, random: &mut StdRng) {
        match self {
            Self::KillRedis => {
                let mut rig = arena.rig.lock().await;
                rig.redis.kill();
                arena.redis_life.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(some_time).await;
                rig.redis.start_again().await.unwrap();
            }
            Self::FlushRedis => {
                arena.redis_life.fetch_add(1, Ordering::SeqCst);
                redis(arena, &["FLUSHALL"]).await;
                arena.redis_life.fetch_add(1, Ordering::SeqCst);
            }
            Self::OldDump => {
                redis(arena, &["SAVE"]).await;
                tokio::time::sleep(some_time).await;
                let mut rig = arena.rig.lock().await;
                rig.redis.kill();
                arena.redis_life.fetch_add(1, Ordering::SeqCst);
                rig.redis.start_again().await.unwrap();
                rig.redis.forget_dump();
            }
            Self::DeleteStamps => redis(arena, &["DEL", "ck:{test:0}:stamps"]).await,
            Self::DeleteTagStamps => redis(arena, &["DEL", "ck:{test:0}:tagstamps"]).await,
            Self::DeleteHead => redis(arena, &["DEL", "ck:{test:0}:meta"]).await,
            Self::DeleteCursor => redis(arena, &["HDEL", "ck:{test:0}:meta", "cursor"]).await,
            Self::DeleteWatermark => redis(arena, &["DEL", "ck:{test:0}:watermark"]).await,
            Self::CutPubSub => redis(arena, &["CLIENT", "KILL", "TYPE", "pubsub"]).await,
            Self::CutClients => redis(arena, &["CLIENT", "KILL", "TYPE", "normal"]).await,
            Self::PauseRedis => {
                let rig = arena.rig.lock().await;
                rig.redis.pause();
                tokio::time::sleep(some_time * 3).await;
                rig.redis.resume();
            }
            Self::FullRedis => {
                redis(arena, &["CONFIG", "SET", "maxmemory", "1mb"]).await;
                tokio::time::sleep(some_time).await;
                redis(arena, &["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            Self::ReadOnlyRedis => {
                redis(arena, &["REPLICAOF", "127.0.0.1", "1"]).await;
                tokio::time::sleep(some_time).await;
                redis(arena, &["REPLICAOF", "NO", "ONE"]).await;
            }
            Self::ForgottenScripts => redis(arena, &["SCRIPT", "FLUSH"]).await,
            Self::LostValues => {
                let keys: Vec<String> =
                    (0..50).map(|_| format!("item:{}", random.random_range(0..300))).collect();
                let mut command = vec!["DEL"];
                command.extend(keys.iter().map(String::as_str));
                redis(arena, &command).await;
            }
            _ => panic!("{self:?} is not done to Redis"),
        }
    }
}

/// Both workers are armed, so that whichever leads dies at that point; then healthy ones take their places.
async fn end_at(arena: &Arena, workers: &mut [WorkerProcess], point: &str, random: &mut StdRng) {
    arm(workers, point).await;
    wait_for_an_end(workers).await;
    replace_all(arena, workers, random).await;
}

/// Workers that are going to die take the places of workers that go in peace and leave no lease behind.
async fn arm(workers: &mut [WorkerProcess], point: &str) {
    workers.iter().for_each(|worker| worker.signal("TERM"));
    for worker in workers.iter_mut() {
        wait_until("a worker has stopped", || {
            let has_ended = worker.has_ended();
            async move { if has_ended { Ok(()) } else { Err("it is still running".to_owned()) } }
        })
        .await;
    }
    workers.iter_mut().for_each(|worker| worker.replace(point));
}

/// Kills whoever is left. Mostly nobody waits for the leases of the dead, so that there is time for more faults.
async fn replace_all(arena: &Arena, workers: &mut [WorkerProcess], random: &mut StdRng) {
    workers.iter_mut().for_each(|worker| worker.replace(""));
    if random.random_bool(0.8) {
        let free =
            "for _, key in ipairs(redis.call('KEYS', 'ck:{test:0}:lock:*')) do redis.call('DEL', key) end";
        redis(arena, &["EVAL", free, "0"]).await;
    }
}

async fn wait_for_an_end(workers: &mut [WorkerProcess]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    while !workers.iter_mut().any(WorkerProcess::has_ended) {
        assert!(tokio::time::Instant::now() < deadline, "no worker came to the point at which it was to end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// As the out-of-memory killer does: the postmaster starts all processes anew, and xids may be used again.
async fn kill_one_backend(arena: &Arena, lives: &mut Lives) {
    let rig = arena.rig.lock().await;
    let mut session = rig.postgres.session().await.unwrap();
    let pid = session.text("select pg_backend_pid()::text").await.unwrap().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    // The old life may still answer for a moment: what is in an unlogged table is lost with it.
    wait_until("the server has begun anew", || async {
        let mut session = rig.postgres.session().await.map_err(|error| error.to_string())?;
        match session.text("select life()::text").await.map_err(|error| error.to_string())? {
            Some(life) if life == "-1" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    drop(rig);
    lives.begin(arena).await;
}

async fn postgres(arena: &Arena, sql: &str) {
    // The tables may be in use for a moment; a deadlock with a writer is the writer's or ours.
    for _ in 0..20 {
        if arena.rig.lock().await.postgres.execute(sql).await.is_ok() {
            return;
        }
    }
    panic!("could not be done: {sql}");
}

async fn redis(arena: &Arena, parts: &[&str]) {
    let client = redis::Client::open(arena.launch.redis_url.clone()).unwrap();
    let mut command = redis::cmd(parts[0]);
    for part in &parts[1..] {
        command.arg(*part);
    }
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // Some of these cut the connection that they come on.
    drop(command.query_async::<redis::Value>(&mut connection).await);
}
