//! The move of the cursor (R12): the coverage fingerprint, causes of pending revalidations (R14a), the watermark.

use crate::database::{Capture, Database, Rows, Snapshot, Tree, Version};
use crate::invariants::Invariant;
use crate::protocol::{Protocol, Say};
use crate::rules::{LateWriters, LeftOut};
use crate::state::{Cursor, Incarnation, Redis, SHARED, Set, State, Watermark};
use crate::worker::{Batch, Place, Stage};
use crate::worlds::Shared;

/// What decides the result of the query and what is captured, at some snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint {
    definition: Version,
    incarnation: Incarnation,
    /// Whether the capture was off before.
    was_off: bool,
    tree: Tree,
}

impl Protocol {
    /// The fingerprint as a poll sees it now; none where the dataset is not covered.
    pub(crate) fn coverage(&self, database: &Database) -> Option<Fingerprint> {
        let rules = &self.world.rules;
        let is_captured = match database.capture {
            Capture::On => true,
            Capture::Off => false,
            Capture::Back { next, xmax, open } => match rules.late_writers {
                LateWriters::Transactions => open.is_empty(),
                LateWriters::Ids => next <= database.oldest_running(),
                LateWriters::BelowXmax => xmax <= database.snapshot().xmin(),
                LateWriters::Nobody => true,
            },
        };
        if !is_captured || rules.prepared_are_awaited && !database.unknown.is_empty() {
            return None;
        }
        let is_definition = self.world.shared == Shared::Definition;
        let definition = if is_definition { database.rows[SHARED] } else { Version::default() };
        let incarnation = if rules.fingerprint_names_incarnation { database.incarnation } else { 0 };
        let was_off = rules.fingerprint_names_capture && database.capture != Capture::On;
        Some(Fingerprint { definition, incarnation, was_off, tree: database.tree })
    }

    /// A batch up to `to`, by a statement that verifies the fingerprint.
    pub(crate) fn batch(&self, state: &State, place: Place, to: Snapshot) -> Batch {
        let coverage = Some(self.coverage(&state.database));
        Batch { place, to, seen: state.database.rows, coverage, left_out: Set::default() }
    }

    /// Where nothing tells coverage apart, all polls are alike.
    pub(crate) fn can_poll_quickly(&self, state: &State, worker: usize) -> bool {
        let Stage::Poll(place) = state.workers[worker] else {
            return false;
        };
        self.world.changes_coverage()
            && state.database.incarnation == place.incarnation
            && state.database.snapshot() != place.cursor
    }

    /// A poll that leaves the fingerprint to a later one.
    pub(crate) fn quick_poll(&self, state: &mut State, worker: usize, say: Say<'_>) {
        let Stage::Poll(place) = state.workers[worker] else {
            return;
        };
        let stage = self.poll(state, worker, place, say);
        say(format_args!(", and does not verify the fingerprint"));
        state.workers[worker] = stage.unverified();
    }

    /// R11: the fingerprint is another, or the watermark is behind a cursor that it may reach.
    pub(crate) fn has_news(&self, state: &State, place: Place) -> bool {
        let redis = &state.redis;
        let now = self.coverage(&state.database);
        let known =
            if self.world.rules.fingerprint_is_recorded { redis.covered } else { place.known.or(now) };
        let mark = redis.watermark.filter(|mark| mark.epoch == place.epoch);
        let is_behind = mark.is_none_or(|mark| mark.stamp < place.cursor.stamp());
        self.world.keepers != 0 && (now != known || is_behind && now.is_some() && redis.is_settled())
    }

