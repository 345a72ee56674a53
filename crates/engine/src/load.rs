//! The one way in which entries of known keys come from Postgres into Redis: load the keys, store what is there, delete what
//! is gone, and see each key through.
//!
//! Readers, the change feed, events, refresh-ahead, revalidation, the rest of a backfill, write-through and the repair of
//! an audit all use it; they differ in their [`LoadOptions`] only.

pub(crate) mod store;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{instrument, warn};

use self::store::BatchOfLoad;
pub use self::store::{Cause, Job, Keys, LoadOptions, LoadReport, LoadedValues, Storing};
pub(super) use self::store::{delete_failed, note_stored};

use super::catalog::Dataset;
use super::context::Context;
use super::encode::{Encoder, Failure};
use super::epoch;
use super::error::EngineError;
use super::history::What;
use super::log_limit;
use crate::metrics::{ByDataset, ByDatasetCause};
use crate::stores::postgres::{DatasetSource, ErrorKind, KeyValues};
use crate::stores::redis::{Failed, PreconditionFailed, Refusal};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::revision::Revision;

/// Why entries are given up.
enum Why {
    /// Their rows make the statement fail, each alone: what stands in Redis is not what the query says any more, and nothing
    /// can be stored until another change.
    RowFails(String),
    /// Something newer touched their stamp slots each time; a later load may succeed.
    Refused,
    /// Redis is full.
    Full,
}

/// Loads that a key may be refused before it is invalidated instead (R10).
const LOADS_MAX: usize = 3;
/// On a cluster, whoever leads the feed of a shard sees within this time that a cluster slot moves, and gives it up: then the others can
/// be loaded. After so many pauses of this length it is somebody else's to try again.
pub(super) const MOVE_SEEN_WITHIN: Duration = Duration::from_millis(50);
pub(super) const MOVES_MAX: usize = 20;
/// Bytes of one script's entries, so that large values do not block Redis or fill the memory.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Loads these keys and stores them as the options say; those without a row are deleted, or stored as an explicit null.
///
/// # Errors
/// [`EngineError`] if nothing more could be done; what was done until then stays done.
#[instrument(level = "debug", skip_all, fields(dataset = dataset.name(), keys = keys.len(), cause = options.cause.label()))]
pub async fn load(
    context: &Context,
    dataset: &Dataset,
    keys: &[(String, KeyValues)],
    options: LoadOptions,
    job: &mut Job,
) -> Result<LoadReport, EngineError> {
    let mut refusals = 0;
    loop {
        let pinned = context.pinned().await?;
        let is_pinned_here = matches!(&pinned, Cow::Owned(_));
        match Box::pin(load_pinned(&pinned, dataset, keys, options, job)).await {
            Err(EngineError::PreconditionFailed(PreconditionFailed::Guard))
                if is_pinned_here && refusals < MOVES_MAX =>
            {
                refusals += 1;
                tokio::time::sleep(MOVE_SEEN_WITHIN).await;
            }
            loaded => return loaded,
        }
    }
}

async fn load_pinned(
    context: &Context,
    dataset: &Dataset,
    keys: &[(String, KeyValues)],
    mut options: LoadOptions,
    job: &mut Job,
) -> Result<LoadReport, EngineError> {
    if epoch::is_superseded(context, dataset).await {
        match options.storing {
            Storing::Always => return Err(dataset.supersede()),
            // Reading does no harm.
            Storing::IfAllowed | Storing::Never => options.storing = Storing::Never,
        }
    }
    let revision = match options.storing {
        Storing::Always => Some(epoch::revision(context, dataset).await?),
        Storing::IfAllowed => epoch::revision(context, dataset).await.ok(),
        Storing::Never => None,
    };
    if revision.is_none() {
        options.storing = Storing::Never;
    }
    // Described under that revision or a later one.
    let source = match options.within {
        Some(limit) => dataset.source_within(&context.postgres, limit).await?,
        None => dataset.source(&context.postgres).await?,
    };
    // On a shard of a cluster only its own can be stored; who wants the values gets them all.
    let is_wanted = |key: &str| options.storing != Storing::Always || context.redis.takes(key);
    let keys: Vec<&(String, KeyValues)> = keys.iter().filter(|(key, _)| is_wanted(key)).collect();
    let mut loading = Loading { context, dataset, revision, source, options, job };
    let mut report = LoadReport::default();
    for chunk in keys.chunks(dataset.settings.batch) {
        report.add(loading.see_through(chunk, 0).await?);
    }
    Ok(report)
}

