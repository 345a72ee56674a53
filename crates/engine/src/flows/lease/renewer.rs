//! One task that keeps every held lock of the process held, or tells its holder that it may be lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::held::{HeldLock, Lease};
use super::terms::Terms;
use crate::flows::error::chain;
use crate::metrics::Metrics;
use crate::stores::redis::{CacheError, LeaseAttempt, LeaseGrant, Redis};

/// Locks of one script.
const BATCH: usize = 100;

/// Renews the locks of a process, a hundred in one script. Cheap to clone.
///
/// A lock is trusted only until a moment counted from before its last renewal was sent. If the renewing task dies, every
/// holder is told that its lock is lost, and the lock itself ends in Redis by its lifetime.
#[derive(Debug, Clone)]
pub struct Renewer {
    shared: Arc<Shared>,
}

/// How a wish for a lease ended.
#[derive(Debug)]
pub enum LeaseReply {
    /// It is ours.
    Granted(Lease),
    /// Somebody else has it.
    Held {
        /// Which of the names.
        name: String,
        /// Who.
        owner: String,
        /// For how much longer, unless it is renewed; zero: not known.
        left: Duration,
    },
    /// Redis could not be asked, or nobody renews locks at the moment.
    Unavailable(CacheError),
}

#[derive(Debug)]
pub(super) struct Shared {
    redis: Redis,
    metrics: Arc<Metrics>,
    /// Whether the first lock starts the task; else somebody calls [`Renewer::run`].
    starts_itself: bool,
    table: Mutex<Table>,
    /// Something is due earlier than the task knows. Its end tells the task that nobody needs it any more.
    earlier: watch::Sender<()>,
    /// Releases under way.
    releasing: watch::Sender<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub held: HashMap<u64, HeldLock>,
    last_number: u64,
    /// The run of the task that has the table, if one goes on.
    run: Option<u64>,
    runs: u64,
    /// When the task will look next.
    looks_at: Option<Instant>,
}

impl Renewer {
    /// Its task starts with the first lock, and again where it has ended with its runtime.
    #[must_use]
    pub fn new(redis: Redis, metrics: Arc<Metrics>) -> Self {
        Self::with(redis, metrics, true)
    }

    /// No lock is granted but while somebody awaits [`Self::run`].
    #[must_use]
    pub fn supervised(redis: Redis, metrics: Arc<Metrics>) -> Self {
        Self::with(redis, metrics, false)
    }

    fn with(redis: Redis, metrics: Arc<Metrics>, starts_itself: bool) -> Self {
        let (table, earlier, releasing) = (Mutex::default(), watch::Sender::new(()), watch::Sender::new(0));
        Self { shared: Arc::new(Shared { redis, metrics, starts_itself, table, earlier, releasing }) }
    }

    /// Takes all of these locks or none. An attempt goes on without its caller: if nobody waits for its answer any more,
    /// the lease is dropped, and so given back.
    pub async fn acquire(&self, names: &[impl AsRef<str>], owner: &str, terms: Terms) -> LeaseReply {
        let names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        if !self.shared.starts_itself && !self.shared.may_take(&names) {
            // Leases of a worker bear the name of its process, so Redis would grant them to it a second time.
            let left = Duration::ZERO;
            return LeaseReply::Held {
                name: names.into_iter().next().unwrap_or_default(),
                owner: owner.to_owned(),
                left,
            };
        }
        let (sender, receiver) = oneshot::channel();
        let (shared, owner) = (Arc::clone(&self.shared), owner.to_owned());
        drop(tokio::spawn(async move {
            let asked = Instant::now();
            let reply = match shared.redis.acquire_locks(&names, &owner, terms.life).await {
                Ok(LeaseAttempt::Granted(grants)) => shared.keep(grants, terms, asked),
                Ok(LeaseAttempt::Held { name, owner, left }) => LeaseReply::Held { name, owner, left },
                Err(error) => LeaseReply::Unavailable(error),
            };
            drop(sender.send(reply));
        }));
        receiver.await.unwrap_or_else(|_gone| LeaseReply::Unavailable(CacheError::timed_out("take a lock")))
    }

    /// Renews locks for as long as it is awaited. Where two do, the later one has the table.
    pub async fn run(&self) {
        let run = self.shared.begin_run();
        renew(run, Arc::downgrade(&self.shared)).await;
    }

