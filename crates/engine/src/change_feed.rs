//! The change feed: what was committed since the cursor is applied to Redis, and the cursor moves (R10 to R12).

mod batch;
mod gather;
mod loads;
mod round;
mod verification;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Span, debug, instrument, warn};

use super::context::Context;
use super::coverage::Captures;
use super::epoch;
use super::error::EngineError;
use super::failpoint;
use super::load::Job;
use crate::stores::postgres::{ErrorKind, FeedPoll, FeedReader, OutboxState, Poll};
use crate::stores::redis::{Advance, Advanced, Epoch, PreconditionFailed};
use batch::ChangeBatch;
pub(crate) use batch::apply_own;
use cachekeeper_protocol::stamp::Snapshot;
use gather::Gatherer;
use loads::{FeedLoads, Troubles};
pub(crate) use round::{ShardFacts, ShardRound};
use verification::Verification;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was committed.
    Idle,
    /// Something was committed, and the cursor has moved; so many captured statements were applied.
    Applied(u64),
    /// Not possible now (no coverage yet, or rows of the outbox are lost); the watermark does not move.
    Waiting,
    /// The epoch, the incarnation or the cursor changed; the next step reads them again.
    Again,
}

/// Applies changes, step by step.
#[derive(Debug)]
pub struct FeedConsumer {
    context: Context,
    reader: FeedReader,
    /// Counted across batches: the reply to one advance is the beginning of the next batch.
    job: String,
    position: Option<FeedPosition>,
    troubles: Troubles,
    count_reset: Instant,
    verification: Verification,
    /// When it was last noted what triggers had left out.
    noted: Option<Instant>,
    /// Whether they have left out something since: then the cursor moves without the watermark.
    is_uncertain: bool,
    /// The watermark's snapshot and time when this one last moved it.
    moved_to: Option<(Snapshot, String)>,
    has_met_another: bool,
    has_made_pending: bool,
    /// Since when a former definition was found that is not followed.
    unfollowed: Option<Instant>,
    /// On a shard of a cluster: what is known of its cluster slots.
    round: Option<ShardRound>,
}

/// The position of the feed in Redis.
#[derive(Debug, Clone)]
struct FeedPosition {
    epoch: Epoch,
    incarnation: String,
    cursor: Snapshot,
    count: u64,
}

const COUNT_RESET_EVERY: Duration = Duration::from_secs(10);
/// While triggers go on leaving something out, it is noted this often, and told so often.
const NOTE_EVERY: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A definition that has become a former one is followed so soon, or its entries go.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(2);
/// Fewer keys in the outbox are not worth a transaction.
const COUNT_MIN: i64 = 1_000;

