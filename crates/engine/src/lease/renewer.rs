//! One task that keeps every held lock of the process held, or tells its holder that it may be lost.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::StreamExt;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tracing::debug;

use super::goes_on::GoesOn;
use super::guard::Lease;
use super::held::HeldLock;
use super::table::{BATCH, Renewals, Run, Shared};
use super::terms::Terms;
use crate::metrics::Metrics;
use crate::stores::chain;
use crate::stores::redis::{CacheError, LeaseAttempt, LeaseGrant, Redis};

/// Renews the locks of a process, a hundred in one script. Cheap to clone.
///
/// A lock is trusted only until a moment counted from before its last renewal was sent. If the renewing task dies, every
/// holder is told that its lock is lost, and the lock itself ends in Redis by its lifetime.
#[derive(Debug, Clone)]
pub struct Renewer {
    shared: Arc<Shared>,
}

/// How a request for a lease ended.
#[derive(Debug)]
pub enum LeaseReply {
    /// It is ours.
    Granted(Lease),
    /// Somebody else has it.
    Held {
        /// Which of the names.
        name: String,
        /// Who.
        owner: String,
        /// For how much longer, unless it is renewed; zero: not known.
        left: Duration,
    },
    /// Redis could not be asked, or nobody renews locks at the moment.
    Unavailable(CacheError),
}

impl Renewer {
    /// Its task starts with the first lock, and again where it has ended with its runtime.
    #[must_use]
    pub fn new(redis: Redis, metrics: Arc<Metrics>) -> Self {
        Self { shared: Arc::new(Shared::new(redis, metrics, true)) }
    }

    /// No lock is granted but while somebody awaits [`Self::run`].
    #[must_use]
    pub fn supervised(redis: Redis, metrics: Arc<Metrics>) -> Self {
        Self { shared: Arc::new(Shared::new(redis, metrics, false)) }
    }

    /// Takes all of these locks or none. An attempt goes on without its caller: if nobody waits for its answer any more,
    /// the lease is dropped, and so given back.
    pub async fn acquire(&self, names: &[impl AsRef<str>], owner: &str, terms: Terms) -> LeaseReply {
        let names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        if !self.shared.starts_itself && !self.shared.may_take(&names) {
            // Leases of a worker bear the name of its process, so Redis would grant them to it a second time.
            let name = names.into_iter().next().unwrap_or_default();
            return LeaseReply::Held { name, owner: owner.to_owned(), left: Duration::ZERO };
        }
        let (renewer, owner) = (self.clone(), owner.to_owned());
        GoesOn::new(async move {
            let asked = Instant::now();
            match renewer.shared.redis.acquire_locks(&names, &owner, terms.life, terms.is_common).await {
                Ok(LeaseAttempt::Granted(grants)) => renewer.keep(grants, terms, asked),
                Ok(LeaseAttempt::Held { name, owner, left }) => LeaseReply::Held { name, owner, left },
                Err(error) => LeaseReply::Unavailable(error),
            }
        })
        .await
    }

    /// Renews locks for as long as it is awaited. Where two do, the later one has the table.
    pub async fn run(&self) {
        let run = self.shared.begin_run();
        renew(run).await;
    }

    /// Gives everything back, and waits until Redis has heard of it.
    pub async fn close(&self) {
        let held = self.shared.end_run(None);
        let grants: Vec<LeaseGrant> = held.into_iter().flat_map(|held| held.grants).collect();
        for batch in grants.chunks(BATCH) {
            if let Err(error) = self.shared.redis.release_locks(batch).await {
                debug!(error = %chain(&error), "locks were not released, they end by themselves");
            }
        }
        // It is never closed while this holds it.
        drop(self.shared.releasing.subscribe().wait_for(|count| *count == 0).await);
    }

    /// Granted some time after `asked`: from here on it is given back on every path.
    fn keep(&self, grants: Vec<LeaseGrant>, terms: Terms, asked: Instant) -> LeaseReply {
        let held = HeldLock::new(grants.clone(), terms, asked);
        let (lost, wakes_at) = (held.lost.clone(), held.wakes_at());
        let shared = &self.shared;
        let mut table = shared.table();
        let begun = (table.run.is_none() && shared.starts_itself).then(|| shared.begin_run_in(&mut table));
        table.last_number += 1;
        let number = table.last_number;
        let runtime = Handle::try_current().ok();
        let lease = Lease { shared: Arc::clone(shared), number, grants, lost, runtime };
        if table.run.is_none() {
            drop(table);
            // Nobody renews it: dropped, it is given back.
            return LeaseReply::Unavailable(CacheError::timed_out("renew a lock"));
        }
        table.held.insert(number, held);
        if table.looks_at.is_none_or(|at| wakes_at < at) {
            shared.earlier.send_replace(());
        }
        drop(table);
        if let Some(run) = begun {
            // A runtime that shuts down drops it at once, and its end needs the table.
            drop(tokio::spawn(renew(run)));
        }
        LeaseReply::Granted(lease)
    }
}

/// Holds no strong reference to the table while it waits, so that the table ends with its last user.
async fn renew(mut run: Run) {
    // Side by side, so that one that hangs holds up no other, and nobody from being told in time.
    let mut renewals = Renewals::new();
    loop {
        let Some(strong) = run.shared.upgrade() else { return };
        let Some(looks_at) = strong.look(run.number, &mut renewals) else { return };
        drop(strong);
        let renewed = tokio::select! {
            renewed = renewals.next(), if !renewals.is_empty() => renewed,
            changed = run.earlier.changed() => match changed {
                Ok(()) => None,
                Err(_nobody_needs_it) => return,
            },
            () = at(looks_at) => None,
        };
        if let (Some(renewed), Some(shared)) = (renewed, run.shared.upgrade()) {
            shared.note(renewed);
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
