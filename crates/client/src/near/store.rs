//! The values of one space: put in after a read, taken out by whatever tells of a change.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::sync::watch;
use tokio::time::Instant;

use super::NearLimits;
use super::hub::{NearHub, NearValues};

/// How long a read that somebody else has begun is waited for.
const WAIT_FOR_OTHERS: Duration = Duration::from_millis(50);
/// Bytes of a part of the store at least, and how many parts there are at most.
const PART_BYTES: u64 = 4 << 20;
const PARTS_MAX: usize = 32;
/// Beside key and value.
const ENTRY_BYTES: u64 = 128;

/// A value, or that there is none.
#[derive(Debug)]
struct Held<T> {
    value: Option<T>,
    /// Whether there is no such key; without it, no value is an explicit null.
    is_missing: bool,
    /// Of which proof it is: after a gap, those before it are worth nothing.
    generation: u64,
    /// When it ends in Redis; none: not by itself.
    ends: Option<Instant>,
    bytes: u64,
    /// When it was last said that it is in use.
    told_used: AtomicU64,
}

#[derive(Debug, Clone)]
struct Weights;

impl<T> Weighter<Arc<str>, Arc<Held<T>>> for Weights {
    fn weight(&self, key: &Arc<str>, held: &Arc<Held<T>>) -> u64 {
        ENTRY_BYTES + key.len() as u64 + held.bytes
    }
}

/// A read that was answered here.
#[derive(Debug, Clone)]
pub(in super::super) struct NearHit<T> {
    /// The value; none: there is none.
    pub value: Option<T>,
    /// Whether there is no such key; without it, no value is an explicit null.
    pub is_missing: bool,
    /// It is no older than this: whatever was changed before was heard of.
    pub stale_at_most: Duration,
    /// What is left of its lifetime in Redis; none: it does not end by itself.
    pub left: Option<Duration>,
}

/// The near values of one space.
#[derive(Debug)]
pub(in super::super) struct NearStore<T> {
    hub: Arc<NearHub>,
    limits: NearLimits,
    values: Cache<Arc<str>, Arc<Held<T>>, Weights>,
    /// Reads that are under way, by key: whoever hears of a change takes the key out, and then the read is not kept.
    reading: Mutex<HashMap<Arc<str>, Reading>>,
    numbers: AtomicU64,
}

/// Reads of a key of which nobody has heard a change since the first of them began.
#[derive(Debug)]
struct Reading {
    number: u64,
    readers: usize,
    /// Closed when the read has ended.
    ended: watch::Receiver<()>,
}

