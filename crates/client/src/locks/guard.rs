//! A lock that is held.

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::LockError;
use cachekeeper_engine::lease::Lease;

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
