//! What is known of a key by the dataset that it belongs to: how its bytes are read, and where it is counted. Labels are by
//! dataset, never by key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use serde::de::DeserializeOwned;
use tracing::warn;

use super::codec::Codec;
use super::hash_value;
use cachekeeper_engine::log_limit;
use cachekeeper_engine::metrics::{ByDataset, ByDatasetCause, ByDatasetOutcome, Metrics};
use cachekeeper_protocol::entry::Shape;

/// The label of keys that belong to no dataset.
const NO_DATASET: &str = "none";

/// Of so many hits one is timed in the histogram.
const SAMPLE: u64 = 16;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadOutcome {
    Hit,
    Miss,
    Negative,
    Stale,
    Undecodable,
    Unavailable,
}

const READS: [(ReadOutcome, &str); 6] = [
    (ReadOutcome::Hit, "hit"),
    (ReadOutcome::Miss, "miss"),
    (ReadOutcome::Negative, "negative"),
    (ReadOutcome::Stale, "stale"),
    (ReadOutcome::Undecodable, "undecodable"),
    (ReadOutcome::Unavailable, "unavailable"),
];

/// How a load ended, or that somebody did not wait for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoadOutcome {
    Ok,
    Failed,
    Panicked,
    Cancelled,
    Timeout,
}

const LOADS: [(LoadOutcome, &str); 5] = [
    (LoadOutcome::Ok, "ok"),
    (LoadOutcome::Failed, "failed"),
    (LoadOutcome::Panicked, "panicked"),
    (LoadOutcome::Cancelled, "cancelled"),
    (LoadOutcome::Timeout, "timeout"),
];

/// The keys of one dataset, or those of none. Counters are looked up once, so that a read only adds to them.
#[derive(Debug)]
pub(super) struct KeyClass {
    pub label: String,
    pub codec: Codec,
    /// As what its entries stand in Redis.
    pub shape: Shape,
    reads: [Counter; READS.len()],
    read_seconds: Histogram,
    loads: [Counter; LOADS.len()],
    load_seconds: Histogram,
    stored: Counter,
    refused: Counter,
    slow: Counter,
}

impl KeyClass {
    pub fn new(label: &str, codec: Codec, metrics: &Metrics) -> Self {
        let read = |(_, outcome): (_, &str)| {
            metrics.client.reads.get_or_create(&ByDatasetOutcome::new(label, outcome)).clone()
        };
        let load = |(_, outcome): (_, &str)| {
            metrics.client.loads.get_or_create(&ByDatasetOutcome::new(label, outcome)).clone()
        };
        let (dataset, fills) = (ByDataset::new(label), ByDatasetCause::new(label, "fill"));
        Self {
            label: label.to_owned(),
            codec,
            shape: Shape::String,
            reads: READS.map(read),
            read_seconds: metrics.client.read_seconds.get_or_create(&dataset).clone(),
            loads: LOADS.map(load),
            load_seconds: metrics.load_seconds.get_or_create(&dataset).clone(),
            stored: metrics.stored.get_or_create(&fills).clone(),
            refused: metrics.refused.get_or_create(&fills).clone(),
            slow: metrics.client.slow.get_or_create(&dataset).clone(),
        }
    }

    /// The value of these bytes.
    ///
    /// # Errors
    /// Why they are not a value of this type.
    pub fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, String> {
        match self.shape {
            Shape::String => self.codec.decode(bytes),
            Shape::Hash => hash_value::decode(bytes),
        }
    }

    /// The same; none for an explicit null, unless the type has a value that is written so. A hash is none.
    pub fn decode_or_null<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<Option<T>, String> {
        match self.shape {
            Shape::String => self.codec.decode_or_null(bytes),
            Shape::Hash => hash_value::decode(bytes).map(Some),
        }
    }

    /// Counts a read; answers how many of them there were before.
    pub fn count(&self, found: ReadOutcome) -> u64 {
        self.reads.get(found as usize).map_or(0, Counter::inc)
    }

    /// Counts a read that was timed.
    pub fn count_timed(&self, found: ReadOutcome, took: Duration) {
        let before = self.count(found);
        // All tasks share the histogram's lock: a sample of the hits says as much and costs a tenth of it.
        if found != ReadOutcome::Hit || before.is_multiple_of(SAMPLE) {
            self.read_seconds.observe(took.as_secs_f64());
        }
    }

    pub fn count_load(&self, outcome: LoadOutcome) {
        if let Some(counter) = self.loads.get(outcome as usize) {
            counter.inc();
        }
    }

    /// Notes how long an application's loader took.
    pub fn time_load(&self, took: Duration) {
        self.load_seconds.observe(took.as_secs_f64());
    }

    /// Counts what became of fills.
    pub fn count_fills(&self, all: usize, refused: usize) {
        self.refused.inc_by(refused as u64);
        self.stored.inc_by((all - refused) as u64);
    }

    /// Reports an operation that took too long; also one that failed.
    pub fn report_slow(&self, operation: &'static str, key: &str, took: Duration) {
        self.slow.inc();
        let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let what = "slow cache operations";
        if let Some(count) = log_limit::due(what, &self.label, 1) {
            warn!(operation, dataset = %self.label, key = beginning(key), elapsed_ms, count, "{what}");
        }
    }
}

/// All classes.
#[derive(Debug)]
pub(super) struct KeyClasses {
    /// In the order of the configuration.
    pub datasets: Vec<Arc<KeyClass>>,
    /// The application's own keys in no space.
    pub own: Arc<KeyClass>,
    /// Whether any dataset's entries are hashes.
    pub has_hashes: bool,
    has_spaces: AtomicBool,
    /// Those in spaces, by what the keys begin with; the longest first.
    spaces: RwLock<Vec<(String, Arc<KeyClass>)>>,
}

impl KeyClasses {
    /// The classes of these datasets, each with its name and how its entries are read, and of the application's own keys.
    pub fn new(
        datasets: impl Iterator<Item = (String, Codec, Shape)>,
        own: Codec,
        metrics: &Metrics,
    ) -> Self {
        let datasets: Vec<_> = datasets
            .map(|(name, codec, shape)| Arc::new(KeyClass { shape, ..KeyClass::new(&name, codec, metrics) }))
            .collect();
        let own = Arc::new(KeyClass::new(NO_DATASET, own, metrics));
        let has_hashes = datasets.iter().any(|class| class.shape == Shape::Hash);
        Self { datasets, own, has_hashes, has_spaces: AtomicBool::new(false), spaces: RwLock::default() }
    }

    /// The class of the application's own key.
    pub fn of_own(&self, key: &str) -> Arc<KeyClass> {
        if self.has_spaces.load(Ordering::Acquire) {
            let spaces = self.spaces.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, class)) = spaces.iter().find(|(prefix, _)| key.starts_with(prefix.as_str())) {
                return Arc::clone(class);
            }
        }
        Arc::clone(&self.own)
    }

    /// The class of keys that begin so; `new` is what it is where there is none yet.
    pub fn of_space(&self, prefix: &str, new: KeyClass) -> Arc<KeyClass> {
        let mut spaces = self.spaces.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, class)) = spaces.iter().find(|(known, _)| known == prefix) {
            return Arc::clone(class);
        }
        let class = Arc::new(new);
        spaces.push((prefix.to_owned(), Arc::clone(&class)));
        spaces.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        self.has_spaces.store(true, Ordering::Release);
        class
    }
}

/// Enough of a key to recognise it.
pub(super) fn beginning(key: &str) -> String {
    key.chars().take(100).collect()
}
