//! Backfills: every entry of a dataset, from one statement (R7), or the most wanted ones by key.

mod rest;

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::epoch;
use super::error::EngineError;
use super::load::{BATCH_BYTES, Cause, Job, Keys, LoadOptions, LoadReport, delete_failed, load, note_stored};
use crate::metrics::ByReason;
use crate::stores::postgres::{BackfillRows, DatasetSource, ErrorKind, KeyValues, Poll};
use crate::stores::redis::{Answer, Backfilled, Claim, Epoch, Metadata, Settled, StoreMode};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::revision::Revision;

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
    if dataset.is_superseded() {
        return Err(dataset.supersede());
    }
    // Not the one that is known: what it changed for is why the backfill is wanted.
    epoch::ensure(context, "").await?;
    let revision = epoch::revision(context, dataset).await?;
    let source = dataset.source(&context.postgres).await?;
    let filled = match context.postgres.first_keys(&source).await {
        Ok(Some(keys)) => backfill_by_keys(context, dataset, keys, options).await,
        Ok(None) => BackfillStream::run(context, (dataset, revision), &source, options).await,
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
        let done = load(context, dataset, named.collect(), because, &mut Job::uncounted()).await?;
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
    epoch: Epoch,
    poll: Poll,
    job: Job,
    report: LoadReport,
    refused: Keys,
    /// Where the last confirmed batch ended; what an interrupted backfill goes on from.
    confirmed: String,
    entries_before: u64,
    began: Backfilled,
}

/// A batch on its way: its entries, and the key it ends with.
struct Sent {
    batch: EntryBatch,
    answer: Result<Answer<Vec<usize>>, EngineError>,
}

impl<'a> BackfillStream<'a> {
    async fn run(
        context: &'a Context,
        (dataset, revision): (&'a Dataset, Revision),
        source: &DatasetSource,
        options: &BackfillOptions,
    ) -> Result<LoadReport, EngineError> {
        let mut job = Job::new("backfill");
        let state = epoch::ensure(context, &job.id).await?;
        job.count = state.metadata.counted;
        let interrupted = state.metadata.backfills.get(dataset.name()).filter(|_| options.resume);
        let interrupted = interrupted.and_then(|text| Bookmark::parse(text, dataset));
        // Of one that was interrupted long ago the first entries may have expired.
        let recent = state.metadata.now_ms.saturating_sub(millis(dataset.lifetimes.ttl / 2));
        let interrupted = interrupted.filter(|bookmark| recent < bookmark.began.began_ms);
        let behind = interrupted.as_ref().map(|bookmark| &bookmark.values);
        if let Some(bookmark) = &interrupted {
            info!(dataset = dataset.name(), behind = %bookmark.key, entries = bookmark.entries, "resuming the backfill");
        }
        let now = Backfilled { began_ms: state.metadata.now_ms, cause: state.metadata.causes };
        let mut rows = context.postgres.backfill(source, behind).await?;
        let mut backfill = Self {
            context,
            dataset,
            revision,
            epoch: state.epoch,
            poll: rows.poll.clone(),
            job,
            report: LoadReport::default(),
            refused: Vec::new(),
            confirmed: interrupted.as_ref().map(Bookmark::render).unwrap_or_default(),
            began: interrupted.as_ref().map_or(now, |bookmark| bookmark.began),
            entries_before: interrupted.map_or(0, |bookmark| bookmark.entries),
        };
        backfill.stream(source, &mut rows, options).await?;
        drop(rows);
        backfill.finish().await
    }

    async fn stream(
        &mut self,
        source: &DatasetSource,
        rows: &mut BackfillRows,
        options: &BackfillOptions,
    ) -> Result<(), EngineError> {
        let mut encoder = Encoder::new(self.dataset, source);
        let mut under_way = FuturesOrdered::new();
        let mut spare: VecDeque<EntryBatch> = VecDeque::new();
        let mut batch = EntryBatch::default();
        let mut rate = RateLimit::new(options.rate);
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
            for row in group.iter().flatten() {
                encoder.add(row, &mut batch);
                if BATCH_ENTRIES <= batch.len() || BATCH_BYTES <= batch.bytes() {
                    if under_way.len() == SCRIPTS_AHEAD
                        && let Some(sent) = under_way.next().await
                    {
                        spare.push_back(self.confirm(sent, options, &mut rate).await?);
                    }
                    let full = std::mem::replace(&mut batch, spare.pop_front().unwrap_or_default());
                    under_way.push_back(self.send(full));
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
            under_way.push_back(self.send(batch));
        }
        while let Some(sent) = under_way.next().await {
            self.confirm(sent, options, &mut rate).await?;
        }
        match unreadable {
            Some(error) => self.load_rest(source, &error, options, &mut rate).await,
            None => Ok(()),
        }
    }

    /// The script is sent when the future is first polled; the queue keeps the order.
    fn send(&self, batch: EntryBatch) -> impl Future<Output = Sent> + Send + 'static {
        let (context, epoch, poll) = (self.context.clone(), self.epoch, self.poll.clone());
        let (name, revision) = (self.dataset.name().to_owned(), self.revision.clone());
        let (job, progress) = (self.job.id.clone(), self.confirmed.clone());
        let longest = self.dataset.lifetimes.longest();
        let sending = tokio::spawn(async move {
            let precondition = crate::stores::redis::Precondition {
                epoch: &epoch,
                incarnation: &poll.incarnation,
                dataset: &name,
                revision: revision.as_str(),
            };
            let mode = StoreMode::Floor { job: &job, progress: &progress };
            let answer =
                context.redis.store(&precondition, poll.snapshot.stamp(), &batch, longest, mode).await;
            Sent { batch, answer: answer.map_err(|error| EngineError::Cache(context.count_refusal(error))) }
        });
        async move {
            match sending.await {
                Ok(sent) => sent,
                Err(_aborted) => Sent { batch: EntryBatch::default(), answer: Err(EngineError::Cancelled) },
            }
        }
    }

    /// Looks at a batch's reply; gives the buffers back.
    async fn confirm(
        &mut self,
        sent: Sent,
        options: &BackfillOptions,
        rate: &mut RateLimit,
    ) -> Result<EntryBatch, EngineError> {
        let mut batch = sent.batch;
        let positions = self.context.checked(Some(self.dataset), sent.answer?)?;
        self.job.count += 1;
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
            let entries = self.entries_before + self.report.stored;
            let began = self.began;
            self.confirmed = Bookmark { key: last.key.to_owned(), values, entries, began }.render();
        }
        // Rows whose slots moved on are loaded again by key; not too many of them at the end.
        if self.dataset.settings.batch <= self.refused.len() {
            self.load_refused().await?;
        }
        tell(options, self.entries_before + self.report.stored, 0 < self.entries_before);
        rate.spend(self.report.stored - stored_before).await;
        batch.clear();
        Ok(batch)
    }

