//! The locks that a process holds, and what is done about them. Everything that waits stands in the renewer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::held::HeldLock;
use crate::log_limit;
use crate::metrics::Metrics;
use crate::stores::chain;
use crate::stores::redis::{CacheError, LeaseGrant, Redis};

/// Locks of one script.
pub(super) const BATCH: usize = 100;

/// What the handles of a renewer, its task and the leases share.
#[derive(Debug)]
pub(super) struct Shared {
    pub redis: Redis,
    metrics: Arc<Metrics>,
    /// Whether the first lock starts the task; else somebody calls `Renewer::run`.
    pub starts_itself: bool,
    table: Mutex<Table>,
    /// Something is due earlier than the task knows. Its end tells the task that nobody needs it any more.
    pub earlier: watch::Sender<()>,
    /// Releases under way.
    pub releasing: watch::Sender<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub held: HashMap<u64, HeldLock>,
    pub last_number: u64,
    /// The run of the task that has the table, if one goes on.
    pub run: Option<u64>,
    runs: u64,
    /// When the task will look next.
    pub looks_at: Option<Instant>,
}

/// A release that is not over yet.
#[derive(Debug)]
pub(super) struct Releasing(watch::Sender<usize>);

impl Drop for Releasing {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Shared {
    pub fn new(redis: Redis, metrics: Arc<Metrics>, starts_itself: bool) -> Self {
        let (table, earlier, releasing) = (Mutex::default(), watch::Sender::new(()), watch::Sender::new(0));
        Self { redis, metrics, starts_itself, table, earlier, releasing }
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin_release(&self) -> Releasing {
        self.releasing.send_modify(|count| *count += 1);
        Releasing(self.releasing.clone())
    }

    pub async fn release(&self, grants: &[LeaseGrant]) -> Result<u64, CacheError> {
        let released = self.redis.release_locks(grants).await;
        if released.as_ref().is_err_and(CacheError::is_unreachable) {
            // The content names this holder only, so a release that is sent twice cannot meet another's lock.
            return self.redis.release_locks(grants).await;
        }
        released
    }

    pub(crate) fn may_take(&self, names: &[String]) -> bool {
        let table = self.table();
        table.run.is_some() && !table.held.values().any(|held| names.iter().any(|name| held.has(name)))
    }

    pub(crate) fn begin_run(self: &Arc<Self>) -> Run {
        let mut table = self.table();
        // The state of the locks of an earlier run is unknown.
        table.held.drain().for_each(|(_, held)| held.lost.cancel());
        self.begin_run_in(&mut table)
    }

    pub(crate) fn begin_run_in(self: &Arc<Self>, table: &mut Table) -> Run {
        table.runs += 1;
        table.run = Some(table.runs);
        table.looks_at = None;
        Run { shared: Arc::downgrade(self), number: table.runs, earlier: self.earlier.subscribe() }
    }

    /// Ends a run, or whichever goes on; tells the holders, and answers what they held.
    pub(crate) fn end_run(&self, number: Option<u64>) -> Vec<HeldLock> {
        let mut table = self.table();
        if number.is_some() && table.run != number {
            return Vec::new();
        }
        table.run = None;
        let held: Vec<HeldLock> = table.held.drain().map(|(_, held)| held).collect();
        held.iter().for_each(|held| held.lost.cancel());
        held
    }
}

/// One run of the renewing task. Its end, however it comes, ends every lock that it has.
pub(super) struct Run {
    pub shared: Weak<Shared>,
    pub number: u64,
    pub earlier: watch::Receiver<()>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            drop(shared.end_run(Some(self.number)));
        }
    }
}

/// A renewal that is over.
pub(super) struct Renewed {
    asked: Instant,
    /// The locks of the batch, and how many names each has.
    locks: Vec<(u64, usize)>,
    answers: Result<Vec<bool>, CacheError>,
}

/// Renewals under way.
pub(super) type Renewals = FuturesUnordered<BoxFuture<'static, Renewed>>;

impl Shared {
    /// Tells whose locks may be lost, and sends the renewals that are due. Answers when to look again; none: another run
    /// has the table.
    pub fn look(&self, run: u64, renewals: &mut Renewals) -> Option<Option<Instant>> {
        let now = Instant::now();
        let mut table = self.table();
        if table.run != Some(run) {
            return None;
        }
        let lost: Vec<HeldLock> =
            table.held.extract_if(|_, held| !held.is_trusted(now)).map(|(_, held)| held).collect();
        let mut batch = Vec::new();
        // What is due a little later goes with what is due now.
        let is_due = table.held.values().any(|held| held.is_due(now));
        for (number, held) in table.held.iter_mut().filter(|(_, held)| is_due && held.is_nearly_due(now)) {
            held.is_being_renewed = true;
            batch.push((*number, held.grants.clone(), held.life()));
            if BATCH <= batch.iter().map(|(_, grants, _)| grants.len()).sum() {
                renewals.push(Box::pin(self.send(std::mem::take(&mut batch))));
            }
        }
        if !batch.is_empty() {
            renewals.push(Box::pin(self.send(batch)));
        }
        table.looks_at = table.held.values().map(HeldLock::wakes_at).min();
        let looks_at = table.looks_at;
        drop(table);
        for held in lost {
            held.lost.cancel();
            self.metrics.leases_lost.inc();
            let lock = held.grants.first().map(|grant| grant.name.as_str());
            let what = "locks may be lost, their holders are told";
            if let Some(locks) = log_limit::due(what, "", 1) {
                warn!(lock, locks, "{what}");
            }
        }
        Some(looks_at)
    }

    fn send(
        &self,
        batch: Vec<(u64, Vec<LeaseGrant>, Duration)>,
    ) -> impl Future<Output = Renewed> + Send + use<> {
        let (redis, asked) = (self.redis.clone(), Instant::now());
        async move {
            let grants = batch.iter().flat_map(|(_, grants, life)| grants.iter().map(|grant| (grant, *life)));
            let answers = redis.renew_locks(&grants.collect::<Vec<_>>()).await;
            if let Err(error) = &answers {
                let what = "locks could not be renewed";
                if let Some(attempts) = log_limit::due(what, "", 1) {
                    warn!(error = %chain(error), locks = batch.len(), attempts, "{what}");
                }
            }
            let locks = batch.into_iter().map(|(number, grants, _)| (number, grants.len())).collect();
            Renewed { asked, locks, answers }
        }
    }

    /// Notes how a renewal ended. A lock that was released meanwhile is not in the table any more.
    pub fn note(&self, renewed: Renewed) {
        let now = Instant::now();
        let mut table = self.table();
        let mut answers = renewed.answers.as_ref().map(|answers| answers.iter()).ok();
        for (number, names) in renewed.locks {
            let is_held = answers
                .as_mut()
                .map(|answers| answers.by_ref().take(names).filter(|is_held| !**is_held).count() == 0);
            let Some(held) = table.held.get_mut(&number) else { continue };
            held.is_being_renewed = false;
            match is_held {
                Some(true) => held.trust(renewed.asked),
                Some(false) => held.distrust(now),
                None => held.renew_again(now),
            }
        }
    }
}
