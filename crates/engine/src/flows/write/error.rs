//! Why a write was not carried out.

use crate::stores::postgres::{Blame, SourceError};

/// Why a write was not carried out. Then nothing of it is in Postgres (but see [`WriteError::Unknown`]), and Redis is as it
/// was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such dataset.
    #[error("there is no dataset {0:?}")]
    Dataset(String),
    /// The dataset has no write statement.
    #[error("dataset {0} has no write statement; give it one as [dataset.{0}.write] statement")]
    NoStatement(String),
    /// A parameter is wrong.
    #[error("parameter {name}: {problem}")]
    Parameter {
        /// Which.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Postgres refused it: a constraint, a value of a wrong type, a missing right.
    #[error("postgres refused it: {0}")]
    Refused(String),
    /// No row fits.
    #[error("the statement touched no row")]
    NothingTouched,
    /// Postgres could not be asked, or others were in the way again and again; trying again helps.
    #[error("{0}")]
    Unavailable(#[source] SourceError),
    /// The connection broke while it was being committed: it may or may not be in Postgres.
    #[error("it is not known whether it was committed: {0}")]
    Unknown(#[source] SourceError),
}

impl WriteError {
    /// Whether the same write would be refused again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }
}

impl From<SourceError> for WriteError {
    fn from(error: SourceError) -> Self {
        match error.blame() {
            Blame::Statement(text) => Self::Refused(text),
            Blame::Others | Blame::Server => Self::Unavailable(error),
        }
    }
}
