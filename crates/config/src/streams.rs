//! The keys of Redis that streams use.

use super::{Config, Dataset};

impl Config {
    /// The keys that streams use, each with its setting: entries of datasets may not have them.
    #[must_use]
    pub fn stream_keys(&self) -> Vec<(&'static str, String)> {
        let (events, writes) = (self.invalidation.stream.as_deref(), self.writes.stream.as_deref());
        used_keys(&self.datasets, events, writes)
    }
}

/// The keys that streams use, each with its setting. Commands are taken only where a dataset can be written.
pub(crate) fn used_keys(
    datasets: &[Dataset],
    events: Option<&str>,
    writes: Option<&str>,
) -> Vec<(&'static str, String)> {
    let writes = writes.filter(|_| datasets.iter().any(|dataset| dataset.write.is_some()));
    let named = |(setting, stream): (&'static str, Option<&str>)| {
        stream.map(keys_of).into_iter().flatten().map(move |key| (setting, key))
    };
    [("[invalidation] stream", events), ("[writes] stream", writes)].into_iter().flat_map(named).collect()
}

/// A stream, and what is kept apart of it.
pub(crate) fn keys_of(stream: &str) -> [String; 2] {
    [stream.to_owned(), format!("{stream}:dead")]
}
