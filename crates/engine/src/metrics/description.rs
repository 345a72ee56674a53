//! What is known of a metric before it has a value, for the table of all metrics (docs/metrics.md).

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Its name, without what the kind adds.
    pub name: &'static str,
    /// counter, gauge or histogram.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts.
    pub help: &'static str,
}

impl Description {
    /// The name that queries use.
    #[must_use]
    pub fn queried(&self) -> String {
        if self.kind == "counter" { format!("{}_total", self.name) } else { self.name.to_owned() }
    }

    /// The names of the samples: a histogram has three.
    #[must_use]
    pub fn samples(&self) -> Vec<String> {
        match self.kind {
            "histogram" => ["bucket", "sum", "count"].map(|end| format!("{}_{end}", self.name)).to_vec(),
            _ => vec![self.queried()],
        }
    }
}

/// A kind of metric.
pub(super) trait Described {
    const KIND: &'static str;
    const LABELS: &'static [&'static str] = &[];
}

/// A set of labels.
pub(super) trait Labelled {
    const NAMES: &'static [&'static str];
}

impl<N, A> Described for Counter<N, A> {
    const KIND: &'static str = "counter";
}

impl<N, A> Described for Gauge<N, A> {
    const KIND: &'static str = "gauge";
}

impl Described for Histogram {
    const KIND: &'static str = "histogram";
}

impl<S: Labelled, M: Described, C> Described for Family<S, M, C> {
    const KIND: &'static str = M::KIND;
    const LABELS: &'static [&'static str] = S::NAMES;
}
