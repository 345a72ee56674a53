//! Pending revalidations: every entry of a dataset, or those of some stamp slots, are reloaded or deleted, by a counted scan of
//! Redis (R14). A scan of the table would miss the entries whose rows are gone. Where Redis is to hold every row, a backfill comes
//! first where there are many entries: it is one statement, and the scan then sees to what it has not stored.
//!
//! Entries that are in use come first, as far as Redis tells. How far it is stands in the metadata, so that one that is interrupted
//! goes on where its scan was: else one that takes longer than workers live would never end.
//!
//! One statement at a time, at most so many entries a second as the dataset says, and none before a probe was answered: what is
//! pending because the database was in trouble must not be what keeps it there.

mod most_used;

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, instrument};

use super::backfill::{BackfillOptions, KEYS_MAX, Progress, StoredKeys, Whole, backfill_for};
use super::catalog::Dataset;
use super::context::Context;
use super::epoch;
use super::error::EngineError;
use super::failpoint;
use super::load::{self, Cause, Job, Keys, LoadOptions, LoadReport, load};
use super::log_limit;
use super::rate_limit::RateLimit;
use crate::stores::postgres::{KeyValues, Poll, QUICK_MAX};
use crate::stores::redis::{
    Epoch, Metadata, Missing, PendingRevalidation, PendingSlots, RevalidationProgress, ScanPlace, ServerLife,
    Settled,
};
use cachekeeper_config::OnNewEpoch;
use cachekeeper_protocol::slot_set::SlotSet;
use most_used::MostUsed;

/// Keys of one script of the scan.
const PAGE: usize = 500;
/// The same where hardly any of them has to be seen to.
const PAGE_BEHIND_BACKFILL: usize = 2_000;
/// The least of a scan at a rate.
const PAGE_MIN: usize = 10;

/// Keys in Redis from which on a backfill comes first.
const FILL_MIN: u64 = 20_000;
/// Entries in use that come first at a rate: as many as so many seconds take. What is interrupted meanwhile begins anew.
const USED_FOR_SECONDS: usize = 300;
/// How often it is noted how far it is.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// Runs a dataset's pending revalidation; without one, nothing is done.
///
/// # Errors
/// [`EngineError`]; it stays pending until a scan is whole.
#[instrument(level = "debug", name = "revalidation", skip_all, fields(dataset = dataset.name()))]
pub async fn run(
    context: &Context,
    dataset: &Dataset,
    policy: OnNewEpoch,
    cancel: &CancellationToken,
) -> Result<LoadReport, EngineError> {
    let mut job = Job::new("revalidation");
    let life = context.redis.server_life().await?;
    let state = epoch::ensure(context, &job.id).await?;
    job.count = state.metadata.counted;
    let whole = state.metadata.pending.get(dataset.name()).map(PendingRevalidation::reason);
    let slots = state.metadata.slots.get(dataset.name()).map(PendingSlots::reason);
    let Some(reason) = whole.or(slots) else {
        return Ok(LoadReport::default());
    };
    // The dataset is described before the scan, so that a key that fits several templates goes to the right one.
    load::probe(context, dataset, QUICK_MAX).await?;
    let mut scan = RevalidationScan {
        context,
        dataset,
        policy,
        epoch: state.epoch,
        poll: &state.poll,
        job,
        slots: None,
        stored: StoredKeys::default(),
        is_filled: false,
        rate: RateLimit::new(dataset.settings.revalidation_rate),
        cancel,
        entries: None,
        done_before: 0,
        place: None,
        noted: None,
        report: LoadReport::default(),
    };
    let settled = if whole.is_some() {
        let former = interrupted(&state.metadata, dataset, &life);
        let what = "revalidating every entry";
        if let Some(times) = log_limit::due(what, dataset.name(), 1) {
            let done = former.as_ref().map_or(0, |(progress, _)| progress.done);
            info!(dataset = dataset.name(), reason, done, times, "{what}");
        }
        match former {
            Some((progress, place)) => scan.resume(progress, place),
            None => scan.begin(&state.metadata, &life).await?,
        }
    } else {
        let what = "revalidating the entries that could not be loaded";
        if let Some(times) = log_limit::due(what, dataset.name(), 1) {
            info!(dataset = dataset.name(), reason, times, "{what}");
        }
        Settled::Slots { cause: scan.take_slots().await? }
    };
    scan.run().await?;
    // SCAN cursors mean nothing to another server, also one that lost nothing.
    if !context.redis.is_in(&life).await? {
        return Err(EngineError::RedisRolledBack);
    }
    scan.claim(settled).await
}

