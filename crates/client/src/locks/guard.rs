//! A lock that is held.

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::error::LockError;
use super::in_memory::Hold;
use cachekeeper_engine::lease::Lease;

/// Locks that are held. Dropped, they are released in the background; [`Self::release`] tells how it went.
#[derive(Debug)]
pub struct LockGuard(Held);

#[derive(Debug)]
enum Held {
    InRedis(Lease),
    InMemory(Hold),
}

impl LockGuard {
    /// `turns` end with the lock.
    pub(super) fn new(lease: Lease, turns: Vec<OwnedSemaphorePermit>) -> Self {
        lease.keep_until_end(turns);
        Self(Held::InRedis(lease))
    }

    pub(super) fn in_memory(hold: Hold) -> Self {
        Self(Held::InMemory(hold))
    }

    /// The fencing token: larger than that of every holder before.
    #[must_use]
    pub fn token(&self) -> u64 {
        match &self.0 {
            Held::InRedis(lease) => lease.token(),
            Held::InMemory(hold) => hold.token,
        }
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (in_redis, in_memory) = match &self.0 {
            Held::InRedis(lease) => (Some(lease.names()), None),
            Held::InMemory(hold) => (None, Some(hold.names.iter().map(String::as_str))),
        };
        in_redis.into_iter().flatten().chain(in_memory.into_iter().flatten())
    }

    /// Cancelled when the lock may be lost, at a moment that is early rather than late: somebody took or deleted it, it
    /// could not be renewed in time, or `max_hold` is over. That somebody took it is seen by the next renewal, after a third of its
    /// lifetime. Locks are renewed, and their loss is told, by a task in the runtime of the first lock: as long as that runtime
    /// lives it has to be driven (a `current_thread` one runs in `block_on` only). [`Self::is_held`] needs no task.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        match &self.0 {
            Held::InRedis(lease) => lease.lost(),
            Held::InMemory(hold) => &hold.lost,
        }
    }

    /// Whether it is still held, as far as can be known here.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match &self.0 {
            Held::InRedis(lease) => lease.is_trusted(),
            Held::InMemory(hold) => !hold.lost.is_cancelled(),
        }
    }

    /// Gives the lock back; false: it was not ours any more.
    ///
    /// # Errors
    /// [`LockError::Unavailable`]: it ends by its lifetime.
    pub async fn release(self) -> Result<bool, LockError> {
        match self.0 {
            Held::InRedis(lease) => Ok(lease.release().await?),
            Held::InMemory(hold) => Ok(hold.release()),
        }
    }
}
