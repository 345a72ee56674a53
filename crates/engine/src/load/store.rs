//! What is asked of a load, and what becomes of its entries: they are stored under its stamp; what was refused, failed or is
//! absent is told apart.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tracing::{debug, warn};

use crate::catalog::Dataset;
use crate::context::Context;
use crate::encode::{Failure, WithoutKey};
use crate::epoch;
use crate::error::{EngineError, chain};
use crate::history::What;
use crate::log_limit;
use crate::metrics::ByDatasetCause;
use crate::shown::{cut, cut_name};
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::StoreMode;
use cachekeeper_config::Format;
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::revision::Revision;

/// Failures that a report keeps.
const FAILURES_MAX: usize = 1_000;

/// Keys of one dataset, each with the values of its placeholders.
pub type Keys = Vec<(String, KeyValues)>;

/// Why entries are loaded, and so what to do where they cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The source changed: an entry that cannot be stored must go.
    Change,
    /// Somebody said so, by an event or a command: likewise.
    Event,
    /// A write through the worker or the library: likewise.
    Write,
    /// The audit found it wrong: likewise.
    Audit,
    /// A pending revalidation: likewise.
    Revalidation,
    /// Ahead of expiry: a valid entry may stay.
    Refresh,
    /// An application missed it.
    Miss,
    /// A backfill, or a command.
    Backfill,
}

impl Cause {
    /// The value of the label `cause` in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Event => "event",
            Self::Write => "write",
            Self::Audit => "audit",
            Self::Revalidation => "revalidation",
            Self::Refresh => "refresh",
            Self::Miss => "miss",
            Self::Backfill => "backfill",
        }
    }

    /// Whether the old value may not stay when the new one cannot be stored.
    pub(super) fn must_go(self) -> bool {
        matches!(self, Self::Change | Self::Event | Self::Write | Self::Audit | Self::Revalidation)
    }
}

/// What is done with the loaded values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storing {
    /// Nothing: the caller wants to know them.
    Never,
    /// They are stored if nothing speaks against it. The caller is a reader, who gets what was read at its own time (R5);
    /// whatever forbids the store is somebody else's to see to.
    IfAllowed,
    /// Every key is seen through: one that is refused is loaded again, and one that cannot be stored is deleted where its
    /// old value may not stay (R10).
    Always,
}

/// How loads differ.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Why.
    pub cause: Cause,
    /// What is done with the values.
    pub storing: Storing,
    /// Whether the report holds the values.
    pub keeps_values: bool,
    /// A limit for each statement, of at most a second; none: what `statement_timeout` allows.
    pub within: Option<Duration>,
}

impl LoadOptions {
    /// Sees every key through, and forgets the values.
    #[must_use]
    pub fn because(cause: Cause) -> Self {
        Self { cause, storing: Storing::Always, keeps_values: false, within: None }
    }

    /// For somebody who wants the values themselves.
    #[must_use]
    pub fn for_reader(may_store: bool) -> Self {
        let storing = if may_store { Storing::IfAllowed } else { Storing::Never };
        Self { cause: Cause::Miss, storing, keeps_values: true, within: None }
    }
}

/// A counted job: how many of its scripts have run (R9).
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name in the metadata; empty: it makes no claim in the end, so nothing is counted.
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
pub struct LoadReport {
    /// Stored.
    pub stored: u64,
    /// Stored by a run that was interrupted, and that this one went on with.
    pub stored_earlier: u64,
    /// Deleted, because their rows are gone.
    pub gone: u64,
    /// Deleted, because they could not be stored.
    pub invalidated: u64,
    /// Left as they were.
    pub left: u64,
    /// Rows without an entry, each with the reason; where they are many, some.
    pub failures: Vec<Failure>,
    /// How many they are.
    pub failed: u64,
    /// Of them, those whose values make no key.
    pub without_key: Option<WithoutKey>,
    /// What was read, where [`LoadOptions::keeps_values`] asks for it.
    pub loaded: LoadedValues,
}

/// What a load has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadedValues {
    /// The values by key, as the last load of each has them; none: no row. A key that failed is missing.
    pub by_key: HashMap<String, Option<Vec<u8>>>,
    /// When the first of them was read.
    pub poll: Option<Poll>,
}

impl LoadReport {
    /// Of rows that have no entry.
    #[must_use]
    pub fn of_failures(failures: Vec<Failure>) -> Self {
        let mut without = failures.iter().filter(|failure| failure.key.is_none());
        let without_key = without.next().map(|first| WithoutKey {
            rows: 1 + without.count() as u64,
            reason: cut(&first.reason).into_owned(),
        });
        Self { failed: failures.len() as u64, without_key, failures, ..Self::default() }
    }