    async fn load_refused(&mut self) -> Result<(), EngineError> {
        let refused = std::mem::take(&mut self.refused);
        let because = LoadOptions::because(Cause::Backfill);
        self.report.add(load(self.context, self.dataset, refused, because, &mut self.job).await?);
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
    async fn finish(mut self) -> Result<LoadReport, EngineError> {
        self.load_refused().await?;
        let current = epoch::current(self.context).await?;
        let precondition = self.dataset.store_precondition(&current, &self.poll.incarnation, &self.revision);
        let settled = Settled::Backfill(self.began);
        let answer =
            self.context.redis.finish_job(&precondition, &self.job.id, self.job.count, settled).await?;
        match self.context.checked(Some(self.dataset), answer)? {
            Claim::Accepted => Ok(self.report),
            Claim::RolledBack => {
                self.context.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                Err(EngineError::RedisRolledBack)
            }
        }
    }
}

/// When the backfill of this dataset began that was interrupted, if one was.
#[must_use]
pub fn interrupted(metadata: &Metadata, dataset: &Dataset) -> Option<Backfilled> {
    Some(Bookmark::parse(metadata.backfills.get(dataset.name())?, dataset)?.began)
}

/// Where an interrupted backfill is.
struct Bookmark {
    key: String,
    values: KeyValues,
    entries: u64,
    /// When the one began that was interrupted first.
    began: Backfilled,
}

impl Bookmark {
    fn render(&self) -> String {
        format!("{} {} {} {}", self.entries, self.began.began_ms, self.began.cause, self.key)
    }

    fn parse(text: &str, dataset: &Dataset) -> Option<Self> {
        let (entries, rest) = text.split_once(' ')?;
        let (began, rest) = rest.split_once(' ')?;
        let (cause, key) = rest.split_once(' ')?;
        let values = dataset.read_key(key)?;
        Some(Self {
            key: key.to_owned(),
            values,
            entries: entries.parse().ok()?,
            began: Backfilled { began_ms: began.parse().ok()?, cause: cause.parse().ok()? },
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn tell(options: &BackfillOptions, entries: u64, is_resumed: bool) {
    if let Some(progress) = &options.progress {
        progress.send_replace(Progress { entries, is_resumed });
    }
}

/// Spreads entries over time.
struct RateLimit {
    rate: Option<u64>,
    began: Instant,
    spent: u64,
}

impl RateLimit {
    fn new(rate: Option<u64>) -> Self {
        Self { rate, began: Instant::now(), spent: 0 }
    }

    async fn spend(&mut self, entries: u64) {
        self.spent += entries;
        if let Some(rate) = self.rate {
            #[expect(clippy::cast_precision_loss, reason = "a rate is no ledger")]
            let due = Duration::from_secs_f64(self.spent as f64 / rate.max(1) as f64);
            tokio::time::sleep_until(self.began + due).await;
        }
    }
}
