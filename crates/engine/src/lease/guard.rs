//! The handle of held locks.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::goes_on::GoesOn;
use super::held::HeldLock;
use super::table::Shared;
use crate::stores::chain;
use crate::stores::redis::{CacheError, LeaseGrant};

/// One or more locks under one token. Dropped, they are given back in the background, also where the task that holds them
/// is killed or panics; [`Self::release`] tells how it went.
#[derive(Debug)]
pub struct Lease {
    pub(super) shared: Arc<Shared>,
    /// Its number in the table of the renewer.
    pub(super) number: u64,
    pub(super) grants: Vec<LeaseGrant>,
    pub(super) lost: CancellationToken,
    /// Where it was acquired: it may be dropped outside of any runtime.
    pub(super) runtime: Option<Handle>,
}

impl Lease {
    /// The fencing token: larger than that of every holder before.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.grants.first().map_or(0, |grant| grant.token)
    }

    /// The names of the locks.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.grants.iter().map(|grant| grant.name.as_str())
    }

    /// Cancelled when the lease may be lost, at a moment that is early rather than late.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether it is held for sure, by what was heard and by the clock: it needs no task that runs.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        let is_trusted = |held: &HeldLock| held.is_trusted(Instant::now());
        !self.lost.is_cancelled() && self.shared.table().held.get(&self.number).is_some_and(is_trusted)
    }

    /// Has permits dropped with the lease: when Redis has heard of its release, or when it is lost.
    pub fn keep_until_end(&self, permits: Vec<OwnedSemaphorePermit>) {
        if let Some(held) = self.shared.table().held.get_mut(&self.number) {
            held.permits = permits;
        }
    }

    /// Gives the lease back; false: it was not ours any more. A caller who leaves before the answer releases all the same.
    ///
    /// # Errors
    /// [`CacheError`]: it ends by its lifetime.
    pub async fn release(mut self) -> Result<bool, CacheError> {
        let unsent = || Err(CacheError::timed_out("release a lock"));
        let Some(releasing) = self.begin_release() else { return unsent() };
        if Handle::try_current().is_ok() {
            return GoesOn::new(releasing).await;
        }
        // Outside of a runtime, or where the one of then has ended, nothing can be sent from here.
        match self.runtime.take() {
            Some(runtime) => runtime.spawn(releasing).await.unwrap_or_else(|_ended| unsent()),
            None => unsent(),
        }
    }

    /// None: it was begun before.
    fn begin_release(&mut self) -> Option<impl Future<Output = Result<bool, CacheError>> + Send + use<>> {
        // From here on it is not renewed: a renewal that is under way finds nothing, and nothing is wrong.
        let held = self.shared.table().held.remove(&self.number);
        let grants = std::mem::take(&mut self.grants);
        if grants.is_empty() {
            return None;
        }
        let (shared, under_way) = (Arc::clone(&self.shared), self.shared.begin_release());
        Some(async move {
            let released = shared.release(&grants).await;
            if let Err(error) = &released {
                debug!(error = %chain(error), "a lock was not released, it ends by itself");
            }
            // Only now may others of this process try.
            drop((held, under_way));
            Ok(released? == grants.len() as u64)
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(releasing) = self.begin_release()
            && let Some(runtime) = Handle::try_current().ok().or_else(|| self.runtime.take())
        {
            drop(runtime.spawn(releasing));
        }
    }
}