/// Whether entries of a dataset can be loaded now, which is waited for up to a limit of at most a second: a statement for no key
/// at all has to wait for the same locks.
///
/// # Errors
/// [`EngineError`]: why not.
pub(crate) async fn probe(context: &Context, dataset: &Dataset, limit: Duration) -> Result<(), EngineError> {
    let source = dataset.source_within(&context.postgres, limit).await?;
    let no_keys: [KeyValues; 0] = [];
    let probed = context.postgres.load_within(&source, &no_keys, limit).await;
    if let Err(error) = &probed
        && error.kind == ErrorKind::Changed
    {
        dataset.forget_source();
    }
    Ok(probed.map(drop)?)
}

struct Loading<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    /// Read before any statement is sent; none: nothing is stored.
    revision: Option<Revision>,
    source: Arc<DatasetSource>,
    options: LoadOptions,
    job: &'a mut Job,
}

impl Loading<'_> {
    /// Loads one statement's keys until each of them is stored, deleted or given up. So many loads have refused them before.
    async fn see_through(
        &mut self,
        keys: &[&(String, KeyValues)],
        refusals: usize,
    ) -> Result<LoadReport, EngineError> {
        let mut report = LoadReport::default();
        if refusals == LOADS_MAX {
            self.give_up(keys, Why::Refused, &mut report).await?;
            return Ok(report);
        }
        match self.load_once(keys).await {
            Ok((done, refused)) => {
                report.add(done);
                if !refused.is_empty() {
                    let refused: Vec<_> = refused.iter().collect();
                    report.add(Box::pin(self.see_through(&refused, refusals + 1)).await?);
                }
            }
            // One row makes the whole statement fail: find it by halves.
            Err(EngineError::Source(error)) if error.kind == ErrorKind::Data && 1 < keys.len() => {
                let (left, right) = keys.split_at(keys.len() / 2);
                report.add(Box::pin(self.see_through(right, refusals)).await?);
                report.add(Box::pin(self.see_through(left, refusals)).await?);
            }
            Err(EngineError::Source(error)) if error.kind == ErrorKind::Data => {
                self.give_up(keys, Why::RowFails(error.told()), &mut report).await?;
            }
            Err(EngineError::Cache(error)) if error.refusal == Refusal::Full => {
                self.context.count_refusal(error);
                self.give_up(keys, Why::Full, &mut report).await?;
            }
            Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed => {
                self.dataset.forget_source();
                return Err(EngineError::Source(error));
            }
            Err(error) => return Err(error),
        }
        Ok(report)
    }

    /// One statement and its stores; answers what was refused and has to be loaded again.
    async fn load_once(&mut self, keys: &[&(String, KeyValues)]) -> Result<(LoadReport, Keys), EngineError> {
        let values: Vec<&KeyValues> = keys.iter().map(|(_, values)| values).collect();
        let began = Instant::now();
        let postgres = &self.context.postgres;
        let loaded = match self.options.within {
            Some(limit) => postgres.load_within(&self.source, &values, limit).await?,
            None => postgres.load(&self.source, &values).await?,
        };
        let labels = ByDataset::new(self.dataset.name());
        self.context.metrics.load_seconds.get_or_create(&labels).observe(began.elapsed().as_secs_f64());

        let mut encoder = Encoder::new(self.dataset, &self.source).at(loaded.clock);
        let mut entries = EntryBatch::default();
        let names = keys.iter().map(|(key, _)| key.as_str());
        let dataset = (self.dataset, self.revision.as_ref());
        let mut batch =
            BatchOfLoad::new(self.context, dataset, self.options, &loaded.poll, &mut *self.job, names);
        for row in &loaded.rows {
            encoder.add(row, &mut entries);
            if BATCH_BYTES <= entries.bytes() {
                batch.store(&mut entries).await?;
            }
        }
        encoder.finish(&mut entries);
        let failures = std::mem::take(&mut encoder.failures);
        // What was rendered is there; what was asked for and not rendered is gone (R1).
        batch.add_absent(&failures, &mut entries);
        batch.store(&mut entries).await?;
        batch.finish(failures).await
    }

    /// These keys cannot be stored. Where the old value may not stay, it is deleted under a fresh stamp.
    async fn give_up(
        &mut self,
        keys: &[&(String, KeyValues)],
        why: Why,
        report: &mut LoadReport,
    ) -> Result<(), EngineError> {
        let (context, dataset) = (self.context, self.dataset);
        let (must_go, may_come_back, reason) = match &why {
            Why::RowFails(reason) => (true, false, reason.as_str()),
            Why::Refused => (self.options.cause.must_go(), true, "refused three times"),
            Why::Full => (self.options.cause.must_go(), true, "Redis is full"),
        };
        let cause = self.options.cause.label();
        let what = "entries could not be stored";
        if let Some(entries) = log_limit::due(what, dataset.name(), keys.len() as u64) {
            warn!(dataset = dataset.name(), entries, reason, cause, "{what}");
        }
        let what = match (&why, must_go) {
            (Why::RowFails(_), _) => What::Failed,
            (Why::Refused | Why::Full, true) => What::Deleted,
            (Why::Refused | Why::Full, false) => What::Refused,
        };
        if what == What::Failed {
            let labels = ByDatasetCause::new(dataset.name(), cause);
            context.metrics.failed.get_or_create(&labels).inc_by(keys.len() as u64);
        }
        let touches = keys.iter().map(|(key, _)| (key.as_str(), what, Some(reason)));
        context.note_touches((dataset.name(), cause), touches);
        let failed = |(key, _): &&(String, _)| Failure { key: Some(key.clone()), reason: reason.to_owned() };
        report.add(LoadReport::of_failures(keys.iter().map(failed).collect()));
        let must_go = must_go && self.options.storing == Storing::Always;
        // What was refused in a backfill may be missing. (Where Redis is full, another one at once would not help.)
        let is_refused_row = self.options.cause == Cause::Backfill && matches!(why, Why::Refused);
        if !must_go && (!is_refused_row || !dataset.is_filled_whole()) {
            report.left += keys.len() as u64;
            return Ok(());
        }
        let names: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
        let poll = epoch::poll(context).await?;
        let current = epoch::current(context).await?;
        let precondition = dataset.precondition(&current, &poll.incarnation);
        let stamp = poll.snapshot.stamp();
        if may_come_back && dataset.is_filled_whole() {
            // Before it is done, or it would be forgotten with this process.
            let missing = Failed { is_missing: true, ..Failed::default() };
            let at = (&current, poll.incarnation.as_str());
            let why = (dataset.name(), reason);
            context.checked(None, context.redis.mark_slots(at, why, &missing, &self.job.id).await?)?;
            self.job.count += 1;
        }
        if !must_go {
            report.left += keys.len() as u64;
            return Ok(());
        }
        let answer = context.redis.invalidate(&precondition, stamp, &names, &self.job.id, "").await?;
        context.checked(Some(dataset), answer)?;
        self.job.count += 1;
        report.invalidated += keys.len() as u64;
        let labels = ByDatasetCause::new(dataset.name(), cause);
        context.metrics.deleted.get_or_create(&labels).inc_by(keys.len() as u64);
        Ok(())
    }
}
