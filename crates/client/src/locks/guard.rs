//! A lock that is held, and why one is not.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use cachekeeper_engine::lease::Lease;
use cachekeeper_engine::stores::redis::CacheError;

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
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

/// Locks that are held. Dropped, they are released in the background; [`Self::release`] tells how it went.
#[derive(Debug)]
pub struct LockGuard(Lease);

impl LockGuard {
    /// `turns` end with the lock.
    pub(super) fn new(lease: Lease, turns: Vec<OwnedSemaphorePermit>) -> Self {
        lease.keep_until_end(turns);
        Self(lease)
    }

    /// The fencing token: larger than that of every holder before.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.0.token()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    /// Cancelled when the lock may be lost, at a moment that is early rather than late: somebody took or deleted it, it
    /// could not be renewed in time, or `max_hold` is over.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        self.0.lost()
    }

    /// Whether it is still held, as far as can be known here.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.lost().is_cancelled()
    }

    /// Gives the lock back; false: it was not ours any more.
    ///
    /// # Errors
    /// [`LockError::Unavailable`]: it ends by its lifetime.
    pub async fn release(self) -> Result<bool, LockError> {
        Ok(self.0.release().await?)
    }
}
