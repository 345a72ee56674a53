//! Why a flow could not go on.

use crate::stores::postgres::{SourceError, SourceProblem};
use crate::stores::redis::{CacheError, PreconditionFailed};

/// Why a flow could not go on. What fails for one entry only is data (a [`super::reload::Report`]), not an error.
#[derive(Debug, thiserror::Error)]
pub enum FlowError {
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
    /// The order of things changed while the flow ran; it must begin again.
    #[error("{0}")]
    Gone(PreconditionFailed),
    /// This server's incarnation was replaced by another primary's.
    #[error("another primary has taken this server's place; point the worker at the new primary")]
    Retired,
    /// A newer process has redefined the dataset.
    #[error("dataset {dataset} was redefined by a newer process; this one stores nothing of it any more")]
    Displaced {
        /// Which.
        dataset: String,
    },
    /// Redis went back to an older state while a job ran.
    #[error("Redis went back to an older state while a job ran")]
    WentBack,
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

impl FlowError {
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

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
