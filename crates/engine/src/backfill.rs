//! Backfills: every entry of a dataset, from one statement (R7), or the most wanted ones by key.

mod bookmark;
mod lost;
mod pages;
mod rest;
mod scripts;
mod shared_read;
mod stored;

use futures_util::stream::{FuturesOrdered, StreamExt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, instrument};

use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::epoch;
use super::error::EngineError;
use super::load::{BATCH_BYTES, Cause, Job, Keys, LoadOptions, LoadReport, delete_failed, load, note_stored};
use super::rate_limit::RateLimit;
use crate::history::{History, What};
use crate::metrics::ByReason;
use crate::shown::cut_name;
use crate::stores::postgres::{BackfillRows, DatasetSource, ErrorKind, KeyValues, Poll};
use crate::stores::redis::{AddedMembers, Backfilled, Claim, Settled};
pub use bookmark::interrupted;
use bookmark::{Bookmark, millis};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::revision::Revision;
pub use lost::LostBackfills;
use pages::Pages;
use scripts::{Scripts, Sent};
pub use shared_read::SharedReads;
pub(crate) use stored::{KEYS_MAX, StoredKeys};

/// How far a backfill is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries stored so far, those of an interrupted run included.
    pub entries: u64,
    /// Whether it goes on where another was interrupted.
    pub is_resumed: bool,
}

/// What a backfill needs to know from its caller.
#[derive(Debug, Clone)]
pub struct BackfillOptions {
    /// Stops it between two batches.
    pub cancel: CancellationToken,
    /// Most entries a second.
    pub rate: Option<u64>,
    /// Told how far it is.
    pub progress: Option<tokio::sync::watch::Sender<Progress>>,
    /// Whether one that was interrupted is continued.
    pub resume: bool,
}

/// Entries of one script: large enough that the script's own cost disappears, small enough that it does not hold up
/// other clients for more than a few milliseconds.
const BATCH_ENTRIES: usize = 256;
/// Scripts that are under way at once: Redis works on one while the next is on its way.
const SCRIPTS_AHEAD: usize = 3;

/// Fills Redis with the entries of a dataset.
///
/// # Errors
/// [`EngineError`]; what was stored until then stays stored, and the backfill can be resumed.
pub async fn backfill(
    context: &Context,
    dataset: &Dataset,
    options: &BackfillOptions,
) -> Result<LoadReport, EngineError> {
    let began = Instant::now();
    let report = backfill_for(context, dataset, options, None).await?;
    if let Some(history) = &context.history {
        note_ended(history, dataset.name(), began.elapsed(), &report);
    }
    Ok(report)
}

fn note_ended(history: &History, name: &str, took: Duration, report: &LoadReport) {
    let stored = report.stored;
    let entries = if stored == 1 { "entry" } else { "entries" };
    let told = format!("{stored} {entries} in {:.1} s", took.as_secs_f64());
    let cause = Cause::Backfill.label();
    history.note((name, cause), [("", What::Filled, Some(told.as_str()))].into_iter());
    history.note_backfill(name, took, stored, report.failed);
    // One that went on where another was interrupted has not met the rows before that.
    if report.without_key.is_some() || report.stored_earlier == 0 {
        history.note_without_key(name, report.without_key.clone());
    }
}

/// The job that a backfill is part of, and makes the claim.
pub(crate) struct Whole<'a> {
    /// The backfill's scripts are counted with the others.
    pub(crate) job: &'a mut Job,
    /// Notes what the backfill has stored.
    pub(crate) stored: &'a mut StoredKeys,
}

/// The same as a part of another job. (One with a limit is always a job of its own.)
#[instrument(level = "debug", name = "backfill", skip_all, fields(dataset = dataset.name()))]
pub(crate) async fn backfill_for(
    context: &Context,
    dataset: &Dataset,
    options: &BackfillOptions,
    whole: Option<Whole<'_>>,
) -> Result<LoadReport, EngineError> {
    if epoch::is_superseded(context, dataset).await {
        return Err(dataset.supersede());
    }
    // Not the one that is known: what it changed for is why the backfill is wanted.
    epoch::ensure(context, "").await?;
    let revision = epoch::revision(context, dataset).await?;
    let source = dataset.source(&context.postgres).await?;
    let filled = match context.postgres.first_keys(&source).await {
        Ok(Some(keys)) => backfill_by_keys(context, dataset, keys, options).await,
        Ok(None) => BackfillStream::run(context, (dataset, revision), &source, options, whole).await,
        Err(error) => Err(error.into()),
    };
    if let Err(EngineError::Source(error)) = &filled
        && matches!(error.kind, ErrorKind::Changed | ErrorKind::Statement)
    {
        // The tables may have changed since the query was described.
        dataset.forget_source();
    }
    filled
}

