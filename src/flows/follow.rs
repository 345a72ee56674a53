//! The change feed: what was committed since the cursor is applied to Redis, and the cursor moves (R10 to R12).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::catalog::Dataset;
use super::context::Context;
use super::coverage::{Coverage, Touches};
use super::error::FlowError;
use super::failpoint;
use super::invalidate::{delete_keys, members, reload_keys};
use super::reload::Job;
use super::{coverage, epoch};
use crate::config::{OnChange, Scope};
use crate::domain::stamp::Snapshot;
use crate::metrics::{ByDataset, ByReason};
use crate::stores::postgres::{Change, FeedPoll, FeedReader, KeyValues, Poll, Trouble};
use crate::stores::redis::{Advance, Advanced, Answer, Debt, Epoch};

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was committed.
    Idle,
    /// Something was committed, and the cursor has moved; so many captured statements were applied.
    Applied(u64),
    /// Something is in the way that time will clear; the watermark stands.
    Waiting,
    /// Redis or the order of things is not as it was; the next step begins there.
    Again,
}

/// Applies changes, step by step.
#[derive(Debug)]
pub struct Follower {
    context: Context,
    reader: FeedReader,
    /// Counted across batches: the reply to one advance is the beginning of the next batch.
    job: String,
    place: Option<Place>,
    /// Datasets whose keys are deleted in this batch instead of loaded, because loading has failed or took too long.
    hurried: BTreeSet<String>,
    count_reset: Instant,
    /// Entries that were deleted although Redis is to hold every row.
    dropped: Vec<String>,
}

/// Where the feed stands in Redis.
#[derive(Debug, Clone)]
struct Place {
    epoch: Epoch,
    incarnation: String,
    cursor: Snapshot,
    count: u64,
    now_ms: u64,
}

/// Keys that are gathered before they are applied.
const GATHERED: usize = 16_384;
/// Loads under way at once.
const LOADS_AHEAD: usize = 3;
/// How long the loads of one part may take before its keys are invalidated instead (R10).
const LOAD_WITHIN: Duration = Duration::from_secs(1);
const COUNT_RESET_EVERY: Duration = Duration::from_secs(10);
/// Fewer keys in the outbox are not worth a transaction.
const COUNT_MIN: i64 = 1_000;

