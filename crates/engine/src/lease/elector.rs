//! How a worker gets to lead.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::guard::Lease;
use super::renewer::{LeaseReply, Renewer};
use super::terms::{LeaseName, Terms};
use super::wakeups::{Wakeup, Wakeups};
use crate::backoff::Backoff;
use crate::stores::chain;

/// While Redis cannot be asked.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A release that nobody heard of is found after this part of the lease's life: half a second for a leader.
const LOOKS_IN_A_LIFE: u32 = 6;

/// Takes leases for one process, and waits for them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Elector {
    renewer: Renewer,
    wakeups: Wakeups,
    owner: Arc<str>,
    /// Leases that cannot be taken although Redis answers.
    troubled: Arc<Mutex<BTreeSet<String>>>,
}

impl Elector {
    /// Takes leases in the name of this process, so that a lease whose grant was lost on the way is its own at the next
    /// attempt.
    #[must_use]
    pub fn new(renewer: Renewer, wakeups: Wakeups, owner: &str) -> Self {
        Self { renewer, wakeups, owner: owner.into(), troubled: Arc::default() }
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
        self.note(lease, &reply);
        reply
    }

    /// Says once that a lease cannot be taken, and once that it can. A Redis that does not answer is told of elsewhere.
    fn note(&self, lease: &LeaseName, reply: &LeaseReply) {
        let mut troubled = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        match reply {
            LeaseReply::Unavailable(error) if !error.is_unreachable() => {
                if troubled.insert(lease.name.to_string()) {
                    warn!(lease = %lease.name, error = %chain(error), "lease cannot be taken, its work is not done");
                }
            }
            LeaseReply::Unavailable(_) => {}
            LeaseReply::Granted(_) | LeaseReply::Held { .. } => {
                if troubled.remove(&*lease.name) {
                    info!(lease = %lease.name, "lease can be taken again");
                }
            }
        }
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
                    let looks_at = Instant::now() + lease.life / LOOKS_IN_A_LIFE;
                    match &mut wakeup {
                        Some(wakeup) => wakeup.wait(heard, left, looks_at).await,
                        None => wakeup = Some(self.wakeups.of(&lease.name)),
                    }
                }
                LeaseReply::Unavailable(_) => retry.wait_or(self.wakeups.redis().connected_again()).await,
            }
        }
    }
}
