//! Given keys: load them, store what is there, delete what is gone, and see each of them through.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::catalog::Dataset;
use super::context::Context;
use super::encode::{Encoder, Failure};
use super::epoch;
use super::error::{FlowError, chain};
use crate::metrics::{ByDataset, ByDatasetCause};
use crate::stores::postgres::{DatasetSource, KeyValues, Poll, SourceError, Trouble};
use crate::stores::redis::{Answer, PreconditionFailed, Refusal, StoreMode};
use cachekeeper_config::Format;
use cachekeeper_protocol::entry::EntryBatch;

/// Why entries are loaded again, and so what to do where that is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The source changed: an entry that cannot be stored must go.
    Change,
    /// A debt is paid: likewise.
    Debt,
    /// Ahead of expiry: a valid entry may stay.
    Refresh,
    /// An application missed it.
    Miss,
    /// A pass, or a command.
    Warm,
}

impl Cause {
    /// A label for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Debt => "debt",
            Self::Refresh => "refresh",
            Self::Miss => "miss",
            Self::Warm => "warm",
        }
    }

    /// Whether the old value may not stay when the new one cannot be stored.
    fn must_go(self) -> bool {
        matches!(self, Self::Change | Self::Debt)
    }
}

/// A counted job: how many of its scripts have run (R9).
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name in the head; empty: nothing will be claimed.
    pub id: String,
    /// How many scripts ran.
    pub count: u64,
}

impl Job {
    /// A job that claims nothing.
    #[must_use]
    pub fn uncounted() -> Self {
        Self { id: String::new(), count: 0 }
    }

    /// A new counted job.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self { id: format!("{kind}-{:016x}", rand::random::<u64>()), count: 0 }
    }
}

/// What became of the entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Stored.
    pub stored: u64,
    /// Deleted, because their rows are gone.
    pub gone: u64,
    /// Deleted, because they could not be stored.
    pub invalidated: u64,
    /// Left as they were.
    pub left: u64,
    /// Rows without an entry.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Adds up.
    pub fn add(&mut self, other: Self) {
        self.stored += other.stored;
        self.gone += other.gone;
        self.invalidated += other.invalidated;
        self.left += other.left;
        // Bounded: a dataset in which every row fails must not fill the memory with complaints.
        let room = FAILURES_MAX.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.into_iter().take(room));
    }
}

/// Loads that a key may be refused before it is invalidated instead (DESIGN R10).
const LOADS_MAX: usize = 3;
/// Bytes of one script's entries, so that large values do not block Redis or fill the memory.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Complaints that are kept.
const FAILURES_MAX: usize = 1_000;

/// What a reload has read, for a caller who wants the values too.
#[derive(Debug, Default)]
pub struct Kept {
    /// The values by key, as the last load of each has them; none: no row.
    pub values: HashMap<String, Option<Vec<u8>>>,
    /// When the first of them was read.
    pub poll: Option<Poll>,
}

/// Loads these keys again and stores them; those without a row are deleted, or stored as an explicit null.
///
/// # Errors
/// [`FlowError`] if nothing more could be done; what was done until then stays done.
pub async fn reload(
    context: &Context,
    dataset: &Dataset,
    keys: Vec<(String, KeyValues)>,
    cause: Cause,
    job: &mut Job,
) -> Result<Report, FlowError> {
    reload_keeping(context, dataset, keys, cause, job, None).await
}

/// The same, keeping what was read, also where it could not be stored.
///
/// # Errors
/// [`FlowError`].
pub async fn reload_keeping(
    context: &Context,
    dataset: &Dataset,
    keys: Vec<(String, KeyValues)>,
    cause: Cause,
    job: &mut Job,
    kept: Option<&Mutex<Kept>>,
) -> Result<Report, FlowError> {
    if dataset.is_displaced() {
        return Err(dataset.displace());
    }
    let source = dataset.source(&context.postgres).await?;
    let mut report = Report::default();
    let mut seen = HashSet::with_capacity(keys.len());
    let unique: Vec<_> = keys.into_iter().filter(|(key, _)| seen.insert(key.clone())).collect();
    for chunk in unique.chunks(dataset.settings.batch) {
        let done = reload_chunk(context, (dataset, &source), chunk, cause, job, kept).await?;
        report.add(done);
    }
    Ok(report)
}

