//! Why a lock is not held.

use std::time::Duration;

use cachekeeper_engine::stores::redis::CacheError;

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds it.
    #[error("lock {name:?} is held by {owner} for another {left:?}")]
    Held {
        /// Which one.
        name: String,
        /// Who: host, process and a number.
        owner: String,
        /// For how much longer, unless it is renewed.
        left: Duration,
    },
    /// Redis could not be asked: nothing is held, or it ends by itself.
    #[error("lock cannot be taken: {0}")]
    Unavailable(#[from] CacheError),
    /// A lock without a name, or a lifetime of zero.
    #[error("a lock needs a name and a lifetime of at least 10 ms")]
    Meaningless,
}

impl LockError {
    /// Whether somebody else holds it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}
