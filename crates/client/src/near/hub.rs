//! What all near caches of a process share: one connection on which Redis tells of changes, and the moment up to which everything was
//! heard of.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::log_limit;
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_engine::stores::redis::{CacheError, Redis, Told, Watermark};

/// Heartbeats in the time of the smallest bound: an answer proves the moment of the heartbeat before it.
const HEARTBEATS: u32 = 4;
/// However large the bound is: after a gap, nothing is near before the second heartbeat.
const HEARTBEAT_MAX: Duration = Duration::from_secs(1);
/// How long one is waited for.
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// How long a server without its mark is put up with: each new mark is a script there.
const WITHOUT_MARK: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Keys in use that wait to be told, and how many are told at once.
const USED_MAX: usize = 20_000;
const USED_AT_ONCE: usize = 500;
/// How often it is told of one key that it is in use.
const USE_ROUND: Duration = Duration::from_secs(10);

/// Values that changes are told to.
pub(in super::super) trait NearValues: Send + Sync {
    /// This key has changed.
    fn remove(&self, key: &str);
    /// Anything may have.
    fn clear(&self);
}

/// Up to when everything was heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Proof {
    /// Which uninterrupted time it belongs to.
    pub generation: u64,
    /// The moment.
    pub since: Instant,
}

struct Space {
    prefix: String,
    values: Weak<dyn NearValues>,
    staleness: Duration,
}

/// What the near caches of a cache share.
pub(in super::super) struct NearHub {
    /// None: in memory, where nobody else changes anything, and nothing is near.
    redis: Option<Redis>,
    metrics: Arc<Metrics>,
    spaces: Mutex<Vec<Space>>,
    /// Whether there is any: most caches have none, and their writes need not look.
    has_spaces: AtomicBool,
    /// The prefixes or bounds are others than those that are followed.
    has_changed: Notify,
    base: Instant,
    generation: AtomicU64,
    /// Nanoseconds since `base`, plus one; 0: nothing is proved.
    proved: AtomicU64,
    watermark: Mutex<Option<Watermark>>,
    /// Of the server that tells of changes; none: nothing does.
    mark: Mutex<Option<Arc<str>>>,
    used: Mutex<Vec<Arc<str>>>,
    is_followed: AtomicBool,
}

impl std::fmt::Debug for NearHub {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NearHub").field("proof", &self.proof()).finish_non_exhaustive()
    }
}