impl<T: Clone + Send + Sync + 'static> NearStore<T> {
    /// One for keys that begin with this prefix.
    pub fn new(hub: &Arc<NearHub>, prefix: &str, limits: NearLimits) -> Arc<Self> {
        // A guess at how many entries there will be; it decides how the store is divided.
        let entries = usize::try_from(limits.bytes / 512).unwrap_or(usize::MAX).clamp(64, 1 << 20);
        // Each part has its own bytes: of many small parts, none would hold a large value.
        let parts = usize::try_from(limits.bytes / PART_BYTES).unwrap_or(PARTS_MAX).clamp(1, PARTS_MAX);
        let mut options = OptionsBuilder::new();
        options.estimated_items_capacity(entries).weight_capacity(limits.bytes).shards(parts);
        let values = match options.build() {
            Ok(options) => Cache::with_options(
                options,
                Weights,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            Err(_not_all_is_given) => Cache::with_weighter(entries, limits.bytes, Weights),
        };
        let store = Arc::new(Self {
            hub: Arc::clone(hub),
            limits,
            values,
            reading: Mutex::default(),
            numbers: AtomicU64::new(0),
        });
        let values: Weak<dyn NearValues> = Arc::downgrade(&store) as Weak<dyn NearValues>;
        hub.add(prefix, values, limits.staleness);
        store
    }

    /// The value, if it may be served.
    pub fn hit(&self, key: &str) -> Option<NearHit<T>> {
        // The proof first: what was heard of by then is not in the store any more.
        let proof = self.hub.proof();
        let held = self.values.get(key)?;
        let now = Instant::now();
        let stale_at_most = if self.limits.is_bounded {
            let proof = proof.filter(|proof| proof.generation == held.generation)?;
            let age = now.saturating_duration_since(proof.since);
            if self.limits.staleness < age || !self.hub.is_still(proof) {
                return None;
            }
            age
        } else {
            self.limits.staleness
        };
        if held.ends.is_some_and(|ends| ends <= now) {
            return None;
        }
        self.note_use(key, &held, now);
        let left = held.ends.map(|ends| ends - now);
        Some(NearHit { value: held.value.clone(), is_missing: held.is_missing, stale_at_most, left })
    }

    /// So that refresh-ahead, and Redis where memory is short, know what is read here.
    fn note_use(&self, key: &str, held: &Held<T>, now: Instant) {
        let round = self.hub.use_round(now);
        if held.told_used.load(Ordering::Relaxed) != round {
            held.told_used.store(round, Ordering::Relaxed);
            self.hub.note_use(key);
        }
    }

    /// Begins a read of these keys in Redis, to be called before the command is sent. Others of them that are under way are waited for
    /// first; then the store may have their values. None: nothing can be kept, because it is not heard of changes.
    pub async fn begin(self: &Arc<Self>, keys: &[&str]) -> Option<NearTicket<T>> {
        self.hub.proof()?;
        let under_way: Vec<_> = {
            let reading = self.lock();
            keys.iter().filter_map(|key| reading.get(*key)).map(|reading| reading.ended.clone()).collect()
        };
        if !under_way.is_empty() {
            // An error is what it waits for: the read has ended. Whoever reads may not be polled, so it is not waited for long.
            let ended = join_all(under_way.into_iter().map(async |mut ended| drop(ended.changed().await)));
            drop(tokio::time::timeout(WAIT_FOR_OTHERS, ended).await);
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (ends, ended) = watch::channel(());
        // The generation first: a mark of a later one does no harm, since what is read under another generation is not kept.
        let generation = self.hub.proof()?.generation;
        let mark = self.hub.mark()?;
        let mut reading = self.lock();
        let begun = keys.iter().map(|key| {
            let key: Arc<str> = (*key).into();
            let new = || Reading { number, readers: 0, ended: ended.clone() };
            let reading = reading.entry(Arc::clone(&key)).or_insert_with(new);
            reading.readers += 1;
            (key, reading.number)
        });
        let keys = begun.collect();
        drop(reading);
        let began = Instant::now();
        Some(NearTicket { store: Arc::clone(self), keys, generation, mark, began, _ends: ends })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many values, and of how many bytes.
    #[cfg(test)]
    pub fn size(&self) -> (usize, u64) {
        (self.values.len(), self.values.weight())
    }
}

impl<T: Clone + Send + Sync + 'static> NearValues for NearStore<T> {
    fn remove(&self, key: &str) {
        let mut reading = self.lock();
        reading.remove(key);
        self.values.remove(key);
    }

    fn clear(&self) {
        let mut reading = self.lock();
        reading.clear();
        self.values.clear();
    }
}

/// A read of some keys that is under way. Dropped, it has ended.
#[derive(Debug)]
pub(in super::super) struct NearTicket<T: Clone + Send + Sync + 'static> {
    store: Arc<NearStore<T>>,
    /// Each with the number under which it is read.
    keys: Vec<(Arc<str>, u64)>,
    generation: u64,
    /// Of the server where it has to be read.
    pub mark: Arc<str>,
    /// Before its command was sent: lifetimes that Redis tells begin later.
    began: Instant,
    _ends: watch::Sender<()>,
}

impl<T: Clone + Send + Sync + 'static> NearTicket<T> {
    /// Keeps what was read of the key at this position, unless a change was heard of since the read began. `left_ms` is its remaining
    /// lifetime as Redis told it; -1: it does not end by itself.
    pub fn keep(&self, at: usize, value: Option<T>, bytes: usize, left_ms: i64) {
        // One that has ended since it was read has no lifetime: it is missing.
        let left = match left_ms {
            ..-1 => return,
            -1 => None,
            left => Some(Duration::from_millis(left.unsigned_abs())),
        };
        let ends = left.and_then(|left| self.began.checked_add(left));
        self.put(at, |generation| Held {
            value,
            is_missing: false,
            generation,
            ends,
            bytes: bytes as u64,
            told_used: AtomicU64::new(0),
        });
    }

    /// Keeps that there is no such key.
    pub fn keep_missing(&self, at: usize) {
        self.put(at, |generation| Held {
            value: None,
            is_missing: true,
            generation,
            ends: None,
            bytes: 0,
            told_used: AtomicU64::new(0),
        });
    }

    fn put(&self, at: usize, held: impl FnOnce(u64) -> Held<T>) {
        let Some((key, number)) = self.keys.get(at) else { return };
        let generation = self.generation;
        let reading = self.store.lock();
        let is_unchanged = reading.get(key).is_some_and(|reading| reading.number == *number);
        // Under the lock, so that whoever hears of a change finds it.
        let is_of_now = self.store.hub.proof().is_some_and(|proof| proof.generation == generation);
        if is_unchanged && is_of_now {
            self.store.values.insert(Arc::clone(key), Arc::new(held(generation)));
        }
        drop(reading);
    }
}