    /// Adds up.
    pub fn add(&mut self, other: Self) {
        self.failed += other.failed;
        self.without_key = match (self.without_key.take(), other.without_key) {
            (Some(first), Some(more)) => Some(WithoutKey { rows: first.rows + more.rows, ..first }),
            (one, other) => one.or(other),
        };
        self.stored += other.stored;
        self.stored_earlier += other.stored_earlier;
        self.gone += other.gone;
        self.invalidated += other.invalidated;
        self.left += other.left;
        // Bounded: a dataset in which every row fails must not fill the memory with complaints.
        let room = FAILURES_MAX.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.into_iter().take(room));
        self.loaded.by_key.extend(other.loaded.by_key);
        self.loaded.poll = self.loaded.poll.take().or(other.loaded.poll);
    }
}

/// The entries of one load on their way to Redis.
pub(crate) struct BatchOfLoad<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    revision: Option<&'a Revision>,
    options: LoadOptions,
    poll: &'a Poll,
    job: &'a mut Job,
    /// Asked for, and not seen yet.
    missing: HashSet<&'a str>,
    report: LoadReport,
    refused: Keys,
}

impl<'a> BatchOfLoad<'a> {
    /// Begins the stores of a load of these keys, under the revision that was read before its statement was sent; none: nothing
    /// is stored.
    pub fn new(
        context: &'a Context,
        (dataset, revision): (&'a Dataset, Option<&'a Revision>),
        options: LoadOptions,
        poll: &'a Poll,
        job: &'a mut Job,
        keys: impl Iterator<Item = &'a str>,
    ) -> Self {
        let mut report = LoadReport::default();
        if options.keeps_values {
            report.loaded.poll = Some(poll.clone());
        }
        let (missing, refused) = (keys.collect(), Keys::new());
        Self { context, dataset, revision, options, poll, job, missing, report, refused }
    }

    /// Stores these entries, and empties the batch.
    pub async fn store(&mut self, entries: &mut EntryBatch) -> Result<(), EngineError> {
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries.iter() {
            self.missing.remove(entry.key);
        }
        if self.options.keeps_values {
            keep(self.dataset, entries, &mut self.report.loaded);
        }
        let stored = match self.options.storing {
            Storing::Never => Ok(()),
            Storing::IfAllowed | Storing::Always => self.send(entries).await,
        };
        match (stored, self.options.storing) {
            // The reader has its value already; what could not be stored is the feed's, or the next reader's.
            (Err(error), Storing::IfAllowed) => {
                debug!(dataset = self.dataset.name(), error = %chain(&error), "a fill was not stored");
            }
            (stored, _) => stored?,
        }
        entries.clear();
        Ok(())
    }

    async fn send(&mut self, entries: &EntryBatch) -> Result<(), EngineError> {
        let (context, dataset) = (self.context, self.dataset);
        let Some(revision) = self.revision else { return Ok(()) };
        let current = epoch::current(context).await?;
        let precondition = dataset.store_precondition(&current, &self.poll.incarnation, revision);
        let job = self.job.id.as_str();
        let mode = if job.is_empty() { StoreMode::Slots } else { StoreMode::Counted { job } };
        let (stamp, longest) = (self.poll.snapshot.stamp(), dataset.lifetimes.longest());
        let answer = context.redis.store(&precondition, stamp, entries, longest, mode).await?;
        let positions = context.checked(Some(dataset), answer)?;
        self.job.count += 1;
        let cause = self.options.cause;
        let refused = note_stored(context, dataset, cause, entries, &positions, &mut self.report);
        match self.options.storing {
            Storing::Always => self.refused.extend(refused),
            Storing::IfAllowed | Storing::Never => self.report.left += refused.len() as u64,
        }
        Ok(())
    }

