//! What is done to the servers and the workers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cachekeeper_testkit::servers::{Postgres, Session};
use rand::RngExt;
use rand::rngs::StdRng;

use super::verdict::Lives;
use super::{
    Arena, bulk_faults, clock_faults, database_faults, network, replicas, rights_faults, rollout_faults,
    shape_faults, writer_faults,
};
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
    Rollout,
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
    SwappedTable,
    DetachedPartition,
    ChangedColumn,
    RewrittenTable,
    SwitchedCapture,
    LockedOutbox,
    LockedTable,
    FullConnections,
    UncapturedWrite,
    SplitPartition,
    DroppedPartition,
    DetachedConcurrently,
    VacuumedOutbox,
    PoisonedRow,
    MigratedMeanwhile,
    SwappedSchema,
    RenamedLabel,
    ReplacedFunction,
    ReplacedView,
    OtherSearchPath,
    ChangedPolicy,
    RevokedSelect,
    RevokedOutbox,
    RevokedTemporary,
    ChangedOwner,
    ChangedRole,
    CopiedRows,
    TruncatedAndCopied,
    InsertedInBulk,
    AppliedBySubscription,
    PreparedOverCrash,
    ClockOfRedis,
    ClockOfWorkers,
    ClockOfPostgres,
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
    CutLinks,
    HeldLinks,
    SlowLinks,
    RehomedLinks,
    KillPooler,
    LostMaster,
    SwitchedMaster,
    PromotedStandby,
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
        Self::Rollout,
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
    const ON_DATABASE: &[Self] = &[
        Self::SwappedTable,
        Self::DetachedPartition,
        Self::ChangedColumn,
        Self::RewrittenTable,
        Self::SwitchedCapture,
        Self::LockedOutbox,
        Self::LockedTable,
        Self::FullConnections,
    ];
    const ON_TABLES: &[Self] = &[
        Self::UncapturedWrite,
        Self::SplitPartition,
        Self::DroppedPartition,
        Self::DetachedConcurrently,
        Self::VacuumedOutbox,
        Self::PoisonedRow,
        Self::MigratedMeanwhile,
    ];
    const ON_SHAPES: &[Self] = &[
        Self::SwappedSchema,
        Self::RenamedLabel,
        Self::ReplacedFunction,
        Self::ReplacedView,
        Self::OtherSearchPath,
        Self::ChangedPolicy,
    ];
    const ON_RIGHTS: &[Self] = &[
        Self::RevokedSelect,
        Self::RevokedOutbox,
        Self::RevokedTemporary,
        Self::ChangedOwner,
        Self::ChangedRole,
    ];
    const IN_BULK: &[Self] =
        &[Self::CopiedRows, Self::TruncatedAndCopied, Self::InsertedInBulk, Self::AppliedBySubscription];
    pub const ON_CLOCKS: &[Self] = &[Self::ClockOfRedis, Self::ClockOfWorkers, Self::ClockOfPostgres];
    /// What makes a pair with any other.
    pub const CRASHES: &[Self] =
        &[Self::KillBothWorkers, Self::KillPostgres, Self::KillOneBackend, Self::KillRedis, Self::OldDump];
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

    /// Where there is a network.
    pub const ON_NETWORK: &[Self] =
        &[Self::CutLinks, Self::HeldLinks, Self::SlowLinks, Self::RehomedLinks, Self::KillPooler];

    /// Where there are replicas.
    pub const FAILOVERS: &[Self] = &[Self::LostMaster, Self::SwitchedMaster, Self::PromotedStandby];

    /// What makes pairs with those. A master that does not answer for a second is replaced, which is a fault of its own.
    pub fn beside_failovers() -> Vec<Self> {
        let mut every = Self::beside_the_network();
        let ends_in_a_failover = [Self::KillRedis, Self::OldDump, Self::PauseRedis, Self::ReadOnlyRedis];
        every.retain(|fault| !ends_in_a_failover.contains(fault));
        every
    }

    /// What makes pairs with faults of the network.
    pub fn beside_the_network() -> Vec<Self> {
        let of_servers =
            [Self::KillPostgres, Self::RestartPostgres, Self::KillOneBackend, Self::TerminateFeed];
        [Self::ON_WORKERS, Self::IN_A_WRITE, Self::ON_REDIS, &of_servers].concat()
    }

    /// What `make test` tries.
    pub fn of_the_short_form() -> Vec<Self> {
        let servers =
            [Self::ON_WORKERS, Self::IN_A_WRITE, Self::ON_WRITERS, Self::ON_POSTGRES, Self::ON_REDIS];
        [servers.concat(), Self::ON_DATABASE.to_vec()].concat()
    }

    /// All of them.
    pub fn all() -> Vec<Self> {
        let more =
            [Self::ON_TABLES, Self::ON_SHAPES, Self::ON_RIGHTS, Self::IN_BULK, Self::ON_CLOCKS].concat();
        [Self::of_the_short_form(), more, vec![Self::PreparedOverCrash]].concat()
    }

    /// Whether it is something that owners and operators do to a database.
    fn is_of_the_world(self) -> bool {
        [Self::ON_DATABASE, Self::ON_TABLES, Self::ON_SHAPES, Self::ON_RIGHTS, Self::IN_BULK, Self::ON_CLOCKS]
            .iter()
            .any(|kinds| kinds.contains(&self))
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
        } else if Self::ON_NETWORK.contains(&self) {
            network::inject(self, arena, some_time, random).await;
        } else if Self::FAILOVERS.contains(&self) {
            replicas::inject(self, arena, lives).await;
        } else if self.is_of_the_world() {
            // Where both workers die meanwhile, their successors find what was done.
            let dies = random.random_bool(0.4);
            let kill = async {
                if dies {
                    if Self::ON_SHAPES.contains(&self) {
                        arena.has_struck.notified().await;
                    }
                    tokio::time::sleep(some_time / 2).await;
                    workers.iter_mut().for_each(|worker| worker.replace(""));
                }
            };
            tokio::join!(kill, self.on_the_world(arena, some_time, random, lives));
        } else if Self::ON_POSTGRES.contains(&self) || self == Self::PreparedOverCrash {
            self.on_postgres(arena, some_time, lives).await;
        } else {
            self.on_redis(arena, some_time, random).await;
        }
    }

    async fn on_the_world(self, arena: &Arena, some_time: Duration, random: &mut StdRng, lives: &mut Lives) {
        if Self::ON_DATABASE.contains(&self) || Self::ON_TABLES.contains(&self) {
            database_faults::inject(self, arena, some_time).await;
        } else if Self::ON_SHAPES.contains(&self) {
            shape_faults::inject(self, arena).await;
        } else if Self::ON_RIGHTS.contains(&self) {
            rights_faults::inject(self, arena, some_time).await;
        } else if Self::ON_CLOCKS.contains(&self) {
            clock_faults::inject(self, arena, random).await;
        } else {
            bulk_faults::inject(self, arena, some_time, random, lives).await;
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
            Self::Rollout => rollout_faults::inject(arena, random).await,
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
                let sql = "do $$ declare name text; begin
                        alter table items disable trigger all;
                        for name in select tgname from pg_trigger where tgrelid = 'items'::regclass and tgname like 'cachekeeper%' loop
                            execute 'alter table items enable always trigger ' || name;
                        end loop;
                    end $$";
                postgres(arena, sql).await;
            }
            Self::PreparedOverCrash => prepare_over_crash(arena, some_time, lives).await,
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
pub async fn arm(workers: &mut [WorkerProcess], point: &str) {
    workers.iter().for_each(|worker| worker.signal("TERM"));
    for worker in workers.iter_mut() {
        worker.ended().await;
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

pub async fn wait_for_an_end(workers: &mut [WorkerProcess]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(40);
    while !workers.iter_mut().any(WorkerProcess::has_ended) {
        assert!(tokio::time::Instant::now() < deadline, "no worker came to the point at which it was to end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A transaction that was prepared before a crash is committed after it: what was captured of it is lost.
async fn prepare_over_crash(arena: &Arena, some_time: Duration, lives: &mut Lives) {
    // Whoever locks the whole table would wait for it, and everybody behind them.
    arena.is_gentle.store(true, Ordering::SeqCst);
    let mut writer = Session::open(&arena.writer_url).await.unwrap();
    let prepare = format!("begin; {} prepare transaction 'over'", super::load::put(5, 2));
    while writer.execute(&prepare).await.is_err() {
        writer.execute("rollback").await.unwrap();
    }
    kill_one_backend(arena, lives).await;
    let context = arena.context().await;
    wait_until("what was prepared is waited for", async || {
        let now = context.postgres.poll().await.map_err(|error| error.to_string())?;
        let watermark = context.redis.watermark().await.map_err(|error| error.to_string())?;
        match watermark {
            Some(one)
                if one.incarnation == now.incarnation
                    && one.not_covered.iter().any(|name| name == "item") =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    tokio::time::sleep(some_time * 3).await;
    postgres(arena, "commit prepared 'over'").await;
    arena.is_gentle.store(false, Ordering::SeqCst);
    context.postgres.close().await;
}

/// As the out-of-memory killer does: the postmaster starts all processes anew, and xids may be used again.
pub async fn kill_one_backend(arena: &Arena, lives: &mut Lives) {
    end_one_backend(&arena.rig.lock().await.postgres).await;
    lives.begin(arena).await;
}

pub async fn end_one_backend(postgres: &Postgres) {
    let mut session = postgres.session().await.unwrap();
    let pid = session.text("select pg_backend_pid()::text").await.unwrap().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    // The old life may still answer for a moment: what is in an unlogged table is lost with it.
    wait_until("the server has begun anew", || async {
        let mut session = postgres.session().await.map_err(|error| error.to_string())?;
        match session.text("select life()::text").await.map_err(|error| error.to_string())? {
            Some(life) if life == "-1" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
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
    let client = redis::Client::open(arena.redis_url.clone()).unwrap();
    let mut command = redis::cmd(parts[0]);
    for part in &parts[1..] {
        command.arg(*part);
    }
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // Some of these cut the connection that they come on.
    drop(command.query_async::<redis::Value>(&mut connection).await);
}
