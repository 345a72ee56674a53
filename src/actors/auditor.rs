//! Looks slowly at every entry, all the time, and says if one is wrong: nobody should have to believe the worker.
//!
//! One worker does it, by a lease. What is found wrong is counted, logged, and loaded again. If the actor dies, the walk
//! begins again.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{debug, error, info};

use super::address::AddressBook;
use super::lock_renewer::{LEASE_LIFE, LockRenewerMessage, Wish};
use super::task::Task;
use cachekeeper_engine::flows::compare::{Comparison, Extent, compare, fix};
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::metrics::{ByDataset, ByDatasetOutcome};

const LEASE: &str = "audit";
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two rounds, and before the first: a worker that starts has better things to do.
const PAUSE: Duration = Duration::from_secs(60);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct AuditorArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Most entries a second; 0: nothing is done.
    pub rate: u64,
}

/// Messages.
#[derive(Debug)]
pub enum AuditorMessage {
    /// The loop has ended, which it never should: it panicked.
    Ended,
}

/// The actor.
#[derive(Debug)]
pub struct Auditor;

impl Actor for Auditor {
    type Msg = AuditorMessage;
    type State = Option<Task>;
    type Arguments = AuditorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<AuditorMessage>,
        arguments: AuditorArguments,
    ) -> Result<Option<Task>, ActorProcessingErr> {
        if arguments.rate == 0 {
            return Ok(None);
        }
        Ok(Some(Task::spawn(&myself, run(arguments), |_ended: Option<()>| AuditorMessage::Ended)))
    }

    async fn handle(
        &self,
        _myself: ActorRef<AuditorMessage>,
        message: AuditorMessage,
        _task: &mut Option<Task>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            AuditorMessage::Ended => Err("the auditor's loop has ended".into()),
        }
    }
}

async fn run(arguments: AuditorArguments) {
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(renewer) = arguments.peers.lock_renewer.get() else { continue };
        let ask = |reply| LockRenewerMessage::Acquire { name: LEASE.to_owned(), life: LEASE_LIFE, reply };
        let wish = renewer.call(ask, Some(ASK_TIMEOUT)).await;
        let Ok(ractor::rpc::CallResult::Success(Wish::Granted(lease))) = wish else { continue };
        tokio::select! {
            () = lease.lost.cancelled() => {}
            () = round(&arguments) => {}
        }
        arguments.peers.lock_renewer.hint(LockRenewerMessage::Release { name: lease.name });
    }
}

/// Every dataset once.
async fn round(arguments: &AuditorArguments) {
    let context = &arguments.context;
    let extent = Extent { sample: None, rate: Some(arguments.rate) };
    for dataset in context.catalog.iter() {
        match compare(context, dataset, &extent).await {
            Ok(found) => {
                note(context, &found);
                if !found.is_clean()
                    && let Err(error) = fix(context, dataset, &found).await
                {
                    debug!(error = %chain(&error), "what is wrong is loaded again after the next round");
                }
            }
            Err(FlowError::Displaced { .. }) => {}
            Err(error) => debug!(error = %chain(&error), "the audit begins again later"),
        }
    }
}

fn note(context: &Context, found: &Comparison) {
    let audited = &context.metrics.audited;
    let count = |outcome: &str, number: u64| {
        audited.get_or_create(&ByDatasetOutcome::new(&found.dataset, outcome)).inc_by(number);
    };
    count("right", found.right);
    for (outcome, keys) in [
        ("stale", &found.stale),
        ("extra", &found.extra),
        ("missing", &found.missing),
        ("undecodable", &found.undecodable),
        ("unsure", &found.unsure),
    ] {
        count(outcome, keys.len() as u64);
    }
    if let Some(nines) = found.nines() {
        context.metrics.nines.get_or_create(&ByDataset::new(&found.dataset)).set(nines);
    }
    if found.stale.is_empty() && found.extra.is_empty() {
        info!(dataset = found.dataset, checked = found.checked, "every entry was compared with the database");
    } else {
        error!(dataset = found.dataset, "entries are wrong, which should not be: {found}");
    }
}
