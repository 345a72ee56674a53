//! Epochs: notice that an order has ended, and begin the next one (R13, R16).

use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::context::Context;
use super::error::FlowError;
use crate::metrics::ByReason;
use crate::stores::postgres::{OutboxState, Poll, Trouble};
use crate::stores::redis::{Answer, Creation, Epoch, Metadata, NewEpoch, PendingRevalidation, Registration};
use cachekeeper_protocol::stamp::Snapshot;

/// The order of things as it was just read.
#[derive(Debug, Clone)]
pub struct Order {
    /// The epoch.
    pub epoch: Epoch,
    /// Snapshot and incarnation, taken after the head was read.
    pub poll: Poll,
    /// The head.
    pub head: Metadata,
}

/// How often another process may be faster before something is wrong.
const ATTEMPTS: usize = 10;

/// Reads the head and takes a snapshot; begins a new epoch where the tables are missing or the database has another
/// incarnation; makes this process's definitions known. `job` is counted, if it is not empty.
///
/// # Errors
/// [`FlowError`]; [`FlowError::Retired`] where this server was replaced.
pub async fn ensure(context: &Context, job: &str) -> Result<Order, FlowError> {
    for _ in 0..ATTEMPTS {
        let head = context.redis.metadata(job).await.map_err(|error| context.count_refusal(error))?;
        let poll = poll(context).await?;
        if head.retired.contains(&poll.incarnation) {
            context.set_epoch(None);
            return Err(FlowError::Retired);
        }
        let is_same = head.incarnation.as_deref() == Some(poll.incarnation.as_str());
        if let (true, true, Some(epoch)) = (head.is_whole, is_same, head.epoch) {
            context.set_epoch(Some(epoch));
            adopt_all(context, &epoch, &poll, &head).await?;
            return Ok(Order { epoch, poll, head });
        }
        let reason = if !head.is_whole { "tables lost" } else { "another incarnation" };
        begin(context, &head, &poll, reason, false).await?;
    }
    Err(FlowError::Gone(crate::stores::redis::PreconditionFailed::Epoch))
}

/// Redis went back, but its tables are whole: the same order under a new name, and everything is owed.
///
/// # Errors
/// [`FlowError`].
pub async fn relabel(context: &Context) -> Result<(), FlowError> {
    let head = context.redis.metadata("").await?;
    let poll = poll(context).await?;
    begin(context, &head, &poll, "went back", head.is_whole).await
}

/// Begins anew if the cursor is behind what the outbox still has (R13).
///
/// # Errors
/// [`FlowError`].
pub async fn begin_behind(context: &Context, outbox: &OutboxState) -> Result<(), FlowError> {
    let head = context.redis.metadata("").await?;
    let poll = poll(context).await?;
    let cursor = head.cursor.as_deref().and_then(|text| text.parse::<Snapshot>().ok());
    if cursor.is_none_or(|cursor| outbox.is_behind(&cursor, &poll.incarnation)) {
        begin(context, &head, &poll, "changes lost", false).await?;
    }
    Ok(())
}

async fn begin(
    context: &Context,
    head: &Metadata,
    poll: &Poll,
    reason: &str,
    is_renewal: bool,
) -> Result<(), FlowError> {
    let datasets: Vec<String> = context.catalog.iter().map(|dataset| dataset.name().to_owned()).collect();
    let new = NewEpoch {
        incarnation: &poll.incarnation,
        snapshot: &poll.snapshot,
        pending: &PendingRevalidation::new(reason, head.now_ms),
        datasets: &datasets,
        is_renewal,
    };
    match context.redis.create_epoch(head, &new).await? {
        Creation::Created(epoch) => {
            warn!(%epoch, reason, incarnation = %poll.incarnation, floor = %poll.snapshot.stamp(),
                "a new epoch begins, all datasets are owed");
            context.metrics.epochs.get_or_create(&ByReason::new(reason)).inc();
            Ok(())
        }
        Creation::Lost => Ok(()),
        Creation::Retired => Err(FlowError::Retired),
    }
}

/// Takes a snapshot; where the server began another life, records its incarnation first.
///
/// # Errors
/// [`FlowError`].
pub async fn poll(context: &Context) -> Result<Poll, FlowError> {
    match context.postgres.poll().await {
        Err(error) if error.trouble == Trouble::NoIncarnation => {
            info!("the server began another life, recording its incarnation");
            context.postgres.record_incarnation().await?;
            Ok(context.postgres.poll().await?)
        }
        other => Ok(other?),
    }
}

async fn adopt_all(context: &Context, epoch: &Epoch, poll: &Poll, head: &Metadata) -> Result<(), FlowError> {
    for dataset in context.catalog.iter() {
        let seen = head.revisions.get(dataset.name()).map_or("", String::as_str);
        let is_known = dataset.is_adopted.load(Ordering::Relaxed);
        if is_known && (seen == dataset.revision || !seen.is_empty()) {
            if seen != dataset.revision && !dataset.is_displaced() {
                warn!(dataset = dataset.name(), "{}", dataset.displace());
            }
            continue;
        }
        let longest = dataset.lifetimes.longest();
        let revisions = (seen, dataset.revision.as_str());
        let life = (longest, head.now_ms);
        match context.redis.register(epoch, &poll.incarnation, dataset.name(), revisions, life).await? {
            Answer::Done(Registration::Registered) => {
                info!(dataset = dataset.name(), revision = %dataset.revision, "definition adopted, entries are owed");
                dataset.is_adopted.store(true, Ordering::Relaxed);
            }
            Answer::Done(Registration::Same) => dataset.is_adopted.store(true, Ordering::Relaxed),
            // The next look decides.
            Answer::Done(Registration::Lost) | Answer::Failed(_) => {}
        }
    }
    Ok(())
}
