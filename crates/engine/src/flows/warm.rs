//! Passes: every entry of a dataset, from one statement (R7), or the most wanted ones by key.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{FuturesOrdered, StreamExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::error::FlowError;
use super::reload::{BATCH_BYTES, Cause, Job, Report, current_epoch, gone_error, reload};
use crate::metrics::{ByDatasetCause, ByReason};
use crate::stores::postgres::{DatasetSource, KeyValues, Pass, Poll, Trouble};
use crate::stores::redis::{Answer, Claim, Epoch, Settled, StoreMode};
use cachekeeper_protocol::entry::EntryBatch;

/// How far a pass is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Entries stored so far, those of an interrupted run included.
    pub entries: u64,
    /// Whether the pass goes on where another was interrupted.
    pub is_resumed: bool,
}

/// What a pass needs to know from its caller.
#[derive(Debug, Clone)]
pub struct PassOptions {
    /// Stops the pass between two batches.
    pub cancel: CancellationToken,
    /// Most entries a second.
    pub rate: Option<u64>,
    /// Told how far the pass is.
    pub progress: Option<tokio::sync::watch::Sender<Progress>>,
    /// Whether a pass that was interrupted is continued.
    pub resume: bool,
}

/// Entries of one script: large enough that the script's own cost disappears, small enough that it does not hold up
/// other clients for more than a few milliseconds.
const BATCH_ENTRIES: usize = 256;
/// Scripts that are under way at once: Redis works on one while the next is on its way.
const SCRIPTS_AHEAD: usize = 3;

/// Runs a pass over a dataset.
///
/// # Errors
/// [`FlowError`]; what was stored until then stays stored, and the pass can be resumed.
pub async fn pass(context: &Context, dataset: &Dataset, options: &PassOptions) -> Result<Report, FlowError> {
    if dataset.is_displaced() {
        return Err(dataset.displace());
    }
    let source = dataset.source(&context.postgres).await?;
    let passed = match context.postgres.first_keys(&source).await {
        Ok(Some(keys)) => pass_by_keys(context, dataset, keys, options).await,
        Ok(None) => StreamedPass::run(context, dataset, &source, options).await,
        Err(error) => Err(error.into()),
    };
    if let Err(FlowError::Source(error)) = &passed
        && matches!(error.trouble, Trouble::Changed | Trouble::Statement)
    {
        // The tables may have changed since the query was described.
        dataset.forget_source();
    }
    passed
}

async fn pass_by_keys(
    context: &Context,
    dataset: &Dataset,
    keys: Vec<KeyValues>,
    options: &PassOptions,
) -> Result<Report, FlowError> {
    let mut report = Report::default();
    let mut pace = Pace::new(options.rate);
    for chunk in keys.chunks(dataset.settings.batch) {
        if options.cancel.is_cancelled() {
            return Err(FlowError::Cancelled);
        }
        let named = chunk.iter().filter_map(|values| Some((dataset.key_of(values)?, values.clone())));
        let done = reload(context, dataset, named.collect(), Cause::Warm, &mut Job::uncounted()).await?;
        pace.spend(done.stored).await;
        report.add(done);
        tell(options, report.stored, false);
    }
    Ok(report)
}

/// A pass fed by one statement.
struct StreamedPass<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    epoch: Epoch,
    poll: Poll,
    job: Job,
    report: Report,
    refused: Vec<(String, KeyValues)>,
    /// Where the last confirmed batch ended; what an interrupted pass goes on from.
    confirmed: String,
    entries_before: u64,
    began_ms: u64,
}

/// A batch on its way: its entries, and the key it ends with.
struct Sent {
    batch: EntryBatch,
    answer: Result<Answer<Vec<usize>>, FlowError>,
}

