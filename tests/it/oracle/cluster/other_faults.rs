//! What is done to workers and to Postgres.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::super::faults::{arm, end_one_backend, wait_for_an_end};
use super::super::verdict::Lives;
use super::Arena;
use crate::process::WorkerProcess;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherFault {
    KillWorker,
    KillWorkers,
    /// A worker stops for longer than its leases.
    StopWorker,
    KillAfterStores,
    KillAfterAdvance,
    KillInTags,
    /// Both workers end where they have adopted cluster slots, have loaded them, or have settled them: the next ones begin there again.
    KillInAdoption(&'static str),
    RestartPostgres,
    KillOneBackend,
    TerminateFeed,
    PausePostgres,
    LongTransaction,
}

impl OtherFault {
    pub const ALL: &[Self] = &[
        Self::KillWorker,
        Self::KillWorkers,
        Self::StopWorker,
        Self::KillAfterStores,
        Self::KillAfterAdvance,
        Self::KillInTags,
        Self::KillInAdoption("shard.adopted"),
        Self::KillInAdoption("shard.loaded"),
        Self::KillInAdoption("shard.settled"),
        Self::RestartPostgres,
        Self::KillOneBackend,
        Self::TerminateFeed,
        Self::PausePostgres,
        Self::LongTransaction,
    ];

    pub async fn strike(
        self,
        arena: &Arena,
        workers: &mut [WorkerProcess],
        random: &mut StdRng,
        lives: &mut Lives,
    ) {
        let some_time = Duration::from_millis(random.random_range(50..400));
        match self {
            Self::KillWorker => workers[random.random_range(0..workers.len())].replace(""),
            Self::KillWorkers => workers.iter_mut().for_each(|worker| worker.replace("")),
            Self::StopWorker => {
                let worker = &workers[random.random_range(0..workers.len())];
                worker.signal("STOP");
                tokio::time::sleep(Duration::from_secs(5)).await;
                worker.signal("CONT");
            }
            Self::KillAfterStores => end_at(workers, "feed.stored", random.random_range(0..20)).await,
            Self::KillAfterAdvance => end_at(workers, "feed.advanced", random.random_range(0..20)).await,
            Self::KillInTags => end_at(workers, "feed.tags", random.random_range(0..3)).await,
            Self::KillInAdoption(point) => {
                arm(workers, &format!("{point}=0")).await;
                // Something has to be adopted.
                super::node_faults::NodeFault::Moves.strike(arena, random).await;
                wait_for_an_end(workers).await;
                workers.iter_mut().for_each(|worker| worker.replace(""));
            }
            Self::RestartPostgres => {
                let mut postgres = arena.postgres.lock().await;
                postgres.stop();
                tokio::time::sleep(some_time).await;
                postgres.start_again().await.unwrap();
                lives.begin_in(&postgres).await;
            }
            Self::KillOneBackend => {
                let postgres = arena.postgres.lock().await;
                end_one_backend(&postgres).await;
                lives.begin_in(&postgres).await;
            }
            Self::TerminateFeed => {
                let sql = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cachekeeper'";
                arena.postgres.lock().await.execute(sql).await.unwrap();
            }
            Self::PausePostgres => {
                let postgres = arena.postgres.lock().await;
                postgres.pause();
                tokio::time::sleep(some_time * 3).await;
                postgres.resume();
            }
            Self::LongTransaction => {
                let mut session = arena.postgres.lock().await.session().await.unwrap();
                let begin = "begin; create temporary table held (n int); select pg_current_xact_id()";
                session.execute(begin).await.unwrap();
                tokio::time::sleep(some_time * 3).await;
                session.execute("rollback").await.unwrap();
            }
        }
    }
}

/// Both workers are armed, so that whichever leads a shard dies there; then others take their places.
async fn end_at(workers: &mut [WorkerProcess], point: &str, times: usize) {
    arm(workers, &format!("{point}={times}")).await;
    wait_for_an_end(workers).await;
    workers.iter_mut().for_each(|worker| worker.replace(""));
}
