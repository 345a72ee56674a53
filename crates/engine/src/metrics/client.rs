//! What applications do through the library.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::description::{Described, Description};
use super::labels::{ByDataset, ByDatasetOutcome, ByReason, Latencies, latency};

metrics! {
    /// Metrics of the library.
    pub struct ClientMetrics {}
    "reads", reads: Family<ByDatasetOutcome, Counter> = Family::default(),
        "Reads of applications through the library, by what they found";
    "read_duration_seconds", read_seconds: Latencies = Family::new_with_constructor(latency),
        "Reads of applications through the library; of hits, one in 16";
    "loads", loads: Family<ByDatasetOutcome, Counter> = Family::default(),
        "Loads by the library's callers, by how they ended";
    "slow_operations", slow: Family<ByDataset, Counter> = Family::default(),
        "Operations of the library above the limit for slow ones";
    "locks", locks: Family<ByReason, Counter> = Family::default(),
        "Requests of the library's callers for locks, by how they ended";
    "lock_wait_seconds", lock_wait_seconds: Histogram = latency(),
        "Until a lock was taken";
    "near_invalidations", near_invalidations: Counter = Counter::default(),
        "Changes that Redis has told of to the near cache, in keys";
    "near_gaps", near_gaps: Counter = Counter::default(),
        "Times at which the near cache could not hear of changes any more, and was emptied";
    "breaker_state", breaker: Gauge = Gauge::default(),
        "0 closed, 1 open, 2 half-open";
}