impl<T: Clone + Send + Sync + 'static> Drop for NearTicket<T> {
    fn drop(&mut self) {
        let mut reading = self.store.lock();
        for (key, number) in &self.keys {
            let Some(one) = reading.get_mut(key).filter(|one| one.number == *number) else { continue };
            one.readers -= 1;
            if one.readers == 0 {
                reading.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachekeeper_engine::metrics::Metrics;

    fn store(bytes: u64) -> (Arc<NearHub>, Arc<NearStore<u32>>) {
        let hub = NearHub::new(None, Arc::new(Metrics::new()));
        let limits = NearLimits { bytes, staleness: Duration::from_secs(1), is_bounded: true };
        let store = NearStore::new(&hub, "n:", limits);
        hub.set_mark("mark");
        hub.prove(Instant::now());
        (hub, store)
    }

    fn value(store: &Arc<NearStore<u32>>, key: &str) -> Option<u32> {
        store.hit(key).and_then(|hit| hit.value)
    }

    #[tokio::test]
    async fn it_holds_no_more_bytes_than_it_may() {
        let (_hub, store) = store(100_000);
        for number in 0..10_000 {
            store.begin(&[&format!("n:{number}")]).await.unwrap().keep(0, Some(number), 100, -1);
        }
        let (entries, bytes) = store.size();
        assert!(100 < entries && bytes <= 100_000, "{entries} entries of {bytes} bytes");
    }

    #[tokio::test]
    async fn what_changed_while_it_was_read_is_not_kept() {
        let (hub, store) = store(100_000);
        let ticket = store.begin(&["n:1"]).await.unwrap();
        hub.remove(&["n:1"]);
        ticket.keep(0, Some(1), 1, -1);
        assert_eq!(value(&store, "n:1"), None);
        // The next read is kept, also where the one before ends after it has begun.
        let next = store.begin(&["n:1"]).await.unwrap();
        drop(ticket);
        next.keep(0, Some(2), 1, -1);
        assert_eq!(value(&store, "n:1"), Some(2));
        hub.remove(&["n:1"]);
        assert_eq!(value(&store, "n:1"), None);
    }

    /// On a slow link many read the same; whoever begins takes nothing from those who have.
    #[tokio::test(start_paused = true)]
    async fn reads_that_overlap_are_kept_unless_something_changed() {
        let (hub, store) = store(100_000);
        let first = store.begin(&["n:1", "n:2"]).await.unwrap();
        let second = store.begin(&["n:2", "n:2", "n:3"]).await.unwrap();
        first.keep(1, Some(2), 1, -1);
        assert_eq!(value(&store, "n:2"), Some(2));
        hub.remove(&["n:2"]);
        second.keep(0, Some(2), 1, -1);
        second.keep(2, Some(3), 1, -1);
        assert_eq!((value(&store, "n:2"), value(&store, "n:3")), (None, Some(3)));
        drop((first, second));
        assert!(store.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn it_serves_what_is_proved_and_lives() {
        let (hub, store) = store(100_000);
        store.begin(&["n:1"]).await.unwrap().keep(0, Some(1), 1, 10_000);
        store.begin(&["n:2"]).await.unwrap().keep(0, Some(2), 1, -2);
        assert_eq!((value(&store, "n:1"), value(&store, "n:2")), (Some(1), None));
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert_eq!(value(&store, "n:1"), None, "nothing is proved of the last second");
        hub.prove(Instant::now());
        assert_eq!(value(&store, "n:1"), Some(1));
        tokio::time::advance(Duration::from_secs(9)).await;
        hub.prove(Instant::now());
        assert_eq!(value(&store, "n:1"), None, "it has ended");
    }
}