impl<'a> StreamedPass<'a> {
    async fn run(
        context: &'a Context,
        dataset: &'a Dataset,
        source: &DatasetSource,
        options: &PassOptions,
    ) -> Result<Report, FlowError> {
        let mut job = Job::new("pass");
        let order = super::epoch::ensure(context, &job.id).await?;
        job.count = order.head.counted;
        let interrupted = order.head.backfills.get(dataset.name()).filter(|_| options.resume);
        let interrupted = interrupted.and_then(|text| Bookmark::parse(text, dataset));
        // Of a pass that was interrupted long ago the first entries may have expired.
        let recent = order.head.now_ms.saturating_sub(millis(dataset.lifetimes.ttl / 2));
        let interrupted = interrupted.filter(|bookmark| recent < bookmark.began_ms);
        let behind = interrupted.as_ref().map(|bookmark| &bookmark.values);
        if let Some(bookmark) = &interrupted {
            info!(dataset = dataset.name(), behind = %bookmark.key, entries = bookmark.entries, "resuming the pass");
        }
        let mut rows = context.postgres.pass(source, behind).await?;
        let mut pass = Self {
            context,
            dataset,
            epoch: order.epoch,
            poll: rows.poll.clone(),
            job,
            report: Report::default(),
            refused: Vec::new(),
            confirmed: interrupted.as_ref().map(Bookmark::render).unwrap_or_default(),
            began_ms: interrupted.as_ref().map_or(order.head.now_ms, |bookmark| bookmark.began_ms),
            entries_before: interrupted.map_or(0, |bookmark| bookmark.entries),
        };
        pass.stream(source, &mut rows, options).await?;
        drop(rows);
        pass.finish().await
    }

    async fn stream(
        &mut self,
        source: &DatasetSource,
        rows: &mut Pass,
        options: &PassOptions,
    ) -> Result<(), FlowError> {
        let mut encoder = Encoder::new(self.dataset, source);
        let mut under_way = FuturesOrdered::new();
        let mut spare: VecDeque<EntryBatch> = VecDeque::new();
        let mut batch = EntryBatch::default();
        let mut pace = Pace::new(options.rate);
        let mut is_over = false;
        while !is_over {
            let group = tokio::select! {
                () = options.cancel.cancelled() => return Err(FlowError::Cancelled),
                group = rows.next() => group?,
            };
            is_over = group.is_none();
            for row in group.iter().flatten() {
                encoder.add(row, &mut batch);
                if BATCH_ENTRIES <= batch.len() || BATCH_BYTES <= batch.bytes() {
                    if under_way.len() == SCRIPTS_AHEAD
                        && let Some(sent) = under_way.next().await
                    {
                        spare.push_back(self.confirm(sent, options, &mut pace).await?);
                    }
                    let full = std::mem::replace(&mut batch, spare.pop_front().unwrap_or_default());
                    under_way.push_back(self.send(full));
                }
            }
            if !encoder.failures.is_empty() {
                let failures = std::mem::take(&mut encoder.failures);
                self.drop_failed(failures).await?;
            }
        }
        encoder.finish(&mut batch);
        let failures = std::mem::take(&mut encoder.failures);
        self.drop_failed(failures).await?;
        if !batch.is_empty() {
            under_way.push_back(self.send(batch));
        }
        while let Some(sent) = under_way.next().await {
            self.confirm(sent, options, &mut pace).await?;
        }
        Ok(())
    }