async fn reload_chunk(
    context: &Context,
    (dataset, source): (&Dataset, &DatasetSource),
    keys: &[(String, KeyValues)],
    cause: Cause,
    job: &mut Job,
    kept: Option<&Mutex<Kept>>,
) -> Result<Report, FlowError> {
    let mut report = Report::default();
    // Parts of the chunk that still have to be loaded, each with how often it was tried.
    let mut work: Vec<(Vec<(String, KeyValues)>, usize)> = vec![(keys.to_vec(), 0)];
    while let Some((part, tries)) = work.pop() {
        if tries == LOADS_MAX {
            give_up(context, dataset, &part, cause, "refused three times", job, &mut report).await?;
            continue;
        }
        match load_and_store(context, (dataset, source), &part, cause, job, kept).await {
            Ok((done, refused)) => {
                report.add(done);
                if !refused.is_empty() {
                    work.push((refused, tries + 1));
                }
            }
            // One row makes the whole statement fail: find it by halves.
            Err(FlowError::Source(error)) if error.trouble == Trouble::Data && 1 < part.len() => {
                let (left, right) = part.split_at(part.len() / 2);
                work.push((left.to_vec(), tries));
                work.push((right.to_vec(), tries));
            }
            Err(FlowError::Source(error)) if error.trouble == Trouble::Data => {
                give_up(context, dataset, &part, Cause::Change, &chain(&error), job, &mut report).await?;
            }
            Err(FlowError::Cache(error)) if error.refusal == Refusal::Full => {
                context.count_refusal(error);
                let reason = "Redis is full";
                give_up(context, dataset, &part, cause, reason, job, &mut report).await?;
            }
            Err(FlowError::Source(error)) if error.trouble == Trouble::Changed => {
                dataset.forget_source();
                return Err(FlowError::Source(error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(report)
}

type Keys = Vec<(String, KeyValues)>;

/// One load and its stores; answers what was refused and has to be loaded again.
async fn load_and_store(
    context: &Context,
    (dataset, source): (&Dataset, &DatasetSource),
    keys: &[(String, KeyValues)],
    cause: Cause,
    job: &mut Job,
    kept: Option<&Mutex<Kept>>,
) -> Result<(Report, Keys), FlowError> {
    let values: Vec<KeyValues> = keys.iter().map(|(_, values)| values.clone()).collect();
    let began = Instant::now();
    let loaded = context.postgres.load(source, &values).await?;
    let labels = ByDataset::new(dataset.name());
    context.metrics.load_seconds.get_or_create(&labels).observe(began.elapsed().as_secs_f64());

    let by_key: HashMap<&str, &(String, KeyValues)> =
        keys.iter().map(|pair| (pair.0.as_str(), pair)).collect();
    let mut missing: HashSet<&str> = by_key.keys().copied().collect();
    let mut report = Report::default();
    let mut refused = Keys::new();
    let mut encoder = Encoder::new(dataset, source);
    let mut batch = EntryBatch::default();
    let mut sink = Sink { context, dataset, poll: &loaded.poll, cause, job, kept };
    sink.keep_poll();
    for row in &loaded.rows {
        encoder.add(row, &mut batch);
        if BATCH_BYTES <= batch.bytes() {
            sink.store(&mut batch, &by_key, &mut missing, &mut report, &mut refused).await?;
        }
    }
    encoder.finish(&mut batch);
    // What was rendered is there; what was asked for and not rendered is gone (R1).
    for entry in batch.iter() {
        missing.remove(entry.key);
    }
    for failure in &encoder.failures {
        if let Some(key) = &failure.key {
            missing.remove(key.as_str());
        }
    }
    let absent: Vec<&str> = missing.drain().collect();
    for key in absent {
        match (dataset.settings.negative_ttl, null_of(&dataset.settings.format)) {
            (Some(life), Some(null)) => {
                batch.push(key, null, u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
            }
            _ => {
                batch.push_gone(key);
            }
        }
    }
    sink.store(&mut batch, &by_key, &mut missing, &mut report, &mut refused).await?;
    let failures = std::mem::take(&mut encoder.failures);
    sink.drop_failed(failures, &mut report).await?;
    Ok((report, refused))
}

/// Where the entries of one load go.
struct Sink<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    poll: &'a Poll,
    cause: Cause,
    job: &'a mut Job,
    kept: Option<&'a Mutex<Kept>>,
}

impl Sink<'_> {
    fn keep_poll(&self) {
        let Some(kept) = self.kept else { return };
        kept.lock().unwrap_or_else(PoisonError::into_inner).poll.get_or_insert_with(|| self.poll.clone());
    }

    fn keep(&self, batch: &EntryBatch) {
        let Some(kept) = self.kept else { return };
        let null = null_of(&self.dataset.settings.format);
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in batch.iter() {
            let is_there = entry.life_ms != 0 && Some(entry.value) != null;
            kept.values.insert(entry.key.to_owned(), is_there.then(|| entry.value.to_vec()));
        }
    }

    async fn store(
        &mut self,
        batch: &mut EntryBatch,
        by_key: &HashMap<&str, &(String, KeyValues)>,
        missing: &mut HashSet<&str>,
        report: &mut Report,
        refused: &mut Keys,
    ) -> Result<(), FlowError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.keep(batch);
        for entry in batch.iter() {
            missing.remove(entry.key);
        }
        let epoch = current_epoch(self.context).await?;
        let standing = self.dataset.precondition(&epoch, &self.poll.incarnation);
        let mode =
            if self.job.id.is_empty() { StoreMode::Slots } else { StoreMode::Counted { job: &self.job.id } };
        let longest = self.dataset.lifetimes.longest();
        let answer =
            self.context.redis.store(&standing, self.poll.snapshot.stamp(), batch, longest, mode).await?;
        let positions = match answer {
            Answer::Done(positions) => positions,
            Answer::Failed(gone) => return Err(gone_error(self.context, self.dataset, gone)),
        };
        self.job.count += 1;
        let is_refused: HashSet<usize> = positions.iter().copied().collect();
        let before = (report.stored, report.gone);
        for (position, entry) in batch.iter().enumerate() {
            if is_refused.contains(&position) {
                // Rendered under another text than it was asked for (citext, for example): its own key decides.
                let again = by_key.get(entry.key).map(|pair| (*pair).clone());
                let again = again.or_else(|| Some((entry.key.to_owned(), self.dataset.read_key(entry.key)?)));
                refused.extend(again);
            } else if entry.life_ms == 0 {
                report.gone += 1;
            } else {
                report.stored += 1;
            }
        }
        let labels = ByDatasetCause::new(self.dataset.name(), self.cause.label());
        let metrics = &self.context.metrics;
        metrics.stored.get_or_create(&labels).inc_by(report.stored - before.0);
        metrics.deleted.get_or_create(&labels).inc_by(report.gone - before.1);
        metrics.refused.get_or_create(&labels).inc_by(positions.len() as u64);
        batch.clear();
        Ok(())
    }

    /// Rows that cannot be encoded have no entry, and an older one may not stay.
    async fn drop_failed(&mut self, failures: Vec<Failure>, report: &mut Report) -> Result<(), FlowError> {
        if failures.is_empty() {
            return Ok(());
        }
        let labels = ByDatasetCause::new(self.dataset.name(), self.cause.label());
        self.context.metrics.failed.get_or_create(&labels).inc_by(failures.len() as u64);
        if let Some(first) = failures.first() {
            warn!(dataset = self.dataset.name(), failed = failures.len(), entry.key = first.key.as_deref(),
                reason = %first.reason, "rows have no entry");
        }
        let keys: Vec<&str> = failures.iter().filter_map(|failure| failure.key.as_deref()).collect();
        if !keys.is_empty() {
            let epoch = current_epoch(self.context).await?;
            let standing = self.dataset.precondition(&epoch, &self.poll.incarnation);
            let stamp = self.poll.snapshot.stamp();
            let answer = self.context.redis.invalidate(&standing, stamp, &keys, &self.job.id, "").await?;
            match answer {
                Answer::Done(existed) => {
                    self.job.count += 1;
                    report.invalidated += existed;
                }
                Answer::Failed(gone) => return Err(gone_error(self.context, self.dataset, gone)),
            }
        }
        report.add(Report { failures, ..Report::default() });
        Ok(())
    }
}

/// These keys cannot be stored. Where the old value may not stay, it is deleted under a fresh stamp.
async fn give_up(
    context: &Context,
    dataset: &Dataset,
    keys: &[(String, KeyValues)],
    cause: Cause,
    reason: &str,
    job: &mut Job,
    report: &mut Report,
) -> Result<(), FlowError> {
    warn!(
        dataset = dataset.name(),
        entries = keys.len(),
        reason,
        cause = cause.label(),
        "entries could not be stored"
    );
    report.add(Report {
        failures: keys
            .iter()
            .map(|(key, _)| Failure { key: Some(key.clone()), reason: reason.to_owned() })
            .collect(),
        ..Report::default()
    });
    if !cause.must_go() {
        report.left += keys.len() as u64;
        return Ok(());
    }
    let names: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
    let poll = epoch::poll(context).await?;
    let current = current_epoch(context).await?;
    let standing = dataset.precondition(&current, &poll.incarnation);
    let stamp = poll.snapshot.stamp();
    match context.redis.invalidate(&standing, stamp, &names, &job.id, "").await? {
        Answer::Done(_) => job.count += 1,
        Answer::Failed(gone) => return Err(gone_error(context, dataset, gone)),
    }
    report.invalidated += keys.len() as u64;
    let labels = ByDatasetCause::new(dataset.name(), cause.label());
    context.metrics.deleted.get_or_create(&labels).inc_by(keys.len() as u64);
    Ok(())
}

/// The epoch as this process knows it, or as it stands in Redis.
pub(super) async fn current_epoch(context: &Context) -> Result<crate::stores::redis::Epoch, FlowError> {
    match context.epoch() {
        Some(epoch) => Ok(epoch),
        None => Ok(epoch::ensure(context, "").await?.epoch),
    }
}

/// A script found the order of things changed. What this process knew of it is forgotten.
pub(super) fn gone_error(context: &Context, dataset: &Dataset, gone: PreconditionFailed) -> FlowError {
    match gone {
        PreconditionFailed::Revision => dataset.displace(),
        PreconditionFailed::Table | PreconditionFailed::Epoch | PreconditionFailed::Incarnation => {
            context.set_epoch(None);
            FlowError::Gone(gone)
        }
    }
}

/// An explicit null, where the format has one.
pub(super) fn null_of(format: &Format) -> Option<&'static [u8]> {
    match format {
        Format::MessagePack { .. } => Some(&[0xc0]),
        Format::Json { .. } => Some(b"null"),
        Format::Raw { .. } => None,
    }
}

/// Runs a flow again, after looking at the order of things, where that had changed under it.
///
/// # Errors
/// The flow's last error.
pub async fn with_current_order<T, F>(context: &Context, mut flow: impl FnMut() -> F) -> Result<T, FlowError>
where
    F: Future<Output = Result<T, FlowError>>,
{
    const ATTEMPTS: usize = 5;
    let mut attempt = 0;
    loop {
        attempt += 1;
        match flow().await {
            Err(FlowError::Gone(gone)) if attempt < ATTEMPTS => {
                tracing::debug!(%gone, "the order of things changed, beginning again");
                epoch::ensure(context, "").await?;
            }
            Err(FlowError::Source(SourceError {
                trouble: Trouble::NoIncarnation | Trouble::Changed,
                ..
            })) if attempt < ATTEMPTS => {
                epoch::ensure(context, "").await?;
            }
            other => return other,
        }
    }
}

/// How long a flow's retries wait for each other at most; here so that all flows agree.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