/// How far one came that was interrupted, where its scan can go on: in the same life of the server, and with no cause after those
/// that it has seen.
fn interrupted<'a>(
    metadata: &'a Metadata,
    dataset: &Dataset,
    life: &ServerLife,
) -> Option<(&'a RevalidationProgress, ScanPlace)> {
    let pending = metadata.pending.get(dataset.name())?;
    let progress = metadata.progress.get(dataset.name())?;
    let place = progress.place.as_ref()?;
    let can_go_on =
        pending.cause() <= place.cause && matches!(life, ServerLife::Run(run_id) if *run_id == place.run_id);
    can_go_on.then(|| (progress, place.clone()))
}

/// Whether one statement for all rows costs less than loads by key. Where little is in Redis, the backfill that follows fills it;
/// where there is too much, the worker's memory does not hold which entries were stored. At a rate, one statement would keep its
/// snapshot for as long as it all takes.
async fn is_worth_filling(context: &Context, dataset: &Dataset) -> Result<bool, EngineError> {
    Ok(dataset.is_filled_whole()
        && dataset.settings.revalidation_rate.is_none()
        && (FILL_MIN..=KEYS_MAX).contains(&context.redis.key_count().await?))
}

struct RevalidationScan<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    policy: OnNewEpoch,
    epoch: Epoch,
    poll: &'a Poll,
    job: Job,
    /// Only entries of these stamp slots; none: every entry.
    slots: Option<SlotSet>,
    /// What this run has seen to before the scan, which need not be looked at.
    stored: StoredKeys,
    /// A backfill has come before the scan.
    is_filled: bool,
    rate: RateLimit,
    cancel: &'a CancellationToken,
    /// Entries in Redis when it began.
    entries: Option<u64>,
    /// Entries that it had seen to before it was interrupted.
    done_before: u64,
    /// Where it can go on if it is interrupted. Not behind a backfill: only this process knows what that has stored.
    place: Option<ScanPlace>,
    /// When it was last noted how far it is.
    noted: Option<Instant>,
    report: LoadReport,
}

