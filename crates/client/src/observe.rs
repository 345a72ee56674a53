//! Metrics and reports of the library's operations: labels by dataset, never by key.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tracing::{Span, warn};

use super::codec::Codec;
use super::core::{Core, beginning};
use cachekeeper_engine::flows::catalog::Catalog;
use cachekeeper_engine::metrics::{ByDataset, ByDatasetOutcome, Metrics};

/// The label of keys that belong to no dataset.
const NO_DATASET: &str = "none";

/// Of so many hits one is timed in the histogram.
const SAMPLE: u64 = 16;

/// What a read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Hit,
    Miss,
    Negative,
    Stale,
    Undecodable,
    Unavailable,
}

const FOUND: [(Found, &str); 6] = [
    (Found::Hit, "hit"),
    (Found::Miss, "miss"),
    (Found::Negative, "negative"),
    (Found::Stale, "stale"),
    (Found::Undecodable, "undecodable"),
    (Found::Unavailable, "unavailable"),
];

/// What is known of a key by its beginning: its codec, and its counters, looked up once.
#[derive(Debug)]
pub(super) struct Class {
    pub label: String,
    pub codec: Codec,
    prefix: String,
    found: [Counter; FOUND.len()],
    seconds: Histogram,
    slow: Counter,
}

impl Class {
    fn new(label: &str, prefix: &str, codec: Codec, metrics: &Metrics) -> Self {
        let counter = |(_, outcome): (Found, &str)| {
            metrics.client.reads.get_or_create(&ByDatasetOutcome::new(label, outcome)).clone()
        };
        Self {
            label: label.to_owned(),
            codec,
            prefix: prefix.to_owned(),
            found: FOUND.map(counter),
            seconds: metrics.client.read_seconds.get_or_create(&ByDataset::new(label)).clone(),
            slow: metrics.client.slow.get_or_create(&ByDataset::new(label)).clone(),
        }
    }

    /// Counts; answers how many there were before.
    pub fn count(&self, found: Found) -> u64 {
        self.found.get(found as usize).map_or(0, Counter::inc)
    }
}

/// All classes.
#[derive(Debug)]
pub(super) struct Classes {
    datasets: Vec<Class>,
    other: Class,
}

impl Classes {
    pub fn new(catalog: Option<&Catalog>, own: Codec, metrics: &Metrics) -> Self {
        let datasets = catalog.into_iter().flat_map(Catalog::iter).map(|dataset| {
            let settings = &dataset.settings;
            let codec = Codec::of(&settings.format, settings.compression);
            Class::new(dataset.name(), settings.key.prefix(), codec, metrics)
        });
        Self { datasets: datasets.collect(), other: Class::new(NO_DATASET, "", own, metrics) }
    }

    /// The class of a key. By its beginning only, so that a read costs next to nothing.
    pub fn of(&self, key: &str) -> &Class {
        self.datasets.iter().find(|class| key.starts_with(&class.prefix)).unwrap_or(&self.other)
    }
}

impl Core {
    /// The span of an operation on a key; the key itself only where that was asked for.
    pub fn span(&self, name: &'static str, key: &str, class: &Class) -> Span {
        let span = match name {
            "cache.get" => {
                tracing::info_span!("cache.get", cache.dataset = %class.label, cache.key = tracing::field::Empty, cache.hit = tracing::field::Empty, otel.status_code = tracing::field::Empty)
            }
            "cache.load" => {
                tracing::info_span!("cache.load", cache.dataset = %class.label, cache.key = tracing::field::Empty, otel.status_code = tracing::field::Empty)
            }
            _ => {
                tracing::info_span!("cache.write", cache.dataset = %class.label, cache.key = tracing::field::Empty, otel.status_code = tracing::field::Empty)
            }
        };
        if self.shows_keys {
            span.record("cache.key", key);
        }
        span
    }

    /// Notes how long a read took and what it found.
    pub fn observe_read(&self, key: &str, class: &Class, took: Duration, found: Found) {
        let before = class.count(found);
        // All tasks share the histogram's lock: a sample of the hits says as much and costs a tenth of it.
        if found != Found::Hit || before.is_multiple_of(SAMPLE) {
            class.seconds.observe(took.as_secs_f64());
        }
        self.report_slow("get", key, class, took);
    }

    /// Reports an operation that took too long; also one that failed.
    pub fn report_slow(&self, operation: &'static str, key: &str, class: &Class, took: Duration) {
        if self.slow <= took {
            class.slow.inc();
            let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            warn!(operation, dataset = %class.label, key = beginning(key), elapsed_ms, "slow cache operation");
        }
    }
}
