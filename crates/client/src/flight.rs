//! Single flight: of all who want one key at the same time one loads, and the others wait for it. Within this process by a
//! table of the loads under way; between processes by a short lock in Redis.
//!
//! The load runs in a task of its own. It goes on while anybody waits, or while somebody who left wants it to; it is
//! cancelled when the last one leaves. A load that panics or is cancelled hands over: whoever still waits begins again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::error::ClientError;
use super::key_class::KeyClass;
use super::keys_until::KeysUntil;
use super::policy::Policy;
use cachekeeper_engine::stores::redis::{CacheError, LeaseAttempt, LeaseGrant, Redis};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::Shape;

/// A value as all who wait share it.
pub(super) type Bytes = Arc<[u8]>;

/// One key's value as it was loaded; none: there is nothing.
pub(super) type LoadedBytes = Result<Option<Bytes>, ClientError>;

/// Loads the keys at these positions, and stores what was loaded where counters are given; without them it is only returned.
/// Answers in the order of the positions.
pub(super) type Loader = Arc<
    dyn Fn(
            Vec<usize>,
            Option<InvalidationCounters>,
        ) -> BoxFuture<'static, Result<Vec<LoadedBytes>, ClientError>>
        + Send
        + Sync,
>;

/// What somebody wants.
#[derive(Debug, Clone)]
pub(super) struct LoadRequest {
    pub keys: Arc<[Arc<str>]>,
    pub policy: Arc<Policy>,
    /// The class of a dataset's keys, which are ordered by stamps; none: each key has its own.
    pub of_dataset: Option<Arc<KeyClass>>,
    /// What is in the cache does not decode: load it anew.
    pub is_forced: bool,
    /// A loader asks for it.
    pub is_within_load: bool,
}

/// How a load ended.
#[derive(Debug, Clone)]
pub(super) enum FlightResult {
    /// The value, or none.
    Value(Option<Bytes>),
    /// The loader failed; all who waited are told.
    Failed(ClientError),
    /// The loader panicked: its own caller is told, the others begin again.
    Panicked,
    /// Nobody carried it out.
    Abandoned,
}

#[derive(Debug)]
struct Flight {
    /// The counters before it began; none: Redis could not be asked.
    counters: Option<InvalidationCounters>,
    result: watch::Sender<Option<FlightResult>>,
    waiters: AtomicUsize,
    is_kept: AtomicBool,
    /// Its value has tags that nobody knew when it began.
    has_late_tags: AtomicBool,
    cancel: CancellationToken,
}

/// The loads of this process, by key.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_key: Mutex<HashMap<Arc<str>, Arc<Flight>>>,
    /// Keys whose load failed, and until when it is not tried again where a stale value is at hand.
    pub failed: KeysUntil,
    /// Keys whose values live otherwise than their policy says, and until when they are not loaded ahead.
    pub not_due: KeysUntil,
}

/// Somebody who waits for a load.
#[derive(Debug)]
pub(super) struct FlightWaiter {
    flight: Arc<Flight>,
    receiver: watch::Receiver<Option<FlightResult>>,
    /// Some tag was invalidated between the beginning of the load and this waiter's coming.
    came_after_tags: bool,
}

/// Whoever has to load. Dropped before the end, it hands over.
#[derive(Debug)]
pub(super) struct FlightLeader {
    key: Arc<str>,
    flight: Arc<Flight>,
    has_ended: AtomicBool,
}

/// How somebody came to a load.
#[derive(Debug)]
pub(super) enum Join {
    Joined(FlightWaiter),
    Leads(FlightWaiter, FlightLeader),
}

