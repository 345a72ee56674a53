//! Every metric of the worker, in one place. Labels are names from the configuration or fixed words, never keys.

mod client;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use client::ClientMetrics;

/// Labels of one name.
macro_rules! label {
    ($name:ident { $($field:ident),+ }) => {
        /// Labels.
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        pub struct $name { $(#[doc = "Label."] pub $field: String),+ }
        impl $name {
            /// Builds the label set.
            #[must_use]
            pub fn new($($field: &str),+) -> Self { Self { $($field: $field.to_owned()),+ } }
        }
    };
}

label!(ByDataset { dataset });
label!(ByDatasetOutcome { dataset, outcome });
label!(ByDatasetCause { dataset, cause });
label!(ByReason { reason });
label!(BySource { source });
label!(BySourceKind { source, kind });
label!(ByActor { actor });
label!(ByDependency { dependency });

type Latencies = Family<ByDataset, Histogram, fn() -> Histogram>;

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Entries stored.
    pub stored: Family<ByDatasetCause, Counter>,
    /// Stores refused because something newer had touched the slot.
    pub refused: Family<ByDatasetCause, Counter>,
    /// Entries deleted because their rows are gone, or by an invalidation.
    pub deleted: Family<ByDatasetCause, Counter>,
    /// Rows that have no entry because they cannot be encoded.
    pub failed: Family<ByDatasetCause, Counter>,
    /// Passes, by how they ended.
    pub passes: Family<ByDatasetOutcome, Counter>,
    /// Unix time of the last complete pass.
    pub last_pass: Family<ByDataset, Gauge>,
    /// Entries of the last complete pass.
    pub pass_entries: Family<ByDataset, Gauge>,
    /// Seconds of a load by keys.
    pub load_seconds: Latencies,
    /// Entries loaded again ahead of their expiry.
    pub refreshed: Family<ByDataset, Counter>,
    /// Entries that were let go because nobody read them.
    pub unread: Family<ByDataset, Counter>,
    /// Entries kept past their lifetime because Postgres was down.
    pub extended: Family<ByDataset, Counter>,
    /// Misses of applications that were filled.
    pub misses: Family<ByDataset, Counter>,
    /// Events obeyed.
    pub events: Family<BySourceKind, Counter>,
    /// Events that could not be read.
    pub events_invalid: Family<ByReason, Counter>,
    /// Seconds from an event's `at` to its being obeyed.
    pub event_lag_seconds: Family<BySource, Histogram, fn() -> Histogram>,
    /// Events that wait for Postgres.
    pub events_pending: Gauge,
    /// Times that events may have been lost.
    pub gaps: Family<ByReason, Counter>,
    /// 1 while the server answers.
    pub dependency_up: Family<ByDependency, Gauge>,
    /// Commands that Redis refused.
    pub redis_refusals: Family<ByReason, Counter>,
    /// Epochs begun by this process.
    pub epochs: Family<ByReason, Counter>,
    /// 1 while a dataset's entries must be looked at again.
    pub owed: Family<ByDataset, Gauge>,
    /// Captured statements that were applied.
    pub changes: Counter,
    /// Keys that changes touched.
    pub changed_keys: Family<ByDataset, Counter>,
    /// Seconds from a statement in Postgres to its effect in Redis.
    pub feed_lag_seconds: Histogram,
    /// Batches that had to begin again.
    pub feed_restarts: Family<ByReason, Counter>,
    /// Age of the watermark in seconds.
    pub watermark_age_seconds: Gauge<f64, AtomicU64>,
    /// 1 while every relation of the dataset's query is captured.
    pub covered: Family<ByDataset, Gauge>,
    /// Entries that the background audit looked at, by what it found.
    pub audited: Family<ByDatasetOutcome, Counter>,
    /// The share of right entries in the last round with a wrong one, as a number of nines.
    pub nines: Family<ByDataset, Gauge<f64, AtomicU64>>,
    /// Restarts of an actor.
    pub actor_restarts: Family<ByActor, Counter>,
    /// 1 while the actor runs.
    pub actor_up: Family<ByActor, Gauge>,
    /// Leases lost while they were held.
    pub leases_lost: Counter,
    /// Tag sets dropped after their window.
    pub windows_dropped: Counter,
    /// Write commands, by what became of them.
    pub commands: Family<ByReason, Counter>,
    /// Write commands in the stream.
    pub commands_waiting: Gauge,
    /// Queues of write commands that others are in the way of.
    pub commands_held_up: Gauge,
    /// What applications do through the library.
    pub client: ClientMetrics,
    /// Bytes that Redis uses.
    pub redis_used_memory: Gauge<u64, AtomicU64>,
    /// Entries that Redis evicted.
    pub redis_evicted: Gauge<u64, AtomicU64>,
}

fn latency() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything under the prefix `cachekeeper_`.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("cachekeeper"),
            stored: Family::default(),
            refused: Family::default(),
            deleted: Family::default(),
            failed: Family::default(),
            passes: Family::default(),
            last_pass: Family::default(),
            pass_entries: Family::default(),
            load_seconds: Family::new_with_constructor(latency),
            refreshed: Family::default(),
            unread: Family::default(),
            extended: Family::default(),
            misses: Family::default(),
            events: Family::default(),
            events_invalid: Family::default(),
            event_lag_seconds: Family::new_with_constructor(latency),
            events_pending: Gauge::default(),
            gaps: Family::default(),
            dependency_up: Family::default(),
            redis_refusals: Family::default(),
            epochs: Family::default(),
            owed: Family::default(),
            changes: Counter::default(),
            changed_keys: Family::default(),
            feed_lag_seconds: latency(),
            feed_restarts: Family::default(),
            watermark_age_seconds: Gauge::default(),
            covered: Family::default(),
            audited: Family::default(),
            nines: Family::default(),
            actor_restarts: Family::default(),
            actor_up: Family::default(),
            leases_lost: Counter::default(),
            windows_dropped: Counter::default(),
            commands: Family::default(),
            commands_waiting: Gauge::default(),
            commands_held_up: Gauge::default(),
            client: ClientMetrics::default(),
            redis_used_memory: Gauge::default(),
            redis_evicted: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:expr;)+) => { $(registry.register($name, $help, $metric.clone());)+ };
        }
        register! {
            "entries_stored", "Entries stored", metrics.stored;
            "entries_refused", "Stores refused because something newer had touched the slot", metrics.refused;
            "entries_deleted", "Entries deleted: row gone, or invalidated", metrics.deleted;
            "entries_failed", "Rows without an entry because they cannot be encoded", metrics.failed;
            "passes", "Passes by how they ended", metrics.passes;
            "last_pass_timestamp_seconds", "When the last complete pass ended", metrics.last_pass;
            "last_pass_entries", "Entries of the last complete pass", metrics.pass_entries;
            "load_duration_seconds", "Loads by keys", metrics.load_seconds;
            "entries_refreshed", "Entries loaded again ahead of their expiry", metrics.refreshed;
            "entries_unread", "Entries let go because nobody read them", metrics.unread;
            "entries_extended", "Entries kept past their lifetime while Postgres was down", metrics.extended;
            "misses_filled", "Misses of applications that were filled", metrics.misses;
            "events", "Invalidation events obeyed", metrics.events;
            "events_invalid", "Invalidation events that could not be read", metrics.events_invalid;
            "event_lag_seconds", "From an event's `at` to its being obeyed", metrics.event_lag_seconds;
            "events_pending", "Events that wait for Postgres", metrics.events_pending;
            "event_gaps", "Times that events may have been lost", metrics.gaps;
            "dependency_up", "1 while the server answers", metrics.dependency_up;
            "redis_refusals", "Commands that Redis refused", metrics.redis_refusals;
            "epochs", "Epochs begun by this process", metrics.epochs;
            "dataset_owed", "1 while a dataset's entries must be looked at again", metrics.owed;
            "changes", "Captured statements that were applied", metrics.changes;
            "changed_keys", "Keys that changes touched", metrics.changed_keys;
            "feed_lag_seconds", "From a statement in Postgres to its effect in Redis", metrics.feed_lag_seconds;
            "feed_restarts", "Batches of the feed that had to begin again", metrics.feed_restarts;
            "watermark_age_seconds", "Age of the watermark", metrics.watermark_age_seconds;
            "dataset_covered", "1 while every relation of the dataset's query is captured", metrics.covered;
            "entries_audited", "Entries that the background audit looked at", metrics.audited;
            "audit_nines", "Share of right entries in the last round with a wrong one, in nines", metrics.nines;
            "actor_restarts", "Restarts of an actor", metrics.actor_restarts;
            "actor_up", "1 while the actor runs", metrics.actor_up;
            "leases_lost", "Leases lost while they were held", metrics.leases_lost;
            "tag_windows_dropped", "Tag sets dropped after their window", metrics.windows_dropped;
            "write_commands", "Write commands of the stream, by what became of them", metrics.commands;
            "write_commands_waiting", "Write commands in the stream", metrics.commands_waiting;
            "write_commands_held_up", "Queues of write commands that locks or conflicts hold up", metrics.commands_held_up;
            "redis_used_memory_bytes", "Bytes that Redis uses", metrics.redis_used_memory;
            "redis_evicted_keys", "Keys that Redis evicted", metrics.redis_evicted;
        }
        metrics.client.register(&mut metrics.registry);
        metrics
    }

    /// The Prometheus text.
    ///
    /// # Errors
    /// Only if formatting fails.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