    /// R12: compares cursor, epoch and counter, then moves the cursor, and the watermark with it.
    pub(crate) fn advance(&self, state: &mut State, worker: usize, batch: Batch, say: Say<'_>) -> Stage {
        let (rules, place) = (&self.world.rules, batch.place);
        let is_in_epoch = state.redis.table_of(place.epoch).is_some()
            && state.redis.cursor.is_some_and(|cursor| cursor.epoch == place.epoch);
        let is_at_cursor = state.redis.cursor.is_some_and(|cursor| cursor.snapshot == place.cursor);
        let is_whole = !state.swallowed.contains(worker);
        let is_accepted = is_at_cursor
            && (is_in_epoch || !rules.cursor_names_epoch)
            && (is_whole || !rules.batches_are_counted);
        if !is_accepted {
            say(format_args!("W{worker} moves the cursor {} to {}: refused", place.cursor, batch.to));
            return Stage::Start;
        }
        self.breaks(state, Invariant::I6, !is_in_epoch || !is_whole);
        say(format_args!("W{worker} moves the cursor {} to {}", place.cursor, batch.to));
        state.redis.cursor = Some(Cursor { epoch: place.epoch, snapshot: batch.to, seen: batch.seen });
        state.count(worker);
        let mut next = Place { cursor: batch.to, ..place };
        if let Some(found) = batch.coverage.filter(|_| self.world.keepers != 0) {
            let is_other = self.replace_fingerprint(state, &mut next, found);
            if is_other && found.is_some() {
                say(format_args!("; the fingerprint is another"));
                if !rules.fingerprint_comes_with_cause {
                    return Stage::RecordCause(next);
                }
                self.record_cause(state);
            }
        }
        match rules.left_out {
            LeftOut::WithAdvance => self.record_slots(state, batch.left_out),
            LeftOut::AfterAdvance if !batch.left_out.is_empty() => {
                return Stage::RecordSlotsLate { place: next, left_out: batch.left_out };
            }
            LeftOut::AfterAdvance | LeftOut::BeforeAdvance | LeftOut::Never => {}
        }
        let is_verified = batch.coverage.is_some_and(|found| found.is_some());
        if !is_verified && rules.watermark_is_verified {
            Stage::Poll(next)
        } else if rules.watermark_moves_with_cursor {
            self.publish(state, next, batch.seen);
            Stage::Poll(next)
        } else {
            Stage::Publish { place: next, seen: batch.seen }
        }
    }

    /// Whether the fingerprint is not the one that the feed followed by, and there is more to it than that the tree grew.
    fn replace_fingerprint(&self, state: &mut State, place: &mut Place, found: Option<Fingerprint>) -> bool {
        if self.world.rules.fingerprint_is_recorded {
            let recorded = std::mem::replace(&mut state.redis.covered, found);
            recorded != found && !self.is_growth(recorded, found)
        } else {
            // A worker that begins takes what it finds for what it has followed.
            std::mem::replace(&mut place.known, found).is_some_and(|known| Some(known) != found)
        }
    }

    /// R12: the recorded fingerprint is that of now without the partition that is new.
    fn is_growth(&self, recorded: Option<Fingerprint>, found: Option<Fingerprint>) -> bool {
        let rules = &self.world.rules;
        let (Some(recorded), Some(found)) = (recorded, found) else { return false };
        let has_grown = recorded.tree != found.tree;
        let is_harmless = found.tree == Tree::Grown || !rules.rows_are_a_change;
        let is_same = recorded == Fingerprint { tree: recorded.tree, ..found };
        has_grown && is_harmless && (is_same || !rules.growth_is_compared)
    }

    /// R14a: one more cause that makes every entry pending.
    pub(crate) fn record_cause(&self, state: &mut State) {
        state.redis.causes += 1;
        state.redis.pending = state.redis.causes;
        if self.world.rules.cause_raises_revision {
            state.last_revision += 1;
            let is_unique = self.world.rules.revisions_are_unique;
            let next = if is_unique { state.last_revision } else { state.redis.revision + 1 };
            state.redis.revision = next;
        }
    }