async fn backfill_by_keys(
    context: &Context,
    dataset: &Dataset,
    keys: Vec<KeyValues>,
    options: &BackfillOptions,
) -> Result<LoadReport, EngineError> {
    let mut report = LoadReport::default();
    let mut rate = RateLimit::new(options.rate);
    for chunk in keys.chunks(dataset.settings.batch) {
        if options.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let named = chunk.iter().filter_map(|values| Some((dataset.key_of(values)?, values.clone())));
        let because = LoadOptions::because(Cause::Backfill);
        let done = load(context, dataset, &named.collect::<Keys>(), because, &mut Job::uncounted()).await?;
        rate.spend(done.stored).await;
        report.add(done);
        tell(options, report.stored, false);
    }
    Ok(report)
}

/// A backfill fed by one statement.
struct BackfillStream<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    revision: Revision,
    poll: Poll,
    job: Job,
    scripts: Arc<Scripts>,
    report: LoadReport,
    refused: Keys,
    /// Notes what is stored.
    stored: Option<StoredKeys>,
    /// Where the last confirmed batch ended.
    confirmed: String,
    /// The same, with nothing refused before it that is still to be loaded; what an interrupted backfill goes on from.
    place: String,
    began: Backfilled,
}

/// Batches between the statement and Redis.
struct Flow<'a> {
    options: &'a BackfillOptions,
    rate: RateLimit,
    /// In the order of their keys.
    under_way: FuturesOrdered<JoinHandle<Sent>>,
    pages: Pages,
    spare: VecDeque<EntryBatch>,
}

