//! Who else could claim a dataset's keys. Which texts a placeholder can hold is known from the types, once Postgres has told them;
//! the configuration alone tells only what coincides whatever they are.

use std::sync::Arc;
use std::time::Duration;

use super::Dataset;
use crate::error::EngineError;
use crate::stores::postgres::{DatasetSource, Postgres, SourceProblem};
use cachekeeper_protocol::template::{Alphabet, Template};

/// What must not have a key of a dataset.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    /// Datasets before it in the configuration.
    datasets: Vec<Arc<Dataset>>,
    /// Streams: who uses one, and its key.
    streams: Vec<(&'static str, String)>,
}

impl Rivals {
    /// Those that types could tell apart from these keys; of the others the configuration knows.
    pub(super) fn of(key: &Template, earlier: &[Arc<Dataset>], streams: &[(&'static str, String)]) -> Self {
        let any = |_: &str| Alphabet::Any;
        let datasets = earlier.iter().filter(|other| key.overlaps(any, &other.settings.key, any));
        let streams = streams.iter().filter(|(_, stream)| key.could_be(any, stream));
        Self { datasets: datasets.cloned().collect(), streams: streams.cloned().collect() }
    }

    /// Fails where a text could be a key of the dataset and of somebody else: the entry would change between the two.
    pub(super) async fn check(
        &self,
        dataset: &Dataset,
        source: &DatasetSource,
        (postgres, limit): (&Postgres, Option<Duration>),
    ) -> Result<(), EngineError> {
        let key = &dataset.settings.key;
        let own = |column: &str| source.alphabet(column);
        for (user, stream) in &self.streams {
            if key.could_be(own, stream) {
                let message = format!("keys {key} could coincide with {stream}, which {user} uses");
                let help = "give the stream another name, or the dataset's keys another prefix";
                return Err(problem(dataset, message, help));
            }
        }
        for other in &self.datasets {
            let theirs = match other.described(postgres, limit).await {
                Ok(theirs) => theirs,
                // It has no entries, and its own trouble is told.
                Err(EngineError::Dataset { .. }) => continue,
                Err(error) => return Err(error),
            };
            if key.overlaps(own, &other.settings.key, |column| theirs.alphabet(column)) {
                let other = (&other.settings.key, other.name());
                let message = format!("keys {key} and {} of dataset {} could coincide", other.0, other.1);
                let help = "begin each dataset's keys with a prefix of its own";
                return Err(problem(dataset, message, help));
            }
        }
        Ok(())
    }
}

fn problem(dataset: &Dataset, message: String, help: &str) -> EngineError {
    let problem = SourceProblem { setting: "key", message, help: help.to_owned(), offset: None };
    EngineError::Dataset { dataset: dataset.name().to_owned(), problem }
}