impl Follower {
    /// Begins where Redis says.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            reader: FeedReader::new(&context.postgres),
            job: Job::new("feed").id,
            place: None,
            hurried: BTreeSet::new(),
            count_reset: Instant::now(),
            dropped: Vec::new(),
        }
    }

    /// Entries that had to be deleted although Redis is to hold every row: somebody should fill them again.
    pub fn take_dropped(&mut self) -> Vec<String> {
        std::mem::take(&mut self.dropped)
    }

    /// Looks for changes once, and applies them. With `must_advance` the cursor's script runs also where nothing was
    /// committed, which notices what happened to Redis (R11).
    ///
    /// # Errors
    /// [`FlowError`]; the next step begins where Redis says.
    pub async fn step(&mut self, must_advance: bool) -> Result<Step, FlowError> {
        let result = self.try_step(must_advance).await;
        match &result {
            Ok(Step::Idle | Step::Applied(_)) => {}
            // What was counted is not known any more.
            Ok(Step::Waiting | Step::Again) | Err(_) => self.place = None,
        }
        result
    }

    async fn try_step(&mut self, must_advance: bool) -> Result<Step, FlowError> {
        let Some(coverage) = self.context.coverage() else {
            return Ok(Step::Waiting);
        };
        let place = match self.place.take() {
            Some(place) => place,
            None => self.find_place().await?,
        };
        let polled = self.reader.poll(place.cursor.as_str()).await;
        let polled_at = Instant::now();
        let poll = match polled {
            Ok(poll) => poll,
            Err(error) if error.trouble == Trouble::NoIncarnation => {
                epoch::ensure(&self.context, "").await?;
                return Ok(Step::Again);
            }
            Err(error) => return Err(error.into()),
        };
        if poll.poll.incarnation != place.incarnation {
            epoch::ensure(&self.context, "").await?;
            return Ok(Step::Again);
        }
        if let Some(step) = self.look_at_outbox(&place, &poll).await? {
            return Ok(step);
        }
        if poll.poll.snapshot == place.cursor {
            if must_advance {
                return self.advance(place, poll.poll, &poll.as_of.0, &coverage, 0).await.map(
                    |step| match step {
                        Step::Applied(_) => Step::Idle,
                        other => other,
                    },
                );
            }
            self.place = Some(place);
            return Ok(Step::Idle);
        }
        self.apply(place, poll, polled_at, coverage).await
    }

    /// Reads the head, counted, and begins a new epoch where that is due.
    async fn find_place(&mut self) -> Result<Place, FlowError> {
        let order = epoch::ensure(&self.context, &self.job).await?;
        let cursor = order.head.cursor.as_deref().and_then(|text| text.parse().ok());
        let Some(cursor) = cursor else {
            return Err(FlowError::Gone(crate::stores::redis::Gone::Table));
        };
        Ok(Place {
            epoch: order.epoch,
            incarnation: order.poll.incarnation,
            cursor,
            count: order.head.counted,
            now_ms: order.head.now_ms,
        })
    }

    /// Whether the outbox has everything since the cursor.
    async fn look_at_outbox(&mut self, place: &Place, found: &FeedPoll) -> Result<Option<Step>, FlowError> {
        let outbox = &found.outbox;
        if outbox.is_behind(&place.cursor, &place.incarnation) {
            epoch::begin_behind(&self.context, outbox).await?;
            return Ok(Some(Step::Again));
        }
        let postgres = &self.context.postgres;
        match &outbox.overflow {
            None => {}
            Some((snapshot, life)) if snapshot == "pending" || life.as_ref() != Some(&place.incarnation) => {
                postgres.begin_overflow().await?;
                return Ok(Some(Step::Waiting));
            }
            Some(_) => {
                postgres.end_overflow().await?;
                return Ok(Some(Step::Waiting));
            }
        }
        let most = i64::try_from(self.context.feed.limits.max_outbox).unwrap_or(i64::MAX);
        if most < outbox.counted {
            warn!(
                keys = outbox.counted,
                "the outbox was full while no worker applied it; everything is looked at again"
            );
            postgres.begin_overflow().await?;
            return Ok(Some(Step::Waiting));
        }
        Ok(None)
    }

    async fn apply(
        &mut self,
        place: Place,
        mut found: FeedPoll,
        polled_at: Instant,
        mut coverage: Arc<Coverage>,
    ) -> Result<Step, FlowError> {
        let mut batch = Batch {
            context: &self.context,
            epoch: place.epoch,
            now_ms: place.now_ms,
            poll: found.poll.clone(),
            job: Job { id: self.job.clone(), count: place.count },
            hurried: &mut self.hurried,
            dropped: &mut self.dropped,
            touched: Touched::default(),
        };
        let mut statements = 0;
        let mut times: Vec<i64> = Vec::new();
        while let Some(group) = found.changes.recv().await {
            let group = group?;
            let is_known = group.iter().all(|change| {
                coverage.captures.get(&change.capture).is_some_and(|known| change.version <= known.version)
            });
            if !is_known {
                // Installed since the last look.
                self.context.set_coverage(coverage::look(&self.context, false).await?);
                coverage = self.context.coverage().unwrap_or(coverage);
            }
            statements += group.len() as u64;
            for change in &group {
                times.push(change.at_us);
                batch.touch(&coverage, change);
            }
            if GATHERED <= batch.touched.key_count {
                batch.flush().await?;
            }
        }
        batch.flush().await?;
        let count = batch.job.count;
        failpoint::reach("feed.stored");
        let as_of = found.as_of;
        let counted = found.outbox.counted;
        let step =
            self.advance(Place { count, ..place }, found.poll, &as_of.0, &coverage, statements).await?;
        if matches!(step, Step::Applied(_)) {
            let since_poll = polled_at.elapsed();
            self.hurried.clear();
            self.context.metrics.changes.inc_by(statements);
            for at in times {
                let before = Duration::from_micros(u64::try_from(as_of.1 - at).unwrap_or_default());
                self.context.metrics.feed_lag_seconds.observe((before + since_poll).as_secs_f64());
            }
            self.reset_count(counted).await;
        }
        Ok(step)
    }

    async fn advance(
        &mut self,
        place: Place,
        poll: Poll,
        as_of: &str,
        coverage: &Coverage,
        statements: u64,
    ) -> Result<Step, FlowError> {
        let followed = self.followed(coverage);
        let debt = Debt::new("followed anew", place.now_ms);
        let advance = Advance {
            job: (&self.job, place.count),
            from: place.cursor.as_str(),
            to: &poll.snapshot,
            as_of,
            followed: &followed,
            debt: &debt,
        };
        match self.context.redis.advance(&place.epoch, &place.incarnation, &advance).await? {
            Answer::Done(Advanced::Done) => {
                failpoint::reach("feed.advanced");
                self.place = Some(Place { cursor: poll.snapshot, count: place.count + 1, ..place });
                Ok(Step::Applied(statements))
            }
            Answer::Done(Advanced::Moved) => {
                debug!("another worker moved the cursor");
                Ok(Step::Again)
            }
            Answer::Done(Advanced::WentBack) => Err(FlowError::WentBack),
            Answer::Gone(gone) => {
                self.context.set_epoch(None);
                Err(FlowError::Gone(gone))
            }
        }
    }

    /// What this process follows, and has not left to a newer one.
    fn followed(&self, coverage: &Coverage) -> Vec<(String, String)> {
        let mut followed = coverage.followed();
        followed.retain(|(name, _)| {
            self.context.catalog.get(name).is_some_and(|dataset| !dataset.is_displaced())
        });
        followed
    }

    /// A worker that keeps up does not let the outbox count as full.
    async fn reset_count(&mut self, counted: i64) {
        let most = i64::try_from(self.context.feed.limits.max_outbox).unwrap_or(i64::MAX);
        let is_due = COUNT_RESET_EVERY < self.count_reset.elapsed() && COUNT_MIN < counted;
        if !is_due && counted < most / 4 {
            return;
        }
        match self.context.postgres.reset_outbox_count().await {
            Ok(()) => self.count_reset = Instant::now(),
            Err(error) => debug!(%error, "the outbox is counted anew later"),
        }
    }

    /// Empties what every Redis that may come back has seen.
    ///
    /// # Errors
    /// [`FlowError`].
    pub async fn trim(&self) -> Result<(), FlowError> {
        let Some(place) = &self.place else { return Ok(()) };
        let trimmed = self.context.postgres.trim_outbox(&place.cursor, self.context.feed.retention).await?;
        if 0 < trimmed {
            info!(partitions = trimmed, "old changes are dropped from the outbox");
        }
        Ok(())
    }
}