    /// The script is sent when the future is first polled; the queue keeps the order.
    fn send(&self, batch: EntryBatch) -> impl Future<Output = Sent> + Send + 'static {
        let (context, epoch, poll) = (self.context.clone(), self.epoch, self.poll.clone());
        let (name, revision) = (self.dataset.name().to_owned(), self.dataset.revision.clone());
        let (job, progress) = (self.job.id.clone(), self.confirmed.clone());
        let longest = self.dataset.lifetimes.longest();
        let sending = tokio::spawn(async move {
            let standing = crate::stores::redis::Precondition {
                epoch: &epoch,
                incarnation: &poll.incarnation,
                dataset: &name,
                revision: &revision,
            };
            let mode = StoreMode::Floor { job: &job, progress: &progress };
            let answer = context.redis.store(&standing, poll.snapshot.stamp(), &batch, longest, mode).await;
            Sent { batch, answer: answer.map_err(|error| FlowError::Cache(context.count_refusal(error))) }
        });
        async move {
            match sending.await {
                Ok(sent) => sent,
                Err(_aborted) => Sent { batch: EntryBatch::default(), answer: Err(FlowError::Cancelled) },
            }
        }
    }

    /// Looks at a batch's reply; gives the buffers back.
    async fn confirm(
        &mut self,
        sent: Sent,
        options: &PassOptions,
        pace: &mut Pace,
    ) -> Result<EntryBatch, FlowError> {
        let mut batch = sent.batch;
        let positions = match sent.answer? {
            Answer::Done(positions) => positions,
            Answer::Failed(gone) => return Err(gone_error(self.context, self.dataset, gone)),
        };
        self.job.count += 1;
        for position in &positions {
            let key = batch.get(*position).map(|entry| entry.key.to_owned());
            self.refused.extend(key.and_then(|key| Some((key.clone(), self.dataset.read_key(&key)?))));
        }
        let stored = (batch.len() - positions.len()) as u64;
        self.report.stored += stored;
        let labels = ByDatasetCause::new(self.dataset.name(), Cause::Warm.label());
        self.context.metrics.stored.get_or_create(&labels).inc_by(stored);
        self.context.metrics.refused.get_or_create(&labels).inc_by(positions.len() as u64);
        if let Some(last) = batch.get(batch.len().saturating_sub(1))
            && let Some(values) = self.dataset.read_key(last.key)
        {
            let entries = self.entries_before + self.report.stored;
            let began_ms = self.began_ms;
            self.confirmed = Bookmark { key: last.key.to_owned(), values, entries, began_ms }.render();
        }
        // Rows whose slots moved on are loaded again by key; not too many of them at the end.
        if self.dataset.settings.batch <= self.refused.len() {
            self.reload_refused().await?;
        }
        tell(options, self.entries_before + self.report.stored, 0 < self.entries_before);
        pace.spend(stored).await;
        batch.clear();
        Ok(batch)
    }

    async fn reload_refused(&mut self) -> Result<(), FlowError> {
        let refused = std::mem::take(&mut self.refused);
        let done = reload(self.context, self.dataset, refused, Cause::Warm, &mut self.job).await?;
        self.report.add(done);
        Ok(())
    }

    async fn drop_failed(&mut self, failures: Vec<super::encode::Failure>) -> Result<(), FlowError> {
        let Some(first) = failures.first() else {
            return Ok(());
        };
        tracing::warn!(dataset = self.dataset.name(), failed = failures.len(), entry.key = first.key.as_deref(),
            reason = %first.reason, "rows have no entry");
        let labels = ByDatasetCause::new(self.dataset.name(), Cause::Warm.label());
        self.context.metrics.failed.get_or_create(&labels).inc_by(failures.len() as u64);
        let keys: Vec<&str> = failures.iter().filter_map(|failure| failure.key.as_deref()).collect();
        if !keys.is_empty() {
            let standing = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
            let stamp = self.poll.snapshot.stamp();
            match self.context.redis.invalidate(&standing, stamp, &keys, &self.job.id, "").await? {
                Answer::Done(existed) => {
                    self.job.count += 1;
                    self.report.invalidated += existed;
                }
                Answer::Failed(gone) => return Err(gone_error(self.context, self.dataset, gone)),
            }
        }
        self.report.add(Report { failures, ..Report::default() });
        Ok(())
    }

    /// The claim that the pass is whole: every one of its scripts is still in this Redis.
    async fn finish(mut self) -> Result<Report, FlowError> {
        self.reload_refused().await?;
        let epoch = current_epoch(self.context).await?;
        let standing = self.dataset.precondition(&epoch, &self.poll.incarnation);
        let paid = Settled::Backfill { began_ms: self.began_ms };
        match self.context.redis.finish_job(&standing, &self.job.id, self.job.count, paid).await? {
            Answer::Done(Claim::Accepted) => Ok(self.report),
            Answer::Done(Claim::RolledBack) => {
                self.context.metrics.gaps.get_or_create(&ByReason::new("redis_went_back")).inc();
                Err(FlowError::WentBack)
            }
            Answer::Failed(gone) => Err(gone_error(self.context, self.dataset, gone)),
        }
    }
}

/// Where an interrupted pass stands.
struct Bookmark {
    key: String,
    values: KeyValues,
    entries: u64,
    /// When the pass began that was interrupted first, by Redis's clock.
    began_ms: u64,
}

impl Bookmark {
    fn render(&self) -> String {
        format!("{} {} {}", self.entries, self.began_ms, self.key)
    }

    fn parse(text: &str, dataset: &Dataset) -> Option<Self> {
        let (entries, rest) = text.split_once(' ')?;
        let (began, key) = rest.split_once(' ')?;
        let values = dataset.read_key(key)?;
        Some(Self {
            key: key.to_owned(),
            values,
            entries: entries.parse().ok()?,
            began_ms: began.parse().ok()?,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn tell(options: &PassOptions, entries: u64, is_resumed: bool) {
    if let Some(progress) = &options.progress {
        progress.send_replace(Progress { entries, is_resumed });
    }
}

/// Spreads entries over time.
struct Pace {
    rate: Option<u64>,
    began: Instant,
    spent: u64,
}

impl Pace {
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