impl NearHub {
    pub fn new(redis: Option<Redis>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            redis,
            metrics,
            spaces: Mutex::default(),
            has_spaces: AtomicBool::new(false),
            has_changed: Notify::new(),
            base: Instant::now(),
            generation: AtomicU64::new(1),
            proved: AtomicU64::new(0),
            watermark: Mutex::default(),
            mark: Mutex::default(),
            used: Mutex::default(),
            is_followed: AtomicBool::new(false),
        })
    }

    /// Values whose keys begin with this prefix are told of changes from now on.
    pub fn add(&self, prefix: &str, values: Weak<dyn NearValues>, staleness: Duration) {
        let mut spaces = lock(&self.spaces);
        spaces.retain(|space| 0 < space.values.strong_count());
        let is_covered = spaces
            .iter()
            .any(|space| prefix.starts_with(space.prefix.as_str()) && space.staleness <= staleness);
        spaces.push(Space { prefix: prefix.to_owned(), values, staleness });
        self.has_spaces.store(true, Ordering::Release);
        drop(spaces);
        if !is_covered {
            self.has_changed.notify_one();
        }
    }

    /// Up to when everything was heard of; none: nothing is proved.
    pub fn proof(&self) -> Option<Proof> {
        let generation = self.generation.load(Ordering::Acquire);
        let nanos = self.proved.load(Ordering::Acquire).checked_sub(1)?;
        Some(Proof { generation, since: self.base + Duration::from_nanos(nanos) })
    }

    /// Whether nothing has been missed since that proof was read, so that what was in the store then is as good as it says.
    pub fn is_still(&self, proof: Proof) -> bool {
        self.generation.load(Ordering::Acquire) == proof.generation
    }

    /// The mark of the server that tells of changes: what is kept was read there.
    pub fn mark(&self) -> Option<Arc<str>> {
        lock(&self.mark).clone()
    }

    pub(super) fn set_mark(&self, mark: &str) {
        *lock(&self.mark) = Some(mark.into());
    }

    /// Commands do not go to that server, or it has lost its scripts: until it is marked again, reads are as without a near cache.
    pub fn lose_mark(&self, mark: &str) {
        let mut known = lock(&self.mark);
        if known.as_deref() == Some(mark) {
            *known = None;
        }
    }

    pub(super) fn prove(&self, since: Instant) {
        let nanos = since.saturating_duration_since(self.base).as_nanos();
        self.proved.store(u64::try_from(nanos).unwrap_or(u64::MAX - 1) + 1, Ordering::Release);
    }

    /// From now on changes may be missed: what there is, is worth nothing. The proof goes first, so that none of the time
    /// before is taken for one of the time after.
    fn lose(&self) {
        self.proved.store(0, Ordering::Release);
        self.generation.fetch_add(1, Ordering::AcqRel);
        *lock(&self.watermark) = None;
        *lock(&self.mark) = None;
        self.clear();
    }

    fn clear(&self) {
        self.living().iter().for_each(|(_, values)| values.clear());
    }

    fn living(&self) -> Vec<(String, Arc<dyn NearValues>)> {
        let spaces = lock(&self.spaces);
        spaces.iter().filter_map(|space| Some((space.prefix.clone(), space.values.upgrade()?))).collect()
    }

    /// These keys have changed.
    pub fn remove<K: AsRef<str>>(&self, keys: &[K]) {
        if !self.has_spaces.load(Ordering::Acquire) {
            return;
        }
        for (prefix, values) in &self.living() {
            let of_space =
                keys.iter().map(AsRef::as_ref).filter(|key: &&str| key.starts_with(prefix.as_str()));
            of_space.for_each(|key| values.remove(key));
        }
    }

    /// Anything that begins with one of these prefixes may have changed.
    pub fn remove_beginning_with(&self, prefixes: &[&str]) {
        let touches = |one: &str, other: &str| one.starts_with(other) || other.starts_with(one);
        for (prefix, values) in self.living() {
            if prefixes.iter().any(|changed| touches(&prefix, changed)) {
                values.clear();
            }
        }
    }

    #[cfg(feature = "postgres")]
    /// The age of the watermark, as it was heard last; none: there is none, or it does not hold for this dataset.
    pub fn watermark_age(&self, dataset: &str) -> Option<Duration> {
        lock(&self.watermark).as_ref()?.age_for(dataset)
    }

    /// Which round of telling what is in use this moment belongs to; from 1 on.
    pub fn use_round(&self, now: Instant) -> u64 {
        1 + now.saturating_duration_since(self.base).as_secs() / USE_ROUND.as_secs()
    }

    /// This key is in use.
    pub fn note_use(&self, key: &str) {
        let mut used = lock(&self.used);
        if used.len() < USED_MAX {
            used.push(key.into());
        }
    }

    /// Sees to it that changes are followed. Called by reads, so that it begins in their runtime, and anew where an earlier one is gone.
    pub fn follow(self: &Arc<Self>) {
        if self.is_followed.load(Ordering::Acquire) || self.redis.is_none() {
            return;
        }
        if !self.is_followed.swap(true, Ordering::AcqRel) {
            let following = Following(Arc::downgrade(self));
            drop(tokio::spawn(following.run()));
        }
    }

    /// Prefixes of which none begins with another one, as the server wants them, and the time between two heartbeats.
    fn wanted(&self) -> (Vec<String>, Duration) {
        let mut spaces = lock(&self.spaces);
        spaces.retain(|space| 0 < space.values.strong_count());
        let all: HashSet<&str> = spaces.iter().map(|space| space.prefix.as_str()).collect();
        let is_covered =
            |prefix: &str| all.iter().any(|other| *other != prefix && prefix.starts_with(*other));
        let prefixes = all.iter().filter(|prefix| !is_covered(prefix)).map(|prefix| (*prefix).to_owned());
        let staleness = spaces.iter().map(|space| space.staleness).min().unwrap_or(RETRY_MAX);
        (prefixes.collect(), (staleness / HEARTBEATS).min(HEARTBEAT_MAX))
    }

    fn hear(&self, told: Told) {
        match told {
            Told::Changed(keys) => {
                self.metrics.client.near_invalidations.inc_by(keys.len() as u64);
                self.remove(&keys);
            }
            Told::Flushed => self.clear(),
            Told::Proved { since, watermark } => {
                *lock(&self.watermark) = watermark;
                self.prove(since);
                self.tell_used();
            }
        }
    }

    /// Says which keys are in use. Nobody waits for it.
    fn tell_used(&self) {
        let used = std::mem::take(&mut *lock(&self.used));
        let Some(redis) = self.redis.clone().filter(|_| !used.is_empty()) else { return };
        drop(tokio::spawn(async move {
            for page in used.chunks(USED_AT_ONCE) {
                if let Err(error) = redis.touch(page).await {
                    debug!(error = error.told(), "it is not told which near entries are in use");
                    return;
                }
            }
        }));
    }
}