/// What changes touch, each thing once.
#[derive(Debug, Default)]
struct Touched {
    keys: BTreeMap<String, HashMap<String, KeyValues>>,
    tags: BTreeSet<String>,
    whole: BTreeSet<String>,
    key_count: usize,
}

/// One batch under way.
struct Batch<'a> {
    context: &'a Context,
    epoch: Epoch,
    now_ms: u64,
    poll: Poll,
    job: Job,
    hurried: &'a mut BTreeSet<String>,
    dropped: &'a mut Vec<String>,
    touched: Touched,
}

impl Batch<'_> {
    fn touch(&mut self, coverage: &Coverage, change: &Change) {
        let Some(captured) = coverage.captures.get(&change.capture) else {
            // Nobody knows what it was: everything is looked at again.
            self.touched.whole.extend(self.context.catalog.iter().map(|dataset| dataset.name().to_owned()));
            return;
        };
        // Captured with other columns than now: what stands where is not known.
        let rows = change.rows.as_ref().filter(|_| change.version == captured.version);
        for rule in &captured.rules {
            match (&rule.touches, rows) {
                (Touches::Dataset, _) | (_, None) => {
                    self.touched.whole.insert(rule.dataset.name().to_owned());
                }
                (Touches::Key(positions), Some(rows)) => self.touch_keys(&rule.dataset, positions, rows),
                (Touches::Tag(template, positions), Some(rows)) => {
                    for row in rows {
                        let Some(values) = pick(positions, row) else { continue };
                        let values: Vec<&str> = values.iter().map(String::as_str).collect();
                        self.touched.tags.extend(template.render(&values).ok());
                    }
                }
            }
        }
    }

    fn touch_keys(&mut self, dataset: &Dataset, positions: &[usize], rows: &[Vec<Option<String>>]) {
        if !self.touched.keys.contains_key(dataset.name()) {
            self.touched.keys.insert(dataset.name().to_owned(), HashMap::new());
        }
        let Some(keys) = self.touched.keys.get_mut(dataset.name()) else { return };
        for row in rows {
            let Some(values) = pick(positions, row) else { continue };
            let Some(key) = dataset.key_of(&values) else { continue };
            self.touched.key_count += usize::from(keys.insert(key, values).is_none());
        }
    }

    /// Applies what was gathered: whole datasets first, because they raise the floor.
    async fn flush(&mut self) -> Result<(), FlowError> {
        let touched = std::mem::take(&mut self.touched);
        if !touched.whole.is_empty() {
            let names: Vec<String> = touched.whole.iter().cloned().collect();
            info!(datasets = names.join(", "), "a whole table changed, every entry is looked at again");
            let debt = Debt::new("whole table changed", self.now_ms);
            let at = (&self.epoch, self.poll.incarnation.as_str());
            let floor = Some(self.poll.snapshot.stamp());
            match self.context.redis.owe(at, &debt, &names, floor, &self.job.id).await? {
                Answer::Done(_) => self.job.count += 1,
                Answer::Gone(gone) => {
                    self.context.set_epoch(None);
                    return Err(FlowError::Gone(gone));
                }
            }
        }
        if !touched.tags.is_empty() {
            let tags: Vec<String> = touched.tags.into_iter().collect();
            failpoint::reach("feed.tags");
            members(self.context, (&self.epoch, &self.poll), &tags, None, &mut self.job).await?;
        }
        for (name, keys) in touched.keys {
            let Some(dataset) = self.context.catalog.get(&name).filter(|dataset| !dataset.is_displaced())
            else {
                continue;
            };
            let labels = ByDataset::new(&name);
            self.context.metrics.changed_keys.get_or_create(&labels).inc_by(keys.len() as u64);
            self.apply_keys(dataset, keys.into_iter().collect()).await?;
        }
        Ok(())
    }

    async fn apply_keys(
        &mut self,
        dataset: &Dataset,
        keys: Vec<(String, KeyValues)>,
    ) -> Result<(), FlowError> {
        let (context, poll) = (self.context, &self.poll);
        let is_hurried = self.hurried.contains(dataset.name());
        let is_deleted = dataset.settings.on_change == OnChange::Delete || is_hurried;
        let id = self.job.id.clone();
        let parts = keys.chunks(dataset.settings.batch).map(|part| {
            let mut job = Job { id: id.clone(), count: 0 };
            async move {
                if is_deleted {
                    delete_keys(context, poll, part, &mut job).await?;
                    let dropped = part.iter().filter(|_| is_hurried).map(|(key, _)| key.clone()).collect();
                    return Ok((job.count, dropped));
                }
                let work = reload_keys(context, dataset, poll, part.to_vec(), &mut job);
                match tokio::time::timeout(LOAD_WITHIN, work).await {
                    Ok(done) => done.map(|report| {
                        let dropped = report.failures.into_iter().filter_map(|failure| failure.key);
                        (job.count, dropped.collect::<Vec<_>>())
                    }),
                    Err(_elapsed) => Err(FlowError::Slow { dataset: dataset.name().to_owned() }),
                }
            }
        });
        let mut parts = stream::iter(parts.collect::<Vec<_>>()).buffer_unordered(LOADS_AHEAD);
        while let Some(part) = parts.next().await {
            match part {
                Ok((count, dropped)) => {
                    self.job.count += count;
                    if dataset.settings.scope == Scope::All && self.dropped.len() < GATHERED {
                        self.dropped.extend(dropped);
                    }
                }
                Err(error) => {
                    Self::give_up_loading(context, self.hurried, dataset, &error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// A dataset that cannot be loaded must not hold up the others: this batch begins again, and then its keys go.
    fn give_up_loading(
        context: &Context,
        hurried: &mut BTreeSet<String>,
        dataset: &Dataset,
        error: &FlowError,
    ) {
        let is_own_fault = match error {
            FlowError::Slow { .. } | FlowError::Dataset { .. } => true,
            FlowError::Source(error) => !matches!(
                error.trouble,
                Trouble::Unavailable | Trouble::NoIncarnation | Trouble::Standby | Trouble::NoSchema
            ),
            FlowError::Cache(_)
            | FlowError::Gone(_)
            | FlowError::Retired
            | FlowError::Displaced { .. }
            | FlowError::WentBack
            | FlowError::Cancelled => false,
        };
        if is_own_fault {
            context.metrics.feed_restarts.get_or_create(&ByReason::new("load")).inc();
            warn!(dataset = dataset.name(), %error, "changed entries cannot be loaded, they are deleted instead");
            hurried.insert(dataset.name().to_owned());
        }
    }
}

/// The values of a row at these positions; none where one is null: no key and no tag has it.
fn pick(positions: &[usize], row: &[Option<String>]) -> Option<KeyValues> {
    positions.iter().map(|position| row.get(*position).cloned().flatten()).collect()
}
