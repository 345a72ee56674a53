//! Every metric of the worker, in one place. Labels are names from the configuration or fixed words, never keys.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A struct of metrics and their registration, from one table: name, field, type, first value, help.
macro_rules! metrics {
    (
        $(#[$outer:meta])*
        pub struct $struct:ident { $($(#[$meta:meta])* $visible:vis $extra:ident: $extra_kind:ty = $extra_new:expr,)* }
        $($name:literal, $field:ident: $kind:ty = $new:expr, $help:literal;)+
    ) => {
        $(#[$outer])*
        #[derive(Debug)]
        pub struct $struct { $($(#[$meta])* $visible $extra: $extra_kind,)* $(#[doc = $help] pub $field: $kind,)+ }

        impl $struct {
            pub(super) fn unregistered() -> Self {
                Self { $($extra: $extra_new,)* $($field: $new,)+ }
            }

            pub(super) fn register(&self, registry: &mut Registry) {
                $(registry.register($name, $help, self.$field.clone());)+
            }

            pub(super) fn descriptions() -> Vec<Description> {
                vec![$(Description {
                    name: concat!("cachekeeper_", $name),
                    kind: <$kind as Described>::KIND,
                    labels: <$kind as Described>::LABELS,
                    help: $help,
                }),+]
            }
        }
    };
}

// Below the macro, which it uses.
mod client;
mod description;
mod exposition;
mod labels;

pub use client::ClientMetrics;
use description::Described;
pub use description::Description;
use labels::{Build, Latencies, latency};
pub use labels::{
    ByActor, ByDataset, ByDatasetCause, ByDatasetOutcome, ByDependency, ByReason, BySource, BySourceKind,
    Unlabelled,
};

metrics! {
    /// All metrics.
    pub struct Metrics {
        registry: Registry = Registry::with_prefix("cachekeeper"),
        /// What applications do through the library.
        pub client: ClientMetrics = ClientMetrics::unregistered(),
    }
    "build_info", build: Family<Build, Gauge> = Family::default(),
        "1, with the version of the program";
    "ready", ready: Family<Unlabelled, Gauge> = Family::default(),
        "1 while the worker is ready";
    "entries_stored", stored: Family<ByDatasetCause, Counter> = Family::default(),
        "Entries stored";
    "entries_refused", refused: Family<ByDatasetCause, Counter> = Family::default(),
        "Stores refused because something newer had touched the stamp slot";
    "entries_deleted", deleted: Family<ByDatasetCause, Counter> = Family::default(),
        "Entries deleted: row gone, or invalidated";
    "entries_failed", failed: Family<ByDatasetCause, Counter> = Family::default(),
        "Rows without an entry because they cannot be computed or encoded";
    "backfills", backfills: Family<ByDatasetOutcome, Counter> = Family::default(),
        "Backfills, by how they ended";
    "last_backfill_timestamp_seconds", last_backfill: Family<ByDataset, Gauge> = Family::default(),
        "When the last complete backfill ended";
    "last_backfill_entries", backfill_entries: Family<ByDataset, Gauge> = Family::default(),
        "Entries of the last complete backfill";
    "load_duration_seconds", load_seconds: Latencies = Family::new_with_constructor(latency),
        "Loads by keys";
    "entries_refreshed", refreshed: Family<ByDataset, Counter> = Family::default(),
        "Entries reloaded ahead of their expiry";
    "entries_unread", unread: Family<ByDataset, Counter> = Family::default(),
        "Entries let go because nobody read them";
    "entries_extended", extended: Family<ByDataset, Counter> = Family::default(),
        "Entries kept past their lifetime while Postgres was down";
    "misses_filled", misses: Family<ByDataset, Counter> = Family::default(),
        "Misses of applications that were filled";
    "misses_unfilled", unfilled: Family<ByDataset, Counter> = Family::default(),
        "Misses of applications that were not filled, because their rows could not be loaded or stored";
    "events", events: Family<BySourceKind, Counter> = Family::default(),
        "Invalidation events applied";
    "events_invalid", events_invalid: Family<ByReason, Counter> = Family::default(),
        "Invalidation events that could not be read";
    "events_ignored", events_ignored: Family<ByReason, Counter> = Family::default(),
        "Keys that events named and may not touch: of no dataset, or Cachekeeper's own";
    "event_lag_seconds", event_lag_seconds: Family<BySource, Histogram, fn() -> Histogram> = Family::new_with_constructor(latency),
        "From an event's `at` to its effect";
    "events_pending", events_pending: Gauge = Gauge::default(),
        "Events that wait for Postgres";
    "event_gaps", gaps: Family<ByReason, Counter> = Family::default(),
        "Times that events may have been lost";
    "dependency_up", dependency_up: Family<ByDependency, Gauge> = Family::default(),
        "1 while the server answers";
    "redis_refusals", redis_refusals: Family<ByReason, Counter> = Family::default(),
        "Commands that Redis refused";
    "epochs", epochs: Family<ByReason, Counter> = Family::default(),
        "Epochs begun by this process";
    "pending_revalidations", pending_revalidations: Family<ByDataset, Gauge> = Family::default(),
        "1 while every entry of the dataset must be revalidated";
    "revalidated_entries", revalidated_entries: Family<ByDataset, Gauge> = Family::default(),
        "Entries that the revalidation under way has loaded again or deleted";
    "entries_to_revalidate", entries_to_revalidate: Family<ByDataset, Gauge> = Family::default(),
        "Entries in Redis when the revalidation under way began";
    "changes", changes: Counter = Counter::default(),
        "Captured statements that were applied";
    "changes_waiting", changes_waiting: Family<Unlabelled, Gauge> = Family::default(),
        "Captured changes that are not applied yet; 100,000: that many or more";
    "changed_keys", changed_keys: Family<ByDataset, Counter> = Family::default(),
        "Keys that changes touched";
    "feed_lag_seconds", feed_lag_seconds: Histogram = latency(),
        "From a statement in Postgres to its effect in Redis";
    "feed_restarts", feed_restarts: Family<ByReason, Counter> = Family::default(),
        "Batches of the feed that had to begin again";
    "watermark_age_seconds", watermark_age_seconds: Family<Unlabelled, Gauge<f64, AtomicU64>> = Family::default(),
        "Age of the watermark";
    "dataset_covered", covered: Family<ByDataset, Gauge> = Family::default(),
        "1 while the watermark covers the dataset";
    "dataset_paused", paused: Family<ByDataset, Gauge> = Family::default(),
        "1 while the dataset is paused";
    "dataset_broken", broken: Family<ByDataset, Gauge> = Family::default(),
        "1 while the dataset cannot work";
    "entries_audited", audited: Family<ByDatasetOutcome, Counter> = Family::default(),
        "Entries that the background audit looked at";
    "audit_nines", nines: Family<ByDataset, Gauge<f64, AtomicU64>> = Family::default(),
        "Share of right entries in the last round with a wrong one, in nines";
    "actor_restarts", actor_restarts: Family<ByActor, Counter> = Family::default(),
        "Restarts of an actor";
    "actor_up", actor_up: Family<ByActor, Gauge> = Family::default(),
        "1 while the actor runs";
    "leases_lost", leases_lost: Counter = Counter::default(),
        "Leases lost while they were held";
    "tag_windows_dropped", windows_dropped: Counter = Counter::default(),
        "Tag sets dropped after their window";
    "write_commands", commands: Family<ByReason, Counter> = Family::default(),
        "Write commands of the stream, by what became of them";
    "write_commands_waiting", commands_waiting: Gauge = Gauge::default(),
        "Write commands in the stream";
    "write_commands_held_up", commands_held_up: Gauge = Gauge::default(),
        "Queues of write commands that locks or conflicts hold up";
    "redis_used_memory_bytes", redis_used_memory: Gauge<u64, AtomicU64> = Gauge::default(),
        "Bytes that Redis uses";
    "redis_max_memory_bytes", redis_max_memory: Gauge<u64, AtomicU64> = Gauge::default(),
        "Bytes that Redis may use; 0 without a limit";
    "redis_evicted_keys", redis_evicted: Counter = Counter::default(),
        "Keys that Redis has evicted since it started";
    "admin_connections", admin_connections: Gauge = Gauge::default(),
        "Open connections to the admin listener";
    "admin_refusals", admin_refusals: Family<ByReason, Counter> = Family::default(),
        "Requests to the admin listener that were refused before their path was asked";
    "config_last_reload_successful", reload_ok: Gauge = Gauge::default(),
        "1 unless the last attempt to load the configuration again has failed";
    "config_last_reload_success_timestamp_seconds", reload_seconds: Gauge = Gauge::default(),
        "When the configuration that counts was loaded";
    "log_lines_lost", log_lines_lost: Counter = Counter::default(),
        "Log lines that could not be written";
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
        Self::unregistered().registered()
    }

    /// The same of one shard of a cluster: each of its metrics says so.
    #[must_use]
    pub fn of_shard(number: u32) -> Self {
        let shard = ("shard".into(), number.to_string().into());
        let registry = Registry::with_prefix_and_labels("cachekeeper", [shard].into_iter());
        Self { registry, ..Self::unregistered() }.registered()
    }

    fn registered(self) -> Self {
        let mut metrics = self;
        let mut registry = std::mem::take(&mut metrics.registry);
        metrics.register(&mut registry);
        metrics.client.register(&mut registry);
        metrics.build.get_or_create(&Build::new(env!("CARGO_PKG_VERSION"))).set(1);
        metrics.registry = registry;
        metrics
    }

    /// Adds what a library counts to another registry.
    pub fn register_client(&self, registry: &mut Registry) {
        self.client.register(registry);
        registry.register("entries_stored", "Entries stored", self.stored.clone());
        let refused = "Stores refused because something newer had touched the stamp slot";
        registry.register("entries_refused", refused, self.refused.clone());
        registry.register("load_duration_seconds", "Loads by keys", self.load_seconds.clone());
    }

    /// The `OpenMetrics` text.
    ///
    /// # Errors
    /// Only if formatting fails.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        self.render_with(&[])
    }

    /// The same with what other registries know.
    ///
    /// # Errors
    /// Only if formatting fails.
    pub fn render_with(&self, others: &[&Registry]) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        for registry in std::iter::once(&self.registry).chain(others.iter().copied()) {
            encode_registry(&mut text, registry)?;
        }
        encode_eof(&mut text)?;
        Ok(exposition::without_empty_labels(&text))
    }

    /// The same of several shards of a cluster, behind what the worker as a whole counts.
    ///
    /// # Errors
    /// Only if formatting fails.
    pub fn render_shards(
        &self,
        shards: &[Arc<Self>],
        others: &[&Registry],
    ) -> Result<String, std::fmt::Error> {
        let shards = shards.iter().map(|shard| &shard.registry);
        let all: Vec<&Registry> = others.iter().copied().chain(shards).collect();
        self.render_with(&all).map(|text| exposition::grouped(&text))
    }

    /// What [`Metrics::render_with`] has made, in Prometheus's older text format.
    #[must_use]
    pub fn classic(open_metrics: &str) -> String {
        exposition::classic(open_metrics)
    }

    /// All metrics of a worker, in the order of the table.
    #[must_use]
    pub fn described() -> Vec<Description> {
        let own = Self::descriptions().into_iter().chain(ClientMetrics::descriptions());
        own.chain(crate::process::descriptions()).collect()
    }
}
