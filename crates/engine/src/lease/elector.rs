//! How a worker gets to lead.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::guard::Lease;
use super::renewer::{LeaseReply, Renewer};
use super::terms::{LeaseName, Terms};
use super::wakeups::{Wakeup, Wakeups};
use crate::backoff::Backoff;
use crate::error::chain;

/// While Redis cannot be asked.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A release that nobody heard of is found after so long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Takes leases for one process, and waits for them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Elector {
    renewer: Renewer,
    wakeups: Wakeups,
    owner: Arc<str>,
}

impl Elector {
    /// Takes leases in the name of this process, so that a lease whose grant was lost on the way is its own at the next
    /// attempt.
    #[must_use]
    pub fn new(renewer: Renewer, wakeups: Wakeups, owner: &str) -> Self {
        Self { renewer, wakeups, owner: owner.into() }
    }

    /// Takes the lease if it is free.
    pub async fn try_lead(&self, lease: &LeaseName) -> LeaseReply {
        let reply = self.renewer.acquire(&[&lease.name], &self.owner, Terms::renewed(lease.life)).await;
        match &reply {
            LeaseReply::Granted(_) => {}
            LeaseReply::Held { name, owner, .. } => debug!(lease = name, owner, "lease is held elsewhere"),
            LeaseReply::Unavailable(error) => {
                debug!(lease = %lease.name, error = %chain(error), "lease could not be taken");
            }
        }
        reply
    }

    /// Waits until this process leads. Whoever leads now is followed when it gives the lease back, or is taken for dead.
    pub async fn lead(&self, lease: &LeaseName) -> Lease {
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        // Who listens first and looks then misses no release.
        let mut wakeup = None;
        loop {
            let heard = wakeup.as_ref().map_or(0, Wakeup::begin);
            match self.try_lead(lease).await {
                LeaseReply::Granted(lease) => return lease,
                LeaseReply::Held { left, .. } => {
                    retry.reset();
                    match &mut wakeup {
                        Some(wakeup) => wakeup.wait(heard, left, Instant::now() + LOOK_EVERY).await,
                        None => wakeup = Some(self.wakeups.of(&lease.name)),
                    }
                }
                LeaseReply::Unavailable(_) => retry.wait().await,
            }
        }
    }
}
