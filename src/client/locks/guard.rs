//! A lock that is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ractor::ActorRef;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{LockError, LockOptions, Locks};
use crate::actors::lock_renewer::{Charge, LockRenewerMessage};
use cachekeeper_engine::flows::error::chain;
use cachekeeper_engine::stores::redis::{CacheError, LeaseGrant, Redis};

/// Locks that are held. Dropped, they are released in the background; [`Self::release`] tells how it went.
#[derive(Debug)]
pub struct LockGuard {
    locks: Locks,
    grants: Vec<LeaseGrant>,
    lost: CancellationToken,
    is_released: Arc<AtomicBool>,
    renewer: Option<ActorRef<LockRenewerMessage>>,
}

impl LockGuard {
    /// What was granted; from here on it is released on every path.
    pub(super) fn new(locks: Locks, grants: Vec<LeaseGrant>) -> Self {
        Self { locks, grants, lost: CancellationToken::new(), is_released: Arc::default(), renewer: None }
    }

    /// Has it renewed. `asked`: before the grant was asked for.
    pub(super) async fn keep(
        mut self,
        options: LockOptions,
        asked: Instant,
        turns: Vec<OwnedSemaphorePermit>,
    ) -> Self {
        let charge = Charge {
            grants: self.grants.clone(),
            life: options.life,
            asked,
            is_renewed: options.is_renewed,
            ends: options.max_hold.and_then(|hold| asked.checked_add(hold)),
            lost: self.lost.clone(),
            is_released: Arc::clone(&self.is_released),
            turns,
        };
        self.renewer = self.locks.keep(charge).await;
        self
    }

    /// The fencing token: larger than that of every holder before.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.grants.first().map_or(0, |grant| grant.token)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.grants.iter().map(|grant| grant.name.as_str())
    }

    /// Cancelled when the lock may be lost, at a moment that is early rather than late: somebody took or deleted it, it
    /// could not be renewed in time, or `max_hold` is over.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether it is still held, as far as can be known here.
    #[must_use]
    pub fn is_held(&self) -> bool {
        !self.lost.is_cancelled()
    }

    /// Gives the lock back; false: it was not ours any more.
    ///
    /// # Errors
    /// [`LockError::Unavailable`]: it ends by its lifetime.
    pub async fn release(self) -> Result<bool, LockError> {
        let (locks, grants) = (self.locks.clone(), self.begin_release());
        let renewer = self.renewer.clone();
        // In a task of its own, so that a caller who is dropped here releases all the same.
        let released = tokio::spawn(async move { finish_release(&locks, &grants, renewer).await });
        match released.await {
            Ok(released) => Ok(released?),
            Err(_runtime_ends) => Err(CacheError::timed_out("release a lock").into()),
        }
    }

    /// Answers what is to be released; the guard's own drop then does nothing more.
    fn begin_release(&self) -> Vec<LeaseGrant> {
        let is_first = !self.is_released.swap(true, Ordering::AcqRel);
        if is_first { self.grants.clone() } else { Vec::new() }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        let (locks, grants) = (self.locks.clone(), self.begin_release());
        let renewer = self.renewer.clone();
        if grants.is_empty() {
            return;
        }
        // Without a runtime nothing can be sent: the lifetime ends it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move {
                if let Err(error) = finish_release(&locks, &grants, renewer).await {
                    debug!(error = %chain(&error), "a lock was not released, it ends by itself");
                }
            }));
        }
    }
}

/// Releases first, then lets the next one of this process try.
async fn finish_release(
    locks: &Locks,
    grants: &[LeaseGrant],
    renewer: Option<ActorRef<LockRenewerMessage>>,
) -> Result<bool, CacheError> {
    let redis: &Redis = locks.redis();
    let mut released = redis.release_locks(grants).await;
    if released.as_ref().is_err_and(CacheError::is_unreachable) {
        // The content names this holder only, so that a release which is sent twice cannot meet another's lock.
        released = redis.release_locks(grants).await;
    }
    if let (Some(renewer), Some(grant)) = (renewer, grants.first()) {
        // If it has ended, it has nothing to forget.
        drop(renewer.cast(LockRenewerMessage::Forget(grant.token)));
    }
    Ok(released? == grants.len() as u64)
}
