//! Why the engine could not go on.

pub use crate::stores::chain;
use crate::stores::postgres::{SourceError, SourceProblem};
use crate::stores::redis::{CacheError, PreconditionFailed};

/// Why the engine could not go on. What fails for one entry only is data (in a `LoadReport`), not an error.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Postgres.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Redis.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The dataset does not fit the database.
    #[error("dataset {dataset}, {}: {problem}; {}", problem.setting, problem.help)]
    Dataset {
        /// Which.
        dataset: String,
        /// What is wrong.
        problem: SourceProblem,
    },
    /// A script found another epoch, incarnation or definition than the caller's: begin again with the present ones.
    #[error("{0}")]
    PreconditionFailed(PreconditionFailed),
    /// Another server is served than the one that answers.
    #[error(
        "this server is not the primary that Redis was filled from, nor its successor; it is served once that one was not seen for \
         20 s (70 s where this one's timeline is earlier)"
    )]
    OtherLife,
    /// Another definition of the dataset is registered.
    #[error(
        "dataset {dataset} is registered with another definition, by a newer worker or from another configuration file; this \
         process stores nothing of it"
    )]
    Superseded {
        /// Which.
        dataset: String,
    },
    /// Redis lost steps of a job: it was rolled back to an older state.
    #[error("Redis was rolled back to an older state while a job ran")]
    RedisRolledBack,
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl EngineError {
    /// The whole in one sentence, for people; logs have the chain of causes.
    #[must_use]
    pub fn told(&self) -> String {
        match self {
            Self::Source(error) => error.told(),
            Self::Cache(error) => error.told(),
            other => chain(other),
        }
    }

    /// Whether Postgres was not reached.
    #[must_use]
    pub fn is_source_down(&self) -> bool {
        matches!(self, Self::Source(error) if error.is_transient())
    }

    /// Whether a load failed for another reason than its rows, and than Redis or the epoch: the database is slow, locked, busy or
    /// out of connections, or does not fit the dataset. The entries are as good as before, and can be loaded later (R10).
    #[must_use]
    pub(crate) fn is_of_many(&self) -> bool {
        match self {
            Self::Dataset { .. } => true,
            Self::Source(error) => !error.is_of_the_server(),
            Self::Cache(_)
            | Self::PreconditionFailed(_)
            | Self::OtherLife
            | Self::Superseded { .. }
            | Self::RedisRolledBack
            | Self::Cancelled => false,
        }
    }

    /// Whether a server was not reached, so that waiting helps.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.is_source_down() || matches!(self, Self::Cache(error) if error.is_unreachable())
    }
}
