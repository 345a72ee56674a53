//! Epochs: notice that one has ended, and begin the next (R13, R16).

use tracing::{debug, info, warn};

use super::catalog::Dataset;
use super::context::Context;
use super::definitions;
use super::error::EngineError;
use super::life;
use crate::metrics::ByReason;
use crate::stores::postgres::{ErrorKind, OutboxState, Poll, SourceError};
use crate::stores::redis::{Creation, Epoch, Metadata, NewEpoch, PreconditionFailed};
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
/// [`EngineError`]; [`EngineError::OtherLife`] where another server is served.
pub async fn ensure(context: &Context, job: &str) -> Result<EpochState, EngineError> {
    for _ in 0..ATTEMPTS {
        let metadata = context.redis.metadata(job).await.map_err(|error| context.count_refusal(error))?;
        if metadata.is_of_later_version {
            return Err(EngineError::PreconditionFailed(PreconditionFailed::Version));
        }
        let poll = poll(context).await?;
        let is_same = metadata.incarnation.as_deref() == Some(poll.incarnation.as_str());
        if let (true, true, Some(epoch)) = (metadata.is_whole, is_same, metadata.epoch) {
            if note_definitions(context, &epoch, &poll, &metadata).await? {
                begin(context, &metadata, &poll, "redis restarted or failed over", true).await?;
                continue;
            }
            context.set_epoch(Some(epoch));
            return Ok(EpochState { epoch, poll, metadata });
        }
        let reason = match metadata.is_whole {
            // Neither Redis nor this process knows of one.
            false if metadata.epoch.is_none() && context.epoch().is_none() => "nothing in Redis yet",
            false => "tables lost",
            true => "another incarnation",
        };
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
    let is_other = metadata.incarnation.as_ref().is_some_and(|recorded| *recorded != poll.incarnation);
    let life = if is_other { Some(context.postgres.life().await?) } else { None };
    if life.as_ref().is_some_and(|life| life.incarnation != poll.incarnation) {
        // Another server answers than a moment ago.
        return Ok(());
    }
    let before = metadata.incarnation.as_deref().unwrap_or_default();
    let new = NewEpoch {
        place: &life::write(life.as_ref().and_then(|life| life.place.as_ref())),
        grace: life.as_ref().and_then(|life| life::grace(metadata.life.as_deref(), before, life)),
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
        Creation::OtherLife => Err(EngineError::OtherLife),
        Creation::Newer => Err(EngineError::PreconditionFailed(PreconditionFailed::Version)),
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

/// Takes note of whose definitions count; whether another run of Redis has written the metadata.
async fn note_definitions(
    context: &Context,
    epoch: &Epoch,
    poll: &Poll,
    metadata: &Metadata,
) -> Result<bool, EngineError> {
    match &context.registrar {
        Some(registrar) => registrar.register(context, (epoch, poll), metadata).await,
        None => {
            definitions::note_others(context, metadata);
            Ok(false)
        }
    }
}

/// Whether another definition of the dataset is registered. A process that registers none looks again, at most once a second: the
/// workers may have been replaced since.
pub(crate) async fn is_superseded(context: &Context, dataset: &Dataset) -> bool {
    if dataset.is_superseded() && context.registrar.is_none() && context.may_look_again() {
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
