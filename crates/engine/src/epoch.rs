//! Epochs: notice that one has ended, and begin the next (R13, R16).

use std::sync::atomic::Ordering;

use tracing::{debug, info, warn};

use super::catalog::Dataset;
use super::context::Context;
use super::error::EngineError;
use crate::metrics::ByReason;
use crate::stores::postgres::{ErrorKind, OutboxState, Poll, SourceError};
use crate::stores::redis::{Answer, Creation, Epoch, Metadata, NewEpoch, PreconditionFailed, Registration};
use cachekeeper_protocol::revision::Revision;
use cachekeeper_protocol::stamp::Snapshot;

/// The current epoch, as it was just read.
#[derive(Debug, Clone)]
pub struct EpochState {
    /// Its id.
    pub epoch: Epoch,
    /// Snapshot and incarnation, taken after the metadata was read.
    pub poll: Poll,
    /// The metadata in Redis.
    pub metadata: Metadata,
}

/// How often another process may be faster before something is wrong.
const ATTEMPTS: usize = 10;

/// Reads the metadata and takes a snapshot; begins a new epoch where the tables are missing or the database has another
/// incarnation; makes the definitions of a worker known. `job` is counted, if it is not empty.
///
/// # Errors
/// [`EngineError`]; [`EngineError::Retired`] where this server was replaced.
pub async fn ensure(context: &Context, job: &str) -> Result<EpochState, EngineError> {
    for _ in 0..ATTEMPTS {
        let metadata = context.redis.metadata(job).await.map_err(|error| context.count_refusal(error))?;
        let poll = poll(context).await?;
        if metadata.retired.contains(&poll.incarnation) {
            return Err(EngineError::Retired);
        }
        let is_same = metadata.incarnation.as_deref() == Some(poll.incarnation.as_str());
        if let (true, true, Some(epoch)) = (metadata.is_whole, is_same, metadata.epoch) {
            context.set_epoch(Some(epoch));
            register_all(context, &epoch, &poll, &metadata).await?;
            return Ok(EpochState { epoch, poll, metadata });
        }
        let reason = if !metadata.is_whole { "tables lost" } else { "another incarnation" };
        begin(context, &metadata, &poll, reason, false).await?;
    }
    Err(context.on_precondition_failed(None, PreconditionFailed::Epoch))
}

/// Redis rolled back, but its tables are whole: they go on under a new epoch id, and everything is pending.
pub async fn renew(context: &Context) -> Result<(), EngineError> {
    let metadata = context.redis.metadata("").await?;
    let poll = poll(context).await?;
    begin(context, &metadata, &poll, "rolled back", metadata.is_whole).await
}

/// Begins anew if the cursor is behind what the outbox still has (R13).
pub(crate) async fn begin_behind(context: &Context, outbox: &OutboxState) -> Result<(), EngineError> {
    let metadata = context.redis.metadata("").await?;
    let poll = poll(context).await?;
    let cursor = metadata.cursor.as_deref().and_then(|text| text.parse::<Snapshot>().ok());
    if cursor.is_none_or(|cursor| outbox.is_behind(&cursor, &poll.incarnation)) {
        begin(context, &metadata, &poll, "changes lost", false).await?;
    }
    Ok(())
}

async fn begin(
    context: &Context,
    metadata: &Metadata,
    poll: &Poll,
    reason: &str,
    keeps_tables: bool,
) -> Result<(), EngineError> {
    let datasets: Vec<String> = context.catalog.iter().map(|dataset| dataset.name().to_owned()).collect();
    // What was prepared in an earlier incarnation may commit at any moment, and nothing of it is captured. Looked for before the
    // snapshot: what has ended by then, the snapshot sees (X41).
    let (mut poll, mut was_covered) = (poll.clone(), true);
    if metadata.incarnation.as_ref() != Some(&poll.incarnation) && context.postgres.has_old_prepared().await?
    {
        was_covered = false;
        poll = context.postgres.poll().await?;
    }
    let new = NewEpoch {
        incarnation: &poll.incarnation,
        snapshot: &poll.snapshot,
        reason,
        datasets: &datasets,
        is_renewal: keeps_tables,
        was_covered,
    };
    match context.redis.create_epoch(metadata, &new).await? {
        Creation::Created(epoch) => {
            warn!(%epoch, reason, incarnation = %poll.incarnation, floor = %poll.snapshot.stamp(),
                "a new epoch begins, all datasets are pending");
            context.metrics.epochs.get_or_create(&ByReason::new(reason)).inc();
            Ok(())
        }
        Creation::Lost => Ok(()),
        Creation::Retired => Err(EngineError::Retired),
    }
}