impl Flights {
    /// Joins the load of this key, or begins one. A load that began before something was invalidated is not joined by
    /// who came after: its value may be the old one.
    pub fn join(&self, key: &Arc<str>, counters: Option<InvalidationCounters>) -> Join {
        let mut by_key = lock(&self.by_key);
        if let Some(flight) = by_key.get(key) {
            let may_join = match (&counters, &flight.counters) {
                (Some(own), Some(its)) => own.allows_joining(its),
                (None, _) => true,
                (Some(_), None) => false,
            };
            if may_join && !flight.cancel.is_cancelled() && flight.result.borrow().is_none() {
                let is_of_same_tags = match (&counters, &flight.counters) {
                    (Some(own), Some(its)) => own.has_same_tags_as(its),
                    _ => true,
                };
                return Join::Joined(FlightWaiter::of(flight, !is_of_same_tags));
            }
        }
        let flight = Arc::new(Flight {
            counters,
            result: watch::Sender::new(None),
            waiters: AtomicUsize::new(0),
            is_kept: AtomicBool::new(false),
            has_late_tags: AtomicBool::new(false),
            cancel: CancellationToken::new(),
        });
        by_key.insert(Arc::clone(key), Arc::clone(&flight));
        let waiter = FlightWaiter::of(&flight, false);
        Join::Leads(waiter, FlightLeader { key: Arc::clone(key), flight, has_ended: AtomicBool::new(false) })
    }

    /// Whether somebody loads this key.
    pub fn is_under_way(&self, key: &str) -> bool {
        lock(&self.by_key).contains_key(key)
    }

    /// From now on nobody joins the loads of these keys: what they return may be the old value.
    pub fn detach(&self, keys: &[impl AsRef<str>]) {
        let mut by_key = lock(&self.by_key);
        keys.iter().for_each(|key| drop(by_key.remove(key.as_ref())));
    }

    /// A tag is invalidated, and which keys have it is not known. Loads that saw the counters of their tags go on: these say
    /// whom they may serve. Those of datasets, whose tags come with their rows, and those without counters may serve nobody new.
    pub fn detach_unguarded(&self) {
        let is_guarded = |flight: &Flight| flight.counters.as_ref().is_some_and(|seen| !seen.has_stamps());
        lock(&self.by_key).retain(|_, flight| is_guarded(flight));
    }
}

impl FlightWaiter {
    fn of(flight: &Arc<Flight>, came_after_tags: bool) -> Self {
        flight.waiters.fetch_add(1, Ordering::AcqRel);
        Self { flight: Arc::clone(flight), receiver: flight.result.subscribe(), came_after_tags }
    }

    /// How the load ended.
    pub async fn result(&mut self) -> FlightResult {
        match self.receiver.wait_for(Option::is_some).await {
            // The tag that was invalidated may be one of the value's: it is not for who came after.
            Ok(_) if self.came_after_tags && self.flight.has_late_tags.load(Ordering::Acquire) => {
                FlightResult::Abandoned
            }
            Ok(result) => result.clone().unwrap_or(FlightResult::Abandoned),
            Err(_nobody_ends_it) => FlightResult::Abandoned,
        }
    }

    /// The load goes on when all have left.
    pub fn keep(&self) {
        self.flight.is_kept.store(true, Ordering::Release);
    }
}

impl Drop for FlightWaiter {
    fn drop(&mut self) {
        let was_last = self.flight.waiters.fetch_sub(1, Ordering::AcqRel) == 1;
        if was_last && !self.flight.is_kept.load(Ordering::Acquire) {
            self.flight.cancel.cancel();
        }
    }
}

impl FlightLeader {
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Waits until nobody wants the value any more.
    pub async fn is_left_alone(&self) {
        self.flight.cancel.cancelled().await;
    }

    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// The value has tags that nobody knew when the load began; to be said before its end.
    pub fn found_late_tags(&self) {
        self.flight.has_late_tags.store(true, Ordering::Release);
    }

    /// Ends the load and tells all who wait.
    pub fn end(&self, flights: &Flights, result: FlightResult) {
        // First nobody can join any more, then those who did are told.
        let mut by_key = lock(&flights.by_key);
        if by_key.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            by_key.remove(&self.key);
        }
        drop(by_key);
        self.has_ended.store(true, Ordering::Release);
        self.flight.result.send_replace(Some(result));
    }
}