    /// Adds what was asked for and has no row: an explicit null where the dataset remembers absence, else a deletion.
    pub(crate) fn add_absent(&mut self, failures: &[Failure], entries: &mut EntryBatch) {
        for entry in entries.iter() {
            self.missing.remove(entry.key);
        }
        for key in failures.iter().filter_map(|failure| failure.key.as_deref()) {
            self.missing.remove(key);
        }
        for key in self.missing.drain() {
            match (self.dataset.settings.negative_ttl, null_of(&self.dataset.settings.format)) {
                (Some(life), Some(null)) => {
                    entries.push(key, null, u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
                }
                _ => {
                    entries.push_gone(key);
                }
            }
        }
    }

    /// Ends the stores: rows that cannot be encoded have no entry, and an older one may not stay. Answers what was refused.
    pub async fn finish(mut self, failures: Vec<Failure>) -> Result<(LoadReport, Keys), EngineError> {
        let cause = self.options.cause;
        if self.options.storing == Storing::Always {
            let report = &mut self.report;
            delete_failed(self.context, self.dataset, cause, self.poll, self.job, failures, report).await?;
        } else {
            note_failed(self.context, self.dataset, cause, &failures);
            self.report.add(LoadReport::of_failures(failures));
        }
        Ok((self.report, self.refused))
    }
}

fn keep(dataset: &Dataset, entries: &EntryBatch, loaded: &mut LoadedValues) {
    let null = null_of(&dataset.settings.format);
    for entry in entries.iter() {
        let is_there = entry.life_ms != 0 && Some(entry.value) != null;
        loaded.by_key.insert(entry.key.to_owned(), is_there.then(|| entry.value.to_vec()));
    }
}

/// Counts what one script has stored and answers the keys that it refused.
pub(crate) fn note_stored(
    context: &Context,
    dataset: &Dataset,
    cause: Cause,
    entries: &EntryBatch,
    refused: &[usize],
    report: &mut LoadReport,
) -> Keys {
    // Positions come in order.
    let mut positions = refused.iter().copied().peekable();
    let (mut stored, mut gone) = (0, 0);
    let mut keys = Keys::new();
    for (position, entry) in entries.iter().enumerate() {
        if positions.next_if_eq(&position).is_some() {
            // By the key that was rendered: it may have been asked for under another spelling (citext, for example).
            keys.extend(dataset.read_key(entry.key).map(|values| (entry.key.to_owned(), values)));
        } else if entry.life_ms == 0 {
            gone += 1;
        } else {
            stored += 1;
        }
    }
    report.stored += stored;
    report.gone += gone;
    let labels = ByDatasetCause::new(dataset.name(), cause.label());
    context.metrics.stored.get_or_create(&labels).inc_by(stored);
    // What was missed was not there.
    if cause != Cause::Miss {
        context.metrics.deleted.get_or_create(&labels).inc_by(gone);
    }
    context.metrics.refused.get_or_create(&labels).inc_by(refused.len() as u64);
    note_touched(context, dataset.name(), cause, entries, refused);
    keys
}

fn note_touched(context: &Context, dataset: &str, cause: Cause, entries: &EntryBatch, refused: &[usize]) {
    let Some(history) = &context.history else { return };
    let mut positions = refused.iter().copied().peekable();
    let touches = entries.iter().enumerate().map(|(position, entry)| {
        let what = match entry.life_ms {
            _ if positions.next_if_eq(&position).is_some() => What::Refused,
            0 => What::Gone,
            _ => What::Stored,
        };
        (entry.key, what, None)
    });
    if cause == Cause::Backfill {
        // All of a dataset would leave room for nothing else.
        let (stored, others): (Vec<_>, Vec<_>) = touches.partition(|(_, what, _)| *what == What::Stored);
        history.note_stored(dataset, stored.into_iter().map(|(key, ..)| key));
        history.note((dataset, cause.label()), others.into_iter());
    } else {
        history.note((dataset, cause.label()), touches);
    }
}

/// Deletes the entries of rows that have none any more, as a step of the job.
pub(crate) async fn delete_failed(
    context: &Context,
    dataset: &Dataset,
    cause: Cause,
    poll: &Poll,
    job: &mut Job,
    failures: Vec<Failure>,
    report: &mut LoadReport,
) -> Result<(), EngineError> {
    note_failed(context, dataset, cause, &failures);
    let context = &*context.pinned().await?;
    let keys = failures.iter().filter_map(|failure| failure.key.as_deref());
    let keys: Vec<&str> = keys.filter(|key| context.redis.takes(key)).collect();
    if !keys.is_empty() {
        let current = epoch::current(context).await?;
        let precondition = dataset.precondition(&current, &poll.incarnation);
        let stamp = poll.snapshot.stamp();
        let answer = context.redis.invalidate(&precondition, stamp, &keys, &job.id, "").await?;
        report.invalidated += context.checked(Some(dataset), answer)?;
        job.count += 1;
    }
    report.add(LoadReport::of_failures(failures));
    Ok(())
}

fn note_failed(context: &Context, dataset: &Dataset, cause: Cause, failures: &[Failure]) {
    let Some(first) = failures.first() else { return };
    let labels = ByDatasetCause::new(dataset.name(), cause.label());
    context.metrics.failed.get_or_create(&labels).inc_by(failures.len() as u64);
    let failed =
        failures.iter().filter_map(|failure| Some((failure.key.as_deref()?, failure.reason.as_str())));
    let failed = failed.map(|(key, reason)| (key, What::Failed, Some(reason)));
    context.note_touches((dataset.name(), cause.label()), failed);
    let what = "rows could not be encoded, their entries are missing";
    if let Some(failed) = log_limit::due(what, dataset.name(), failures.len() as u64) {
        warn!(dataset = dataset.name(), failed, entry.key = first.key.as_deref().map(|key| cut_name(key).into_owned()), reason = %cut(&first.reason), "{what}");
    }
}

/// An explicit null, where the format has one.
pub(crate) fn null_of(format: &Format) -> Option<&'static [u8]> {
    match format {
        Format::MessagePack { .. } => Some(&[0xc0]),
        Format::Json { .. } => Some(b"null"),
        Format::Raw { .. } | Format::Hash => None,
    }
}
