//! The labels of metrics, and the buckets of latencies.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::description::Labelled;

/// A set of labels.
macro_rules! label {
    ($name:ident { $($field:ident),+ }) => {
        #[doc = concat!("Labels: ", $(stringify!($field), " "),+)]
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        pub struct $name { $(#[doc = concat!("The ", stringify!($field), ".")] pub $field: String),+ }
        impl $name {
            #[doc = "The labels with these values."]
            #[must_use]
            pub fn new($($field: &str),+) -> Self { Self { $($field: $field.to_owned()),+ } }
        }
        impl Labelled for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
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
label!(Build { version });

/// No labels, for a metric that is not there before it is known: an application that exports the library's metrics has none of what
/// only a worker knows.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Unlabelled;

impl EncodeLabelSet for Unlabelled {
    fn encode(&self, _encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        Ok(())
    }
}

impl Labelled for Unlabelled {
    const NAMES: &'static [&'static str] = &[];
}

pub(super) type Latencies = Family<ByDataset, Histogram, fn() -> Histogram>;

/// Half a millisecond to half a minute.
pub(super) fn latency() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}
