//! What one load has read is stored under its stamp; what was refused, failed or is absent is told apart.

use std::collections::HashSet;

use tracing::{debug, warn};

use super::{Cause, Job, Keys, LoadOptions, LoadReport, LoadedValues, Storing};
use crate::catalog::Dataset;
use crate::context::Context;
use crate::encode::Failure;
use crate::epoch;
use crate::error::{EngineError, chain};
use crate::metrics::ByDatasetCause;
use crate::stores::postgres::Poll;
use crate::stores::redis::StoreMode;
use cachekeeper_config::Format;
use cachekeeper_protocol::entry::EntryBatch;

/// The entries of one load on their way to Redis.
pub(crate) struct BatchOfLoad<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    options: LoadOptions,
    poll: &'a Poll,
    job: &'a mut Job,
    /// Asked for, and not seen yet.
    missing: HashSet<&'a str>,
    report: LoadReport,
    refused: Keys,
}

impl<'a> BatchOfLoad<'a> {
    /// Begins the stores of a load of these keys.
    pub fn new(
        context: &'a Context,
        dataset: &'a Dataset,
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
        Self { context, dataset, options, poll, job, missing, report, refused }
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
        let current = epoch::current(context).await?;
        let precondition = dataset.precondition(&current, &self.poll.incarnation);
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
    pub fn add_absent(&mut self, failures: &[Failure], entries: &mut EntryBatch) {
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
            self.report.add(LoadReport { failures, ..LoadReport::default() });
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
    context.metrics.deleted.get_or_create(&labels).inc_by(gone);
    context.metrics.refused.get_or_create(&labels).inc_by(refused.len() as u64);
    keys
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
    let keys: Vec<&str> = failures.iter().filter_map(|failure| failure.key.as_deref()).collect();
    if !keys.is_empty() {
        let current = epoch::current(context).await?;
        let precondition = dataset.precondition(&current, &poll.incarnation);
        let stamp = poll.snapshot.stamp();
        let answer = context.redis.invalidate(&precondition, stamp, &keys, &job.id, "").await?;
        report.invalidated += context.checked(Some(dataset), answer)?;
        job.count += 1;
    }
    report.add(LoadReport { failures, ..LoadReport::default() });
    Ok(())
}

fn note_failed(context: &Context, dataset: &Dataset, cause: Cause, failures: &[Failure]) {
    let Some(first) = failures.first() else { return };
    let labels = ByDatasetCause::new(dataset.name(), cause.label());
    context.metrics.failed.get_or_create(&labels).inc_by(failures.len() as u64);
    warn!(dataset = dataset.name(), failed = failures.len(), entry.key = first.key.as_deref(),
        reason = %first.reason, "rows have no entry");
}

/// An explicit null, where the format has one.
fn null_of(format: &Format) -> Option<&'static [u8]> {
    match format {
        Format::MessagePack { .. } => Some(&[0xc0]),
        Format::Json { .. } => Some(b"null"),
        Format::Raw { .. } => None,
    }
}
