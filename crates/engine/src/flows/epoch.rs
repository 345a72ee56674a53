//! Epochs: notice that one has ended, and begin the next (R13, R16).

use std::sync::atomic::Ordering;

use tracing::{info, warn};

use super::context::Context;
use super::error::FlowError;
use crate::metrics::ByReason;
use crate::stores::postgres::{ErrorKind, OutboxState, Poll};
use crate::stores::redis::{Adoption, Answer, Creation, Debt, Epoch, Head, NewEpoch};
use cachekeeper_protocol::stamp::Snapshot;

/// The current epoch, as it was just read.
#[derive(Debug, Clone)]
pub struct EpochState {
    /// Its id.
    pub epoch: Epoch,
    /// Snapshot and incarnation, taken after the metadata was read.
    pub poll: Poll,
    /// The metadata in Redis.
    pub head: Head,
}

/// How often another process may be faster before something is wrong.
const ATTEMPTS: usize = 10;

/// Reads the metadata and takes a snapshot; begins a new epoch where the tables are missing or the database has another
/// incarnation; makes this process's definitions known. `job` is counted, if it is not empty.
///
/// # Errors
/// [`FlowError`]; [`FlowError::Retired`] where this server was replaced.
pub async fn ensure(context: &Context, job: &str) -> Result<EpochState, FlowError> {
    for _ in 0..ATTEMPTS {
        let head = context.redis.head(job).await.map_err(|error| context.count_refusal(error))?;
        let poll = poll(context).await?;
        if head.retired.contains(&poll.incarnation) {
            context.set_epoch(None);
            return Err(FlowError::Retired);
        }
        let is_same = head.incarnation.as_deref() == Some(poll.incarnation.as_str());
        if let (true, true, Some(epoch)) = (head.is_whole, is_same, head.epoch) {
            context.set_epoch(Some(epoch));
            register_all(context, &epoch, &poll, &head).await?;
            return Ok(EpochState { epoch, poll, head });
        }
        let reason = if !head.is_whole { "tables lost" } else { "another incarnation" };
        begin(context, &head, &poll, reason, false).await?;
    }
    Err(FlowError::Gone(crate::stores::redis::Gone::Epoch))
}

/// Redis rolled back, but its tables are whole: they go on under a new epoch id, and everything is pending.
pub async fn renew(context: &Context) -> Result<(), FlowError> {
    let head = context.redis.head("").await?;
    let poll = poll(context).await?;
    begin(context, &head, &poll, "rolled back", head.is_whole).await
}

/// Begins anew if the cursor is behind what the outbox still has (R13).
pub async fn begin_behind(context: &Context, outbox: &OutboxState) -> Result<(), FlowError> {
    let head = context.redis.head("").await?;
    let poll = poll(context).await?;
    let cursor = head.cursor.as_deref().and_then(|text| text.parse::<Snapshot>().ok());
    if cursor.is_none_or(|cursor| outbox.is_behind(&cursor, &poll.incarnation)) {
        begin(context, &head, &poll, "changes lost", false).await?;
    }
    Ok(())
}

async fn begin(
    context: &Context,
    head: &Head,
    poll: &Poll,
    reason: &str,
    keeps_tables: bool,
) -> Result<(), FlowError> {
    let datasets: Vec<String> = context.catalog.iter().map(|dataset| dataset.name().to_owned()).collect();
    let new = NewEpoch {
        incarnation: &poll.incarnation,
        snapshot: &poll.snapshot,
        debt: &Debt::new(reason, head.now_ms),
        datasets: &datasets,
        is_relabel: keeps_tables,
    };
    match context.redis.create_epoch(head, &new).await? {
        Creation::Created(epoch) => {
            warn!(%epoch, reason, incarnation = %poll.incarnation, floor = %poll.snapshot.stamp(),
                "a new epoch begins, all datasets are pending");
            context.metrics.epochs.get_or_create(&ByReason::new(reason)).inc();
            Ok(())
        }
        Creation::Lost => Ok(()),
        Creation::Retired => Err(FlowError::Retired),
    }
}

/// Takes a snapshot; where the primary was restarted, records its incarnation first.
pub async fn poll(context: &Context) -> Result<Poll, FlowError> {
    match context.postgres.poll().await {
        Err(error) if error.kind == ErrorKind::NoIncarnation => {
            info!("the primary restarted, recording its incarnation");
            context.postgres.record_incarnation().await?;
            Ok(context.postgres.poll().await?)
        }
        other => Ok(other?),
    }
}

async fn register_all(context: &Context, epoch: &Epoch, poll: &Poll, head: &Head) -> Result<(), FlowError> {
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
        match context.redis.adopt(epoch, &poll.incarnation, dataset.name(), revisions, life).await? {
            Answer::Done(Adoption::Adopted) => {
                info!(dataset = dataset.name(), revision = %dataset.revision, "definition registered, entries are pending");
                dataset.is_adopted.store(true, Ordering::Relaxed);
            }
            Answer::Done(Adoption::Same) => dataset.is_adopted.store(true, Ordering::Relaxed),
            // The next look decides.
            Answer::Done(Adoption::Lost) | Answer::Gone(_) => {}
        }
    }
    Ok(())
}