    /// Gives everything back, and waits until Redis has heard of it.
    pub async fn close(&self) {
        let held = self.shared.end_run(None);
        let grants: Vec<LeaseGrant> = held.into_iter().flat_map(|held| held.grants).collect();
        for batch in grants.chunks(BATCH) {
            if let Err(error) = self.shared.redis.release_locks(batch).await {
                debug!(error = %chain(&error), "locks were not released, they end by themselves");
            }
        }
        // It is never closed while this holds it.
        drop(self.shared.releasing.subscribe().wait_for(|count| *count == 0).await);
    }
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
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin_release(&self) -> Releasing {
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

    fn may_take(&self, names: &[String]) -> bool {
        let table = self.table();
        table.run.is_some() && !table.held.values().any(|held| names.iter().any(|name| held.has(name)))
    }

    fn keep(self: &Arc<Self>, grants: Vec<LeaseGrant>, terms: Terms, asked: Instant) -> LeaseReply {
        let held = HeldLock::new(grants.clone(), terms, asked);
        let (lost, wakes_at) = (held.lost.clone(), held.wakes_at());
        let mut table = self.table();
        if table.run.is_none() && self.starts_itself {
            let run = self.begin_run_in(&mut table);
            drop(tokio::spawn(renew(run, Arc::downgrade(self))));
        }
        table.last_number += 1;
        let number = table.last_number;
        let lease = Lease { shared: Arc::clone(self), number, grants, lost };
        if table.run.is_none() {
            // Nobody renews it: dropped, it is given back.
            drop(table);
            return LeaseReply::Unavailable(CacheError::timed_out("renew a lock"));
        }
        table.held.insert(number, held);
        if table.looks_at.is_none_or(|at| wakes_at < at) {
            self.earlier.send_replace(());
        }
        LeaseReply::Granted(lease)
    }

    fn begin_run(self: &Arc<Self>) -> Run {
        let mut table = self.table();
        // What a former run still has, nobody knows the state of.
        table.held.drain().for_each(|(_, held)| held.lost.cancel());
        self.begin_run_in(&mut table)
    }

    fn begin_run_in(self: &Arc<Self>, table: &mut Table) -> Run {
        table.runs += 1;
        table.run = Some(table.runs);
        table.looks_at = None;
        Run { shared: Arc::downgrade(self), number: table.runs, earlier: self.earlier.subscribe() }
    }

    /// Ends a run, or whichever goes on; tells the holders, and answers what they held.
    fn end_run(&self, number: Option<u64>) -> Vec<HeldLock> {
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
struct Run {
    shared: Weak<Shared>,
    number: u64,
    earlier: watch::Receiver<()>,
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            drop(shared.end_run(Some(self.number)));
        }
    }
}

/// A renewal that is over.
struct Renewed {
    asked: Instant,
    /// The locks of the batch, and how many names each has.
    locks: Vec<(u64, usize)>,
    answers: Result<Vec<bool>, CacheError>,
}

type Renewals = FuturesUnordered<BoxFuture<'static, Renewed>>;

/// Does not keep the table alive while it waits: the last one who needs it ends it.
async fn renew(mut run: Run, shared: Weak<Shared>) {
    // Side by side, so that one that hangs holds up no other, and nobody from being told in time.
    let mut renewals = Renewals::new();
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let Some(looks_at) = strong.look(run.number, &mut renewals) else { return };
        drop(strong);
        let renewed = tokio::select! {
            renewed = renewals.next(), if !renewals.is_empty() => renewed,
            changed = run.earlier.changed() => match changed {
                Ok(()) => None,
                Err(_nobody_needs_it) => return,
            },
            () = at(looks_at) => None,
        };
        if let (Some(renewed), Some(shared)) = (renewed, shared.upgrade()) {
            shared.note(renewed);
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

impl Shared {
    /// Tells whose locks may be lost, and sends the renewals that are due. Answers when to look again; none: another run
    /// has the table.
    fn look(&self, run: u64, renewals: &mut Renewals) -> Option<Option<Instant>> {
        let now = Instant::now();
        let mut table = self.table();
        if table.run != Some(run) {
            return None;
        }
        table.held.retain(|_, held| {
            let is_trusted = held.is_trusted(now);
            if !is_trusted {
                let lock = held.grants.first().map(|grant| grant.name.as_str());
                warn!(lock, "lock may be lost, its holder is told");
                self.metrics.leases_lost.inc();
                held.lost.cancel();
            }
            is_trusted
        });
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
        Some(table.looks_at)
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
                warn!(error = %chain(error), locks = batch.len(), "locks could not be renewed");
            }
            let locks = batch.into_iter().map(|(number, grants, _)| (number, grants.len())).collect();
            Renewed { asked, locks, answers }
        }
    }

    /// Notes how a renewal ended. A lock that was released meanwhile is not in the table any more.
    fn note(&self, renewed: Renewed) {
        let now = Instant::now();
        let mut table = self.table();
        let mut answers = renewed.answers.as_ref().map(|answers| answers.iter()).ok();
        for (number, names) in renewed.locks {
            let is_held = answers
                .as_mut()
                .map(|answers| answers.by_ref().take(names).fold(true, |all, one| all && *one));
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