impl FeedConsumer {
    /// Begins where Redis says.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        Self {
            context: context.clone(),
            reader: FeedReader::new(&context.postgres),
            job: Job::new("feed").id,
            position: None,
            troubles: Troubles::default(),
            count_reset: Instant::now(),
            verification: Verification::default(),
            noted: None,
            is_uncertain: false,
            moved_to: None,
            has_met_another: false,
            has_made_pending: false,
            unfollowed: None,
            round: None,
        }
    }

    /// The same as [`Self::step`] on a shard of a cluster, in a context that takes only keys of cluster slots which the shard has
    /// adopted. Where anything about them has changed, the cursor's script runs.
    pub(crate) async fn step_on_shard(
        &mut self,
        context: Context,
        round: ShardRound,
        must_advance: bool,
    ) -> Result<Step, EngineError> {
        let is_news = self.round.as_ref().is_none_or(|last| last.facts != round.facts);
        (self.context, self.round) = (context, Some(round));
        let step = self.step(must_advance || is_news).await;
        if !matches!(step, Ok(Step::Idle | Step::Applied(_))) {
            // What has changed is still to be told.
            self.round = None;
        }
        step
    }

    /// Whether somebody else moves the cursor or the watermark too, as far as this one has noticed. With `look` it looks:
    /// on an idle database, two workers that move the cursor do not otherwise notice each other.
    pub async fn has_met_another(&mut self, look: bool) -> bool {
        if look
            && let Some((_, moved_to)) = &self.moved_to
            && let Ok(watermark) = self.context.redis.watermark().await
        {
            self.has_met_another |= watermark.is_some_and(|watermark| watermark.as_of != *moved_to);
        }
        self.has_met_another
    }

    /// Whether a step has made something pending since this was asked last: whoever revalidates need not wait for its timer.
    pub fn take_made_pending(&mut self) -> bool {
        std::mem::take(&mut self.has_made_pending)
    }

    /// Whether coverage must be computed anew, by somebody who need not hold up the cursor.
    #[must_use]
    pub fn wants_coverage(&self) -> bool {
        self.verification.wants_coverage()
    }

    /// Looks for changes once, and applies them. With `must_advance` the cursor's script runs also where nothing was
    /// committed, which notices what happened to Redis (R11).
    ///
    /// # Errors
    /// [`EngineError`]; the next step begins where Redis says.
    pub async fn step(&mut self, must_advance: bool) -> Result<Step, EngineError> {
        // In a box, as all that is deep: the stack of a thread need not hold the states of all who call one another.
        let result = Box::pin(self.try_step(must_advance)).await;
        match &result {
            Ok(Step::Idle | Step::Applied(_)) => {}
            // How many of its scripts Redis has counted is not known any more.
            Ok(Step::Waiting | Step::Again) | Err(_) => self.position = None,
        }
        result
    }

    async fn try_step(&mut self, must_advance: bool) -> Result<Step, EngineError> {
        let Some(coverage) = self.context.coverage() else {
            return Ok(Step::Waiting);
        };
        let position = match self.position.take() {
            Some(position) => position,
            None => self.find_position().await?,
        };
        if self.verification.by(&coverage) {
            // Sessions read what is set for their role only once.
            self.reader.renew();
        }
        if coverage.incarnation.as_ref() != Some(&position.incarnation) {
            // Another database may be behind the same address: nothing of it is known, not even what its captures mean.
            self.verification.require_coverage();
            return Ok(Step::Waiting);
        }
        if !must_advance
            && self.is_known_at(&position.cursor)
            && !self.reader.has_moved(position.cursor.as_str()).await
        {
            self.position = Some(position);
            return Ok(Step::Idle);
        }
        let verify = self.verification.next(must_advance);
        let polled = self.reader.poll(position.cursor.as_str(), verify.as_ref()).await;
        let polled_at = Instant::now();
        let poll = match polled {
            Ok(poll) => poll,
            Err(error) if error.kind == ErrorKind::NoIncarnation => {
                epoch::ensure(&self.context, "").await?;
                return Ok(Step::Again);
            }
            Err(error) => return Err(error.into()),
        };
        if poll.poll.incarnation != position.incarnation {
            epoch::ensure(&self.context, "").await?;
            return Ok(Step::Again);
        }
        if let Some(step) = self.look_at_outbox(&position, &poll).await? {
            return Ok(step);
        }
        self.is_uncertain = false;
        if poll.outbox.marker.0 != poll.outbox.marker.1 {
            self.note_uncaptured(&poll.outbox, &coverage.captures).await?;
        }
        if poll.outbox.marker.1 != coverage.marker {
            // The catalogs of the same snapshot say which captures it concerns.
            self.verification.require_coverage();
        }
        let is_idle = poll.poll.snapshot == position.cursor;
        self.verification.note(&self.context.catalog, &poll, is_idle);
        if is_idle {
            let has_moved = self.moved_to.as_ref().is_some_and(|(snapshot, _)| *snapshot == position.cursor);
            if must_advance || self.verification.is_at(&position.cursor) && !has_moved {
                return self.advance(position, poll.poll, &poll.as_of.0, 0).await.map(|step| match step {
                    Step::Applied(_) => Step::Idle,
                    other => other,
                });
            }
            self.position = Some(position);
            return Ok(Step::Idle);
        }
        Box::pin(self.apply(position, poll, polled_at, &coverage.captures)).await
    }

    /// Triggers have left something out. The datasets that it may concern are left out of the watermark from this step on; all others
    /// go on.
    async fn note_uncaptured(
        &mut self,
        outbox: &OutboxState,
        captures: &Captures,
    ) -> Result<(), EngineError> {
        if self.noted.is_some_and(|noted| noted.elapsed() < NOTE_EVERY) {
            // Which ones it concerns is looked up a little later. Until then the cursor moves alone.
            self.is_uncertain = true;
            return Ok(());
        }
        let gaps = self.context.postgres.note_uncaptured().await?;
        if self.noted.replace(Instant::now()).is_none_or(|noted| TELL_EVERY < noted.elapsed()) {
            warn!(
                keys = outbox.counted,
                "triggers could not write to the outbox, or it was full; what they left out is revalidated"
            );
        }
        self.verification.leave_out(captures.with_gaps(&gaps));
        // Where it was full, writers may write again.
        self.count_anew().await;
        Ok(())
    }

    /// Whether the last poll found nothing new at this snapshot, and the watermark is there: then a poll at the same one has nothing
    /// to say.
    fn is_known_at(&self, snapshot: &Snapshot) -> bool {
        let has_moved = self.moved_to.as_ref().is_some_and(|(moved_to, _)| moved_to == snapshot);
        has_moved && self.verification.is_idle_at(snapshot)
    }

    /// Reads the metadata as a counted step; begins a new epoch where that is due.
    async fn find_position(&mut self) -> Result<FeedPosition, EngineError> {
        let state = epoch::ensure(&self.context, &self.job).await?;
        let cursor = state.metadata.cursor.as_deref().and_then(|text| text.parse().ok());
        let Some(cursor) = cursor else {
            return Err(self.context.on_precondition_failed(None, PreconditionFailed::Table));
        };
        Ok(FeedPosition {
            epoch: state.epoch,
            incarnation: state.poll.incarnation,
            cursor,
            count: state.metadata.counted,
        })
    }

    /// Whether the outbox has everything since the cursor.
    async fn look_at_outbox(
        &mut self,
        position: &FeedPosition,
        found: &FeedPoll,
    ) -> Result<Option<Step>, EngineError> {
        let outbox = &found.outbox;
        if outbox.is_behind(&position.cursor, &position.incarnation) {
            epoch::begin_behind(&self.context, outbox).await?;
            return Ok(Some(Step::Again));
        }
        let postgres = &self.context.postgres;
        match &outbox.lost {
            None => {}
            Some((snapshot, life))
                if snapshot == "pending" || life.as_ref() != Some(&position.incarnation) =>
            {
                postgres.note_lost_rows().await?;
                return Ok(Some(Step::Waiting));
            }
            Some(_) => {
                postgres.end_lost_rows().await?;
                return Ok(Some(Step::Waiting));
            }
        }
        Ok(None)
    }

    #[instrument(level = "debug", name = "changes", skip_all, fields(changes = Empty))]
    async fn apply(
        &mut self,
        position: FeedPosition,
        mut found: FeedPoll,
        polled_at: Instant,
        captures: &Captures,
    ) -> Result<Step, EngineError> {
        let mut batch = ChangeBatch {
            context: &self.context,
            epoch: position.epoch,
            poll: found.poll.clone(),
            job: Job { id: self.job.clone(), count: position.count },
            loads: FeedLoads::leaving_out(&self.context, &mut self.troubles),
            has_made_pending: &mut self.has_made_pending,
            shares: BTreeMap::new(),
        };
        let mut gatherer = Gatherer::new(&self.context, captures);
        let mut portion = gatherer.next(&mut found).await?;
        while let Some(affected) = portion {
            // While one is applied, the next is read.
            let (applied, next) = tokio::join!(batch.apply(affected), gatherer.next(&mut found));
            applied?;
            portion = next?;
        }
        if gatherer.met_unknown {
            self.verification.require_coverage();
        }
        let (changes, times) = (gatherer.changes, gatherer.times);
        Span::current().record("changes", changes);
        // Before the cursor moves past what could not be loaded.
        batch.loads.record((&batch.epoch, &batch.poll.incarnation), &mut batch.job).await?;
        let count = batch.job.count;
        failpoint::reach("feed.stored");
        let as_of = found.as_of;
        let counted = found.outbox.counted;
        let step = self.advance(FeedPosition { count, ..position }, found.poll, &as_of.0, changes).await?;
        if matches!(step, Step::Applied(_)) {
            let since_poll = polled_at.elapsed();
            self.context.metrics.changes.inc_by(changes);
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
        position: FeedPosition,
        poll: Poll,
        as_of: &str,
        statements: u64,
    ) -> Result<Step, EngineError> {
        let followed: Vec<_> = self.verification.followed(&self.context.catalog).collect();
        let facts = match &self.round {
            Some(round) => Some(round.look_again().await?),
            None => None,
        };
        let of_shard = facts.as_ref().map(ShardFacts::advance);
        let is_certain = !self.is_uncertain && self.verification.is_at(&poll.snapshot);
        let watermark = is_certain.then_some(as_of);
        let advance = Advance {
            job: (&self.job, position.count),
            from: position.cursor.as_str(),
            to: &poll.snapshot,
            watermark,
            waits_for_former: self.unfollowed.is_none_or(|since| since.elapsed() < FOLLOWED_WITHIN),
            followed: &followed,
            of_shard: of_shard.as_ref(),
        };
        let answer = self.context.redis.advance(&position.epoch, &position.incarnation, &advance).await?;
        match self.context.checked(None, answer)? {
            answer @ (Advanced::Done | Advanced::MadePending) => {
                self.has_made_pending |= answer == Advanced::MadePending;
                failpoint::reach("feed.advanced");
                if let Some(as_of) = watermark {
                    self.moved_to = Some((poll.snapshot.clone(), as_of.to_owned()));
                }
                self.position =
                    Some(FeedPosition { cursor: poll.snapshot, count: position.count + 1, ..position });
                Ok(Step::Applied(statements))
            }
            Advanced::Moved => {
                debug!("another worker moved the cursor");
                self.has_met_another = true;
                Ok(Step::Again)
            }
            Advanced::Unfollowed => {
                self.unfollowed.get_or_insert_with(Instant::now);
                // What is registered is read anew, so that it can be followed.
                epoch::ensure(&self.context, "").await?;
                Ok(Step::Again)
            }
            Advanced::RolledBack => Err(EngineError::RedisRolledBack),
        }
    }

    /// A worker that keeps up does not let the outbox count as full.
    async fn reset_count(&mut self, counted: i64) {
        let most = i64::try_from(self.context.feed.limits.max_outbox).unwrap_or(i64::MAX);
        let is_due = COUNT_RESET_EVERY < self.count_reset.elapsed() && COUNT_MIN < counted;
        if is_due || most / 4 <= counted {
            self.count_anew().await;
        }
    }

    async fn count_anew(&mut self) {
        match self.context.postgres.reset_outbox_count().await {
            Ok(()) => self.count_reset = Instant::now(),
            Err(error) => debug!(%error, "the outbox is counted anew later"),
        }
    }

    /// Empties what every Redis that may come back has seen.
    pub async fn trim(&self) -> Result<(), EngineError> {
        let Some(position) = &self.position else { return Ok(()) };
        let trimmed = self
            .context
            .postgres
            .trim_outbox(&position.cursor, self.context.feed.retention, self.context.feed.limits.max_outbox)
            .await?;
        if 0 < trimmed {
            debug!(rows = trimmed, "old changes are dropped from the outbox");
        }
        Ok(())
    }
}
