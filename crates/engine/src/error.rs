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
    /// This server's incarnation was replaced by another primary's.
    #[error("another primary has taken this server's place; point the worker at the new primary")]
    Retired,
    /// A newer process has redefined the dataset.
    #[error("dataset {dataset} was redefined by a newer process; this one stores nothing of it any more")]
    Superseded {
        /// Which.
        dataset: String,
    },
    /// Redis lost steps of a job: it was rolled back to an older state.
    #[error("Redis was rolled back to an older state while a job ran")]
    RedisRolledBack,
    /// Loading took longer than a change may wait.
    #[error("loading entries of dataset {dataset} takes too long")]
    Slow {
        /// Which.
        dataset: String,
    },
    /// Somebody asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl EngineError {
    /// Whether Postgres was not reached.
    #[must_use]
    pub fn is_source_down(&self) -> bool {
        matches!(self, Self::Source(error) if error.is_transient())
    }

    /// Whether a server was not reached, so that waiting helps.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.is_source_down() || matches!(self, Self::Cache(error) if error.is_unreachable())
    }
}