    /// X28.
    pub(crate) fn record_cause_late(
        &self,
        state: &mut State,
        worker: usize,
        place: Place,
        say: Say<'_>,
    ) -> Stage {
        say(format_args!("W{worker} records the cause in a second script"));
        self.record_cause(state);
        Stage::Poll(place)
    }

    /// R10: the feed goes on without the keys that it could not load.
    pub(crate) fn leave_out(&self, batch: Batch, keys: Set) -> Stage {
        let batch = Batch { left_out: keys, ..batch };
        match self.world.rules.left_out {
            LeftOut::BeforeAdvance => Stage::RecordSlots(batch),
            LeftOut::WithAdvance | LeftOut::AfterAdvance | LeftOut::Never => Stage::Advance(batch),
        }
    }

    /// The same, once they are raised.
    pub(crate) fn leave_out_raised(
        &self,
        state: &mut State,
        worker: usize,
        batch: Batch,
        keys: Set,
    ) -> Stage {
        let rules = &self.world.rules;
        if !rules.feed_raises_first && rules.left_out_is_raised {
            let named = Some((batch.place.epoch, batch.place.incarnation));
            if self.raise(state, named, keys, batch.to.stamp(), false).is_none() {
                return Stage::Start;
            }
            state.count(worker);
        }
        self.leave_out(batch, keys)
    }

    /// R10, R14a: one more cause that makes the entries of these keys' stamp slots pending. Their stamps were raised, so
    /// the revision stays.
    pub(crate) fn record_slots(&self, state: &mut State, keys: Set) {
        if keys.is_empty() {
            return;
        }
        let redis = &mut state.redis;
        let known = redis.pending_slots.into_iter().max().filter(|known| *known != 0);
        let cause = match known {
            Some(known) if !self.world.rules.slots_take_a_new_cause => known,
            _ => {
                redis.causes += 1;
                redis.causes
            }
        };
        keys.iter().for_each(|key| redis.pending_slots[self.world.slots[key]] = cause);
    }

    /// X35.
    pub(crate) fn record_slots_late(
        &self,
        state: &mut State,
        worker: usize,
        place: Place,
        left_out: Set,
        say: Say<'_>,
    ) -> Stage {
        say(format_args!("W{worker} records afterwards that the slots of {left_out} are pending"));
        self.record_slots(state, left_out);
        Stage::Poll(place)
    }

    pub(crate) fn record_slots_early(
        &self,
        state: &mut State,
        worker: usize,
        batch: Batch,
        say: Say<'_>,
    ) -> Stage {
        if state.redis.table_of(batch.place.epoch).is_none() {
            say(format_args!("W{worker} records what is pending: of another epoch"));
            return Stage::Start;
        }
        say(format_args!("W{worker} records that the slots of {} are pending", batch.left_out));
        self.record_slots(state, batch.left_out);
        state.count(worker);
        Stage::Advance(batch)
    }

    /// R14: while something is pending, the watermark does not move.
    pub(crate) fn publish(&self, state: &mut State, place: Place, seen: Rows) {
        if self.world.rules.pending_is_durable && !state.redis.is_settled() {
            return;
        }
        state.redis.watermark = Some(Watermark {
            epoch: place.epoch,
            incarnation: place.incarnation,
            stamp: place.cursor.stamp(),
            seen,
        });
    }
}

impl Redis {
    /// Nothing is pending.
    pub(crate) fn is_settled(&self) -> bool {
        self.pending == 0 && self.pending_slots == [0; 2]
    }
}

impl Stage {
    /// The same after a poll that did not ask for the fingerprint.
    fn unverified(self) -> Self {
        let forget = |batch: Batch| Batch { coverage: None, ..batch };
        match self {
            Self::RaiseTag { batch, rows } => Self::RaiseTag { batch: forget(batch), rows },
            Self::Raise { batch, rows, members } => Self::Raise { batch: forget(batch), rows, members },
            Self::Advance(batch) => Self::Advance(forget(batch)),
            other => other,
        }
    }
}