/// Takes a snapshot; where the primary was restarted, records its incarnation first.
pub async fn poll(context: &Context) -> Result<Poll, EngineError> {
    match context.postgres.poll().await {
        Err(error) if error.kind == ErrorKind::NoIncarnation => {
            info!("the primary restarted, recording its incarnation");
            context.postgres.record_incarnation().await?;
            Ok(context.postgres.poll().await?)
        }
        other => Ok(other?),
    }
}

async fn register_all(
    context: &Context,
    epoch: &Epoch,
    poll: &Poll,
    metadata: &Metadata,
) -> Result<(), EngineError> {
    let registered = |dataset: &Dataset| metadata.revisions.get(dataset.name());
    if context.catalog.iter().any(|dataset| dataset.is_news(registered(dataset))) {
        // What a session knows of settings, names and types may be older than the revision. Before the revision is known, so that
        // nobody loads under it through such a session.
        context.postgres.renew_connections();
    }
    for dataset in context.catalog.iter() {
        let revision = registered(dataset);
        if !context.registers {
            // Verbs and libraries may have any configuration file: they go by what workers have registered.
            dataset.note_registered(revision);
            continue;
        }
        let seen = revision.map_or("", Revision::definition);
        if seen == dataset.definition && !dataset.is_superseded() {
            dataset.set_revision(revision.cloned());
        }
        let is_known = dataset.is_registered.load(Ordering::Relaxed);
        if is_known && !seen.is_empty() {
            if seen != dataset.definition && !dataset.is_superseded() {
                warn!(dataset = dataset.name(), "{}", dataset.supersede());
            }
            continue;
        }
        let longest = dataset.lifetimes.longest();
        let definitions = (seen, dataset.definition.as_str());
        match context.redis.register(epoch, &poll.incarnation, dataset.name(), definitions, longest).await? {
            Answer::Done(Registration::Registered) => {
                info!(dataset = dataset.name(), definition = %dataset.definition, "definition registered, entries are pending");
                dataset.is_registered.store(true, Ordering::Relaxed);
            }
            Answer::Done(Registration::Same) => dataset.is_registered.store(true, Ordering::Relaxed),
            // The next look decides.
            Answer::Done(Registration::Lost) | Answer::Failed(_) => {}
        }
    }
    Ok(())
}

/// Whether another definition of the dataset is registered. A process that registers none looks again, at most once a second: the
/// workers may have been replaced since.
pub(crate) async fn is_superseded(context: &Context, dataset: &Dataset) -> bool {
    if dataset.is_superseded() && !context.registers && context.may_look_again() {
        // Where Redis does not answer, nothing is stored either way.
        drop(ensure(context, "").await);
    }
    dataset.is_superseded()
}

/// The dataset's revision, for a load whose statement is sent afterwards (R14a).
///
/// # Errors
/// [`EngineError`], where it has to be read.
pub(crate) async fn revision(context: &Context, dataset: &Dataset) -> Result<Revision, EngineError> {
    for _ in 0..ATTEMPTS {
        if dataset.is_superseded() {
            return Err(dataset.supersede());
        }
        if let Some(revision) = dataset.known_revision() {
            return Ok(revision);
        }
        // The first look may register the definition, and the next one reads it.
        ensure(context, "").await?;
    }
    Err(context.on_precondition_failed(Some(dataset), PreconditionFailed::Outdated))
}

/// The epoch as this process knows it, or as it is in Redis.
///
/// # Errors
/// [`EngineError`], where it has to be read.
pub async fn current(context: &Context) -> Result<Epoch, EngineError> {
    match context.epoch() {
        Some(epoch) => Ok(epoch),
        None => Ok(ensure(context, "").await?.epoch),
    }
}

/// Repeats work after reading the epoch again, if the epoch or the columns of a table have changed. The only wrapper that does.
///
/// # Errors
/// The work's last error.
pub async fn with_current_epoch<T, F>(
    context: &Context,
    mut work: impl FnMut() -> F,
) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, EngineError>>,
{
    const ATTEMPTS: usize = 5;
    let mut attempt = 0;
    loop {
        attempt += 1;
        match work().await {
            Err(EngineError::PreconditionFailed(failed)) if attempt < ATTEMPTS => {
                debug!(%failed, "the epoch changed, beginning again");
                ensure(context, "").await?;
            }
            Err(EngineError::Source(SourceError {
                kind: ErrorKind::NoIncarnation | ErrorKind::Changed,
                ..
            })) if attempt < ATTEMPTS => {
                ensure(context, "").await?;
            }
            other => return other,
        }
    }
}