/// The task that hears of changes, as long as the hub lives.
struct Following(Weak<NearHub>);

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(hub) = self.0.upgrade() {
            hub.lose();
            hub.is_followed.store(false, Ordering::Release);
        }
    }
}

impl Following {
    async fn run(self) {
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        let mut is_failing = false;
        loop {
            let Some(hub) = self.0.upgrade() else { return };
            let Some(redis) = hub.redis.clone() else { return };
            let (prefixes, heartbeat) = hub.wanted();
            if prefixes.is_empty() {
                return;
            }
            drop(hub);
            let began = Instant::now();
            let ended = self.hear(&redis, &prefixes, heartbeat, &mut is_failing).await;
            let Some(hub) = self.0.upgrade() else { return };
            hub.lose();
            // None: other prefixes are wanted.
            let Err(error) = ended else { continue };
            hub.metrics.client.near_gaps.inc();
            drop(hub);
            let what = "the near cache does not hear of changes, reads go to redis";
            if let Some(times) = log_limit::due(what, "", 1) {
                warn!(error = error.told(), times, "{what}");
            }
            is_failing = true;
            retry.reset_after(began.elapsed());
            tokio::time::sleep(retry.pause()).await;
        }
    }

    /// Hears until it cannot any more, or something else is to be heard.
    async fn hear(
        &self,
        redis: &Redis,
        prefixes: &[String],
        heartbeat: Duration,
        is_failing: &mut bool,
    ) -> Result<(), CacheError> {
        let opening = redis.track(prefixes, heartbeat, REPLY_LIMIT);
        let mut tracking = match tokio::time::timeout(2 * REPLY_LIMIT, opening).await {
            Ok(opened) => opened?,
            Err(_elapsed) => return Err(CacheError::timed_out("hear what changes")),
        };
        if let Some(hub) = self.0.upgrade() {
            hub.set_mark(tracking.mark());
        }
        let marked = Instant::now();
        loop {
            let Some(hub) = self.0.upgrade() else { return Ok(()) };
            let changed = async {
                hub.has_changed.notified().await;
            };
            tokio::select! {
                told = tracking.next() => {
                    let told = told?;
                    if std::mem::take(is_failing) {
                        info!("the near cache hears of changes again");
                    }
                    let is_proof = matches!(told, Told::Proved { .. });
                    hub.hear(told);
                    if is_proof && hub.mark().is_none() && WITHOUT_MARK < marked.elapsed() {
                        return Err(CacheError::timed_out("read on the server that tells of changes"));
                    }
                    // Nobody reads near any more.
                    if is_proof && hub.living().is_empty() {
                        return Ok(());
                    }
                }
                () = changed => {
                    let (wanted, every) = hub.wanted();
                    let is_same = every == heartbeat
                        && wanted.len() == prefixes.len()
                        && wanted.iter().all(|prefix| prefixes.contains(prefix));
                    if !is_same {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