impl<'a> BackfillStream<'a> {
    async fn run(
        context: &'a Context,
        (dataset, revision): (&'a Dataset, Revision),
        source: &Arc<DatasetSource>,
        options: &BackfillOptions,
        mut whole: Option<Whole<'a>>,
    ) -> Result<LoadReport, EngineError> {
        let mut job = whole.as_ref().map_or_else(|| Job::new("backfill"), |whole| whole.job.clone());
        let state = epoch::ensure(context, &job.id).await?;
        if whole.is_some() && state.metadata.counted != job.count + 1 {
            return Err(rolled_back(context));
        }
        job.count = state.metadata.counted;
        let interrupted = state.metadata.backfills.get(dataset.name()).filter(|_| options.resume);
        let interrupted = interrupted.and_then(|text| Bookmark::parse(text, dataset));
        // Of one that was interrupted long ago the first entries may have expired.
        let recent = state.metadata.now_ms.saturating_sub(millis(dataset.lifetimes.ttl / 2));
        let interrupted = interrupted.filter(|bookmark| recent < bookmark.began.began_ms);
        let behind = interrupted.as_ref().map(|bookmark| &bookmark.values);
        if let Some(bookmark) = &interrupted {
            info!(dataset = dataset.name(), behind = %cut_name(&bookmark.key), entries = bookmark.entries, "resuming the backfill");
        }
        let place = interrupted.as_ref().map(Bookmark::render).unwrap_or_default();
        let now = Backfilled { began_ms: state.metadata.now_ms, cause: state.metadata.causes };
        // After the causes that it may settle, and before the snapshot: of what is adopted later, others have applied changes since.
        let pinned = context.pinned().await?.into_owned();
        let mut rows = match (&context.shared_reads, behind) {
            (Some(shared), None) => shared.read(&context.postgres, source).await?,
            _ => context.postgres.backfill(source, behind).await?,
        };
        let scripts = Arc::new(Scripts {
            context: pinned,
            dataset: dataset.name().to_owned(),
            revision: revision.clone(),
            epoch: state.epoch,
            poll: rows.poll.clone(),
            job: job.id.clone(),
            longest_life: dataset.lifetimes.longest(),
        });
        let mut backfill = Self {
            context,
            dataset,
            revision,
            poll: rows.poll.clone(),
            job,
            scripts,
            report: LoadReport {
                stored_earlier: interrupted.as_ref().map_or(0, |bookmark| bookmark.entries),
                ..LoadReport::default()
            },
            refused: Vec::new(),
            stored: whole.as_mut().map(|whole| std::mem::take(whole.stored)),
            confirmed: place.clone(),
            place,
            began: interrupted.as_ref().map_or(now, |bookmark| bookmark.began),
        };
        backfill.stream(source, &mut rows, options).await?;
        drop(rows);
        backfill.load_refused().await?;
        match whole {
            None => backfill.finish().await,
            Some(whole) => {
                *whole.job = backfill.job;
                *whole.stored = backfill.stored.unwrap_or_default();
                Ok(backfill.report)
            }
        }
    }

    async fn stream(
        &mut self,
        source: &DatasetSource,
        rows: &mut BackfillRows,
        options: &BackfillOptions,
    ) -> Result<(), EngineError> {
        let scripts = Arc::clone(&self.scripts);
        let encoder = Encoder::new(self.dataset, source).at(rows.clock);
        let mut encoder = encoder.taken_by(&scripts.context.redis);
        let mut flow = Flow {
            options,
            rate: RateLimit::new(options.rate),
            under_way: FuturesOrdered::new(),
            pages: Pages::default(),
            spare: VecDeque::new(),
        };
        let mut batch = EntryBatch::default();
        let mut is_over = false;
        let mut unreadable = None;
        while !is_over {
            let group = tokio::select! {
                () = options.cancel.cancelled() => return Err(EngineError::Cancelled),
                group = rows.next() => group,
            };
            let group = match group {
                Err(error) if error.kind == ErrorKind::Data => {
                    unreadable = Some(error);
                    break;
                }
                group => group?,
            };
            is_over = group.is_none();
            for row in group.iter().flat_map(|group| group.iter()) {
                encoder.add(row, &mut batch);
                if BATCH_ENTRIES <= batch.len() || BATCH_BYTES <= batch.bytes() {
                    let next = flow.spare.pop_front().unwrap_or_default();
                    self.take(std::mem::replace(&mut batch, next), &mut flow).await?;
                }
            }
            self.delete_failed(&mut encoder).await?;
        }
        // Of the last entry, rows may be missing where the reading broke off.
        if unreadable.is_none() {
            encoder.finish(&mut batch);
        }
        self.delete_failed(&mut encoder).await?;
        if !batch.is_empty() {
            self.take(batch, &mut flow).await?;
        }
        self.turn_page(&mut flow).await?;
        self.store_page(&mut flow).await?;
        while let Some(sent) = flow.under_way.next().await {
            self.confirm(sent.unwrap_or_else(Sent::aborted), &mut flow).await?;
        }
        match unreadable {
            Some(error) => self.load_rest(source, &error, options, &mut flow.rate).await,
            None => Ok(()),
        }
    }

    /// Takes a batch that is complete. With tags it waits until the members of its page are added.
    async fn take(&mut self, batch: EntryBatch, flow: &mut Flow<'_>) -> Result<(), EngineError> {
        if self.dataset.settings.tags.is_empty() {
            return self.send(batch, None, flow).await;
        }
        if flow.pages.push(batch) {
            self.turn_page(flow).await?;
        } else if flow.pages.has_ready()
            && let Some((batch, members)) = flow.pages.next(&mut self.job.count).await?
        {
            self.send(batch, members, flow).await?;
        }
        Ok(())
    }

    /// Stores what is left of the page before, then begins with the next.
    async fn turn_page(&mut self, flow: &mut Flow<'_>) -> Result<(), EngineError> {
        self.store_page(flow).await?;
        flow.pages.turn(&self.scripts);
        Ok(())
    }

    async fn store_page(&mut self, flow: &mut Flow<'_>) -> Result<(), EngineError> {
        while let Some((batch, members)) = flow.pages.next(&mut self.job.count).await? {
            self.send(batch, members, flow).await?;
        }
        Ok(())
    }

    /// Sends a batch, once there is room for it.
    async fn send(
        &mut self,
        batch: EntryBatch,
        members: Option<AddedMembers>,
        flow: &mut Flow<'_>,
    ) -> Result<(), EngineError> {
        if flow.options.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        if flow.under_way.len() == SCRIPTS_AHEAD
            && let Some(sent) = flow.under_way.next().await
        {
            self.confirm(sent.unwrap_or_else(Sent::aborted), flow).await?;
        }
        // As a part of a revalidation it is not gone on with, and an interrupted backfill keeps its place.
        let progress = if self.stored.is_some() { String::new() } else { self.place.clone() };
        let scripts = self.scripts.clone();
        flow.under_way.push_back(tokio::spawn(async move { scripts.store(batch, members, &progress).await }));
        Ok(())
    }

    /// Looks at a batch's reply; gives the buffers back.
    async fn confirm(&mut self, sent: Sent, flow: &mut Flow<'_>) -> Result<(), EngineError> {
        let mut batch = sent.batch;
        let positions = self.context.checked(Some(self.dataset), sent.answer?)?;
        self.job.count += 1;
        if let Some(stored) = &mut self.stored {
            let mut refused = positions.iter().copied().peekable();
            let kept =
                batch.iter().enumerate().filter(|(position, _)| refused.next_if_eq(position).is_none());
            kept.for_each(|(_, entry)| stored.add(entry.key));
        }
        let stored_before = self.report.stored;
        let report = &mut self.report;
        self.refused.extend(note_stored(
            self.context,
            self.dataset,
            Cause::Backfill,
            &batch,
            &positions,
            report,
        ));
        if let Some(last) = batch.get(batch.len().saturating_sub(1))
            && let Some(values) = self.dataset.read_key(last.key)
        {
            let entries = self.report.stored_earlier + self.report.stored;
            let began = self.began;
            self.confirmed = Bookmark { key: last.key.to_owned(), values, entries, began }.render();
        }
        // Rows whose slots moved on are loaded again by key; not too many of them at the end.
        if self.dataset.settings.batch <= self.refused.len() {
            self.load_refused().await?;
        }
        if self.refused.is_empty() {
            self.place.clone_from(&self.confirmed);
        }
        tell(flow.options, self.report.stored_earlier + self.report.stored, 0 < self.report.stored_earlier);
        flow.rate.spend(self.report.stored - stored_before).await;
        batch.clear();
        flow.spare.push_back(batch);
        Ok(())
    }

    async fn load_refused(&mut self) -> Result<(), EngineError> {
        let refused = std::mem::take(&mut self.refused);
        let because = LoadOptions::because(Cause::Backfill);
        self.report.add(load(self.context, self.dataset, &refused, because, &mut self.job).await?);
        Ok(())
    }

    async fn delete_failed(&mut self, encoder: &mut Encoder<'_>) -> Result<(), EngineError> {
        let failures = std::mem::take(&mut encoder.failures);
        if failures.is_empty() {
            return Ok(());
        }
        let (poll, job, report) = (&self.poll, &mut self.job, &mut self.report);
        delete_failed(self.context, self.dataset, Cause::Backfill, poll, job, failures, report).await
    }

    /// The claim that the backfill is whole: every one of its scripts is still in this Redis.
    async fn finish(self) -> Result<LoadReport, EngineError> {
        let current = epoch::current(self.context).await?;
        let precondition = self.dataset.store_precondition(&current, &self.poll.incarnation, &self.revision);
        let settled = Settled::Backfill(self.began);
        let answer =
            self.context.redis.finish_job(&precondition, &self.job.id, self.job.count, settled).await?;
        match self.context.checked(Some(self.dataset), answer)? {
            Claim::Accepted => Ok(self.report),
            Claim::RolledBack => Err(rolled_back(self.context)),
        }
    }
}

fn rolled_back(context: &Context) -> EngineError {
    context.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
    EngineError::RedisRolledBack
}

fn tell(options: &BackfillOptions, entries: u64, is_resumed: bool) {
    if let Some(progress) = &options.progress {
        progress.send_replace(Progress { entries, is_resumed });
    }
}