impl Drop for FlightLeader {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.flight.cancel.cancel();
            self.flight.result.send_replace(Some(FlightResult::Abandoned));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The locks of keys that one load of this process is about to fill. Dropped, they are released in the background.
#[derive(Debug)]
pub(super) struct LoadLock {
    _held: DropGuard,
    /// Positions of keys whose lock another process holds.
    pub others: Vec<usize>,
}

/// How often the free ones among many locks are asked for, when others take some of them at the same time.
const ATTEMPTS: usize = 3;
/// Locks of one script.
const PAGE: usize = 256;

impl LoadLock {
    /// The name of a key's lock.
    pub fn name(key: &str) -> String {
        format!("load:{key}")
    }

    /// Takes the locks of these keys as far as they are free. None: Redis could not be asked. A lock saves work; without it
    /// the work is done.
    pub async fn take(redis: &Redis, keys: &[&str], life: Duration) -> Option<Self> {
        let (released, (taken, answer)) = (CancellationToken::new(), oneshot::channel());
        let names: Vec<String> = keys.iter().map(|key| Self::name(key)).collect();
        // In a task of its own: when whoever asked has left before the answer comes, they are released all the same.
        drop(tokio::spawn(hold(redis.clone(), names, life, taken, released.clone())));
        let held = released.drop_guard();
        Some(Self { _held: held, others: answer.await.ok()? })
    }
}

/// Takes what is free, renews it, and releases it in the end.
async fn hold(
    redis: Redis,
    names: Vec<String>,
    life: Duration,
    taken: oneshot::Sender<Vec<usize>>,
    released: CancellationToken,
) {
    let owner = format!("load:{}:{:016x}", std::process::id(), rand::random::<u64>());
    let (mut grants, mut others) = (Vec::new(), Vec::new());
    for (page, names) in names.chunks(PAGE).enumerate() {
        match take_free(&redis, names, &owner, life).await {
            Ok((free, held)) => {
                grants.extend(free);
                others.extend(held.into_iter().map(|at| page * PAGE + at));
            }
            Err(error) => {
                debug!(%error, "load locks could not be taken");
                // Nobody is told: the load goes on without them.
                return release(&redis, &grants).await;
            }
        }
    }
    drop(taken.send(others));
    while !grants.is_empty() {
        tokio::select! {
            () = released.cancelled() => return release(&redis, &grants).await,
            () = tokio::time::sleep(life / 3) => {}
        }
        for page in grants.chunks(PAGE) {
            let page: Vec<_> = page.iter().map(|grant| (grant, life)).collect();
            if let Err(error) = redis.renew_locks(&page).await {
                debug!(%error, "load locks were not renewed");
            }
        }
    }
}

async fn release(redis: &Redis, grants: &[LeaseGrant]) {
    for page in grants.chunks(PAGE) {
        if let Err(error) = redis.release_locks(page).await {
            debug!(%error, "load locks were not released, they end by themselves");
        }
    }
}

/// The locks that were free, and the positions of the others.
async fn take_free(
    redis: &Redis,
    names: &[String],
    owner: &str,
    life: Duration,
) -> Result<(Vec<LeaseGrant>, Vec<usize>), CacheError> {
    let mut wanted: Vec<usize> = (0..names.len()).collect();
    for _attempt in 0..ATTEMPTS {
        let of_wanted: Vec<&String> = wanted.iter().filter_map(|at| names.get(*at)).collect();
        if of_wanted.is_empty() {
            break;
        }
        if let LeaseAttempt::Granted(grants) = redis.acquire_locks(&of_wanted, owner, life, false).await? {
            let others = (0..names.len()).filter(|at| wanted.binary_search(at).is_err()).collect();
            return Ok((grants, others));
        }
        if names.len() == 1 {
            break;
        }
        // All or none are given: ask for those that nobody holds.
        let keys: Vec<String> = of_wanted.iter().map(|name| redis.keys().lock(name)).collect();
        let holders = redis.read(&keys, Shape::String).await?;
        let free = wanted.into_iter().zip(holders).filter(|(_, (holder, _))| holder.is_none());
        wanted = free.map(|(at, _)| at).collect();
    }
    Ok((Vec::new(), (0..names.len()).collect()))
}