impl RevalidationScan<'_> {
    /// What comes before the scan of every entry. Answers what is settled in the end.
    async fn begin(&mut self, metadata: &Metadata, life: &ServerLife) -> Result<Settled, EngineError> {
        let is_refreshing = self.policy == OnNewEpoch::Refresh;
        // Where one has just lost Postgres, its statement may be why: loads by key are smaller.
        let may_fill = self.context.lost_backfills.times(self.dataset.name()) == 0;
        let is_filling = is_refreshing && may_fill && is_worth_filling(self.context, self.dataset).await?;
        // A backfill is so fast that to find out what is in use would make it half as long again.
        if is_refreshing && !is_filling {
            let a_while = self.rate_of_load().map(|rate| rate.saturating_mul(USED_FOR_SECONDS));
            self.most_used_first(a_while.unwrap_or(usize::MAX)).await?;
        }
        let cause = metadata.causes;
        if is_filling {
            self.fill_first().await?;
            return Ok(Settled::Revalidation { cause, missing: Missing::Filled(metadata.now_ms) });
        }
        if let ServerLife::Run(run_id) = life {
            self.place = Some(ScanPlace { cause, run_id: run_id.clone(), cursor: 0 });
        }
        Ok(Settled::Revalidation { cause, missing: self.missing() })
    }

    /// Goes on where another one was interrupted; only what that has seen is settled.
    fn resume(&mut self, progress: &RevalidationProgress, place: ScanPlace) -> Settled {
        (self.entries, self.done_before) = (Some(progress.entries), progress.done);
        let cause = place.cause;
        self.place = Some(place);
        Settled::Revalidation { cause, missing: self.missing() }
    }

    fn missing(&self) -> Missing {
        if self.dataset.is_filled_whole() { Missing::Unfilled } else { Missing::NotWanted }
    }

    /// Most entries that are loaded a second.
    fn rate_of_load(&self) -> Option<usize> {
        self.dataset.settings.revalidation_rate.and_then(|rate| usize::try_from(rate).ok())
    }

    /// Only the pending stamp slots are looked at. Answers the newest cause that they come from.
    async fn take_slots(&mut self) -> Result<u64, EngineError> {
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let answer = self.context.redis.pending_slots(&precondition, &self.job.id).await?;
        let seen = self.context.checked(Some(self.dataset), answer)?;
        self.job.count += 1;
        self.slots = Some(seen.slots);
        // An entry that could not be loaded is loaded, whatever is done in a new epoch.
        self.policy = OnNewEpoch::Refresh;
        Ok(seen.cause)
    }

    /// Sees to the entries that are in use, at most so many.
    async fn most_used_first(&mut self, most: usize) -> Result<(), EngineError> {
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let found = MostUsed::find(self.context, self.dataset, &precondition, self.cancel).await?;
        self.entries = Some(found.entries);
        let used = found.first(most);
        used.iter().for_each(|(key, _)| self.stored.add(key));
        self.revalidate(used).await?;
        self.stored.sort();
        self.note_progress(self.done()).await
    }

    /// The causes that are settled were read before its statement is sent.
    async fn fill_first(&mut self) -> Result<(), EngineError> {
        let rate = self.dataset.backfill_rate();
        let (progress, told) = tokio::sync::watch::channel(Progress::default());
        let options =
            BackfillOptions { cancel: self.cancel.clone(), rate, progress: Some(progress), resume: false };
        let (mut stored, mut job) = (std::mem::take(&mut self.stored), self.job.clone());
        let whole = Whole { job: &mut job, stored: &mut stored };
        let filled = {
            let mut filling = pin!(backfill_for(self.context, self.dataset, &options, Some(whole)));
            loop {
                tokio::select! {
                    filled = &mut filling => break filled,
                    () = tokio::time::sleep(NOTE_EVERY) => {
                        let entries = told.borrow().entries;
                        self.note_progress(entries).await?;
                    }
                }
            }
        };
        let filled = filled.inspect_err(|error| {
            if error.is_source_down() {
                self.context.lost_backfills.note(self.dataset.name(), Some(&self.poll.incarnation));
            }
        })?;
        self.job = job;
        self.report.add(filled);
        stored.sort();
        self.stored = stored;
        self.is_filled = true;
        Ok(())
    }

    /// Sees to one page while the next is read.
    async fn run(&mut self) -> Result<(), EngineError> {
        let mut gathered: Keys = Vec::new();
        let begin = self.place.as_ref().map_or(0, |place| place.cursor);
        let (mut cursor, mut keys) = self.page(begin).await?;
        loop {
            if self.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            failpoint::reach("revalidation.page");
            let next = async { if cursor == 0 { Ok(None) } else { self.page(cursor).await.map(Some) } };
            // The reply is on its way while this looks at the keys.
            let (next, wanted) = tokio::join!(next, async { self.wanted(keys) });
            gathered.extend(wanted);
            self.job.count += 1;
            let next = next?;
            let enough = self.dataset.settings.batch.min(self.rate_of_load().unwrap_or(usize::MAX));
            if enough <= gathered.len() || next.is_none() {
                self.revalidate(std::mem::take(&mut gathered)).await?;
                if let Some(place) = &mut self.place {
                    place.cursor = cursor;
                }
            }
            let Some(page) = next else { return Ok(()) };
            (cursor, keys) = page;
        }
    }

    async fn page(&self, cursor: u64) -> Result<(u64, Vec<String>), EngineError> {
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let page = if self.is_filled { PAGE_BEHIND_BACKFILL } else { PAGE };
        // At a rate, it goes on at most a second's worth before where it was interrupted.
        let page = (cursor, self.rate_of_load().map_or(page, |rate| page.min(rate.max(PAGE_MIN))));
        let prefix = self.dataset.settings.key.prefix();
        let answer = self.context.redis.scan_keys(&precondition, &self.job.id, page, prefix).await?;
        self.context.checked(Some(self.dataset), answer)
    }

    /// Those that must be seen to.
    fn wanted(&self, keys: Vec<String>) -> Keys {
        let wanted = keys.into_iter().filter_map(|key| {
            let is_elsewhere = self.slots.as_ref().is_some_and(|slots| !slots.contains(&key));
            if is_elsewhere || self.stored.contains(&key) {
                return None;
            }
            let (dataset, values) = self.context.catalog.of_key(&key)?;
            (dataset.name() == self.dataset.name()).then_some((key, values))
        });
        wanted.collect()
    }

    /// Loads these entries, no more at once than a second's worth, or deletes them, which costs the database nothing.
    async fn revalidate(&mut self, keys: Keys) -> Result<(), EngineError> {
        let a_second = self.rate_of_load().unwrap_or(usize::MAX).max(1);
        for chunk in keys.chunks(a_second.min(self.dataset.settings.batch)) {
            if self.policy == OnNewEpoch::Refresh {
                let because = LoadOptions::because(Cause::Revalidation);
                self.report.add(load(self.context, self.dataset, chunk, because, &mut self.job).await?);
                tokio::select! {
                    () = self.cancel.cancelled() => return Err(EngineError::Cancelled),
                    () = self.rate.spend(chunk.len() as u64) => {}
                }
            } else {
                self.delete(chunk).await?;
            }
            if self.noted.is_none_or(|noted| NOTE_EVERY <= noted.elapsed()) {
                self.note_progress(self.done()).await?;
            }
        }
        Ok(())
    }

    async fn delete(&mut self, keys: &[(String, KeyValues)]) -> Result<(), EngineError> {
        let context = self.context.pinned().await?;
        let names = keys.iter().map(|(key, _)| key.as_str());
        let names: Vec<&str> = names.filter(|key| context.redis.takes(key)).collect();
        if names.is_empty() {
            return Ok(());
        }
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let stamp = self.poll.snapshot.stamp();
        let answer = context.redis.invalidate(&precondition, stamp, &names, &self.job.id, "").await?;
        self.report.invalidated += self.context.checked(Some(self.dataset), answer)?;
        self.job.count += 1;
        Ok(())
    }

    /// Entries that were loaded again or deleted.
    fn done(&self) -> u64 {
        self.done_before + self.report.stored + self.report.gone + self.report.invalidated
    }

    async fn note_progress(&mut self, done: u64) -> Result<(), EngineError> {
        self.noted = Some(Instant::now());
        // Some stamp slots were not counted; of the others, some may have come meanwhile.
        let Some(entries) = self.entries else { return Ok(()) };
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let progress = RevalidationProgress { done, entries: entries.max(done), place: self.place.clone() };
        let answer = self.context.redis.note_progress(&precondition, &progress).await?;
        self.context.checked(Some(self.dataset), answer)
    }

    async fn claim(self, settled: Settled) -> Result<LoadReport, EngineError> {
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let answer =
            self.context.redis.finish_job(&precondition, &self.job.id, self.job.count, settled).await?;
        self.context.claimed(Some(self.dataset), answer)?;
        Ok(self.report)
    }
}
