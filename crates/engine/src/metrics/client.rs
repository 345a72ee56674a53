//! What applications do through the library.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{ByDataset, ByDatasetOutcome, ByReason, Latencies, latency};

/// Metrics of the library.
#[derive(Debug)]
pub struct ClientMetrics {
    /// Reads of applications through the library, by what they found.
    pub reads: Family<ByDatasetOutcome, Counter>,
    /// Seconds of those reads.
    pub read_seconds: Latencies,
    /// Loads by the library's callers, by how they ended.
    pub loads: Family<ByDatasetOutcome, Counter>,
    /// Operations of the library above the limit for slow ones.
    pub slow: Family<ByDataset, Counter>,
    /// Wishes of the library's callers for locks, by how they ended.
    pub locks: Family<ByReason, Counter>,
    /// Seconds until a lock was taken.
    pub lock_wait_seconds: Histogram,
    /// 0 closed, 1 open, 2 half-open.
    pub breaker: Gauge,
}

impl Default for ClientMetrics {
    fn default() -> Self {
        Self {
            reads: Family::default(),
            read_seconds: Family::new_with_constructor(latency),
            loads: Family::default(),
            slow: Family::default(),
            locks: Family::default(),
            lock_wait_seconds: latency(),
            breaker: Gauge::default(),
        }
    }
}

impl ClientMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        macro_rules! register {
            ($($name:literal, $help:literal, $metric:expr;)+) => { $(registry.register($name, $help, $metric.clone());)+ };
        }
        register! {
            "reads", "Reads of applications through the library, by what they found", self.reads;
            "read_duration_seconds", "Reads of applications through the library; of hits, one in 16", self.read_seconds;
            "loads", "Loads by the library's callers, by how they ended", self.loads;
            "slow_operations", "Operations of the library above the limit for slow ones", self.slow;
            "locks", "Wishes of the library's callers for locks, by how they ended", self.locks;
            "lock_wait_seconds", "Until a lock was taken", self.lock_wait_seconds;
            "breaker_state", "0 closed, 1 open, 2 half-open", self.breaker;
        }
    }
}
