//! The worker: the feed from poll to cursor (R9 to R12). How it begins, creates epochs and scans is in
//! `epochs`.

use crate::coverage::Fingerprint;
use crate::database::{Database, Rows, Snapshot};
use crate::protocol::{Protocol, Say};
use crate::rules::{Page, Refusal};
use crate::scripts::{Answer, Load, Statement, StoreMode, TagPart};
use crate::state::{Cursor, Epoch, Incarnation, KEYS, RowsOf, SHARED, Set, State, Words};
use crate::worlds::{OnChange, Shared};

/// Where the worker left the feed: what it read in the header, and the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) epoch: Epoch,
    pub(crate) incarnation: Incarnation,
    pub(crate) cursor: Snapshot,
    /// X26: the fingerprint in the worker's memory, where Redis has none.
    pub(crate) known: Option<Fingerprint>,
}

/// A batch of the feed, or a revalidation, which goes from the cursor to the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(crate) place: Place,
    pub(crate) to: Snapshot,
    /// What `to` saw.
    pub(crate) seen: Rows,
    /// What the fingerprint was at `to`: not asked, or none where the dataset was not covered.
    pub(crate) coverage: Option<Option<Fingerprint>>,
    /// R10: keys that were raised and could not be loaded; their entries are kept.
    pub(crate) left_out: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Job {
    Feed,
    Revalidation,
}

/// The next step of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Reads the header.
    Start,
    /// Takes the snapshot of a new epoch; the header showed this epoch, or none.
    Floor {
        shown: Option<Epoch>,
    },
    /// Creates the epoch at that snapshot.
    Create {
        shown: Option<Epoch>,
        floor: Snapshot,
        incarnation: Incarnation,
        seen: Rows,
    },
    /// Scans Redis for what is pending.
    Scan(Place),
    /// Claims that the revalidation is done.
    RevalidationDone(Place),
    Poll(Place),
    /// K11: the snapshot in a second statement.
    PollSnapshot {
        place: Place,
        rows: Set,
    },
    RaiseTag {
        batch: Batch,
        rows: Set,
    },
    Enumerate {
        batch: Batch,
        rows: Set,
    },
    Raise {
        batch: Batch,
        rows: Set,
        members: Set,
    },
    /// K3: the raise after a separate EXISTS.
    RaiseLate {
        batch: Batch,
        keys: Set,
        existing: Set,
    },
    Load {
        batch: Batch,
        keys: Set,
        job: Job,
    },
    Store {
        batch: Batch,
        load: Load,
        left: Set,
        again: Set,
        job: Job,
    },
    /// R10: gives these keys up, so that the batch goes on.
    Invalidate {
        batch: Batch,
        keys: Set,
        job: Job,
    },
    /// The statement was sent and takes its snapshot.
    Answer {
        batch: Batch,
        keys: Set,
        job: Job,
        statement: Statement,
    },
    Advance(Batch),
    /// X28: the cause in a second script.
    RecordCause(Place),
    /// R10: records what was left out, in a script before the move of the cursor.
    RecordSlots(Batch),
    /// X35: or after it.
    RecordSlotsLate {
        place: Place,
        left_out: Set,
    },
    /// X2: the watermark in a second script.
    Publish {
        place: Place,
        seen: Rows,
    },
}

impl Protocol {
    /// Whether the worker has anything to do: a poll that sees nothing new is no step.
    pub(crate) fn worker_can_step(&self, state: &State, worker: usize) -> bool {
        match state.workers[worker] {
            Stage::Start => !self.has_retired(state, worker),
            Stage::Poll(place) => {
                self.sees_other_life(state, place)
                    || state.database.snapshot() != place.cursor
                    || self.finds_redis_moved(state, worker, place)
                    || self.has_news(state, place)
            }
            _ => true,
        }
    }

    pub(crate) fn worker_step(&self, state: &mut State, worker: usize, say: Say<'_>) {
        state.workers[worker] = match state.workers[worker] {
            Stage::Start => self.read_header(state, worker, say),
            Stage::Floor { shown } => {
                let floor = state.database.snapshot();
                say(format_args!("W{worker} takes {floor} as the floor of a new epoch"));
                let (incarnation, seen) = (state.database.incarnation, state.database.rows);
                Stage::Create { shown, floor, incarnation, seen }
            }
            Stage::Create { shown, floor, incarnation, seen } => {
                let cursor = Cursor { epoch: 0, snapshot: floor, seen };
                self.create(state, worker, shown, incarnation, cursor, say)
            }
            Stage::Scan(place) => self.scan(state, worker, place, say),
            Stage::RevalidationDone(place) => self.revalidation_done(state, worker, place, say),
            Stage::Poll(place) => self.poll(state, worker, place, say),
            Stage::PollSnapshot { place, rows } => {
                let to = state.database.snapshot();
                say(format_args!("W{worker} asks for the snapshot in a second statement: {to}"));
                let batch = self.batch(state, place, to);
                if rows.is_empty() {
                    Stage::Advance(batch)
                } else {
                    Stage::Raise { batch, rows, members: Set::default() }
                }
            }
            Stage::RaiseTag { batch, rows } => Self::raise_tag(state, worker, batch, rows, say),
            Stage::Enumerate { batch, rows } => {
                let members = state.redis.members;
                say(format_args!("W{worker} enumerates the tag: {members}"));
                self.count_read(state, worker);
                Stage::Raise { batch, rows, members }
            }
            Stage::Raise { batch, rows, members } => {
                self.raise_batch(state, worker, batch, rows, members, say)
            }
            Stage::RaiseLate { batch, keys, existing } => {
                let named = Some((batch.place.epoch, batch.place.incarnation));
                let raised = self.raise(state, named, keys, batch.to.stamp(), false);
                say(format_args!("W{worker} raises {keys}"));
                self.after_raise(state, worker, batch, raised.map(|_| existing))
            }
            Stage::Load { batch, keys, job } => self.send_load(state, worker, (batch, job), keys, say),
            Stage::Store { batch, load, left, again, job } => {
                self.store_next(state, worker, (batch, job), load, (left, again), say)
            }
            Stage::Invalidate { batch, keys, job } => self.give_up(state, worker, (batch, job), keys, say),
            Stage::Answer { batch, keys, job, statement } => {
                self.load(state, worker, (batch, job), keys, statement, say)
            }
            Stage::Advance(batch) => self.advance(state, worker, batch, say),
            Stage::RecordSlots(batch) => self.record_slots_early(state, worker, batch, say),
            Stage::RecordSlotsLate { place, left_out } => {
                self.record_slots_late(state, worker, place, left_out, say)
            }
            Stage::RecordCause(place) => self.record_cause_late(state, worker, place, say),
            Stage::Publish { place, seen } => {
                say(format_args!("W{worker} publishes watermark {} in a second script", place.cursor));
                self.publish(state, place, seen);
                Stage::Poll(place)
            }
        };
    }

    /// R9: a script that only reads what its job relies on.
    pub(crate) fn count_read(&self, state: &mut State, worker: usize) {
        if self.world.rules.reads_are_counted {
            state.count(worker);
        }
    }

    fn sees_other_life(&self, state: &State, place: Place) -> bool {
        self.world.rules.poll_names_incarnation && state.database.incarnation != place.incarnation
    }

    /// R11: the cursor script that an idle worker runs with `to` = cursor.
    fn finds_redis_moved(&self, state: &State, worker: usize, place: Place) -> bool {
        let (rules, redis) = (&self.world.rules, &state.redis);
        let is_in_place = redis.table_of(place.epoch).is_some()
            && redis.cursor.is_some_and(|cursor| cursor.snapshot == place.cursor);
        let is_pending = redis.pending != 0 && rules.pending_is_durable && self.world.keepers == 0;
        rules.idle_looks_at_redis && (!is_in_place || state.swallowed.contains(worker) || is_pending)
    }

    pub(crate) fn poll(&self, state: &mut State, worker: usize, place: Place, say: Say<'_>) -> Stage {
        if self.sees_other_life(state, place) {
            say(format_args!("W{worker} polls: another incarnation"));
            return Stage::Floor { shown: Some(place.epoch) };
        }
        let to = state.database.snapshot();
        if to == place.cursor && self.finds_redis_moved(state, worker, place) {
            say(format_args!("W{worker} is idle, and finds that Redis is not where it left it"));
            return Stage::Start;
        }
        let mut rows = state.database.changed(place.cursor, to);
        if self.world.blind == Some(worker) {
            rows = rows.without(SHARED);
        }
        if !self.world.rules.poll_is_one_statement {
            say(format_args!("W{worker} reads the outbox: {}", RowsOf(rows)));
            return Stage::PollSnapshot { place, rows };
        }
        say(format_args!("W{worker} polls {}..{to}: {}", place.cursor, RowsOf(rows)));
        let batch = self.batch(state, place, to);
        self.after_poll(batch, rows)
    }

    fn after_poll(&self, batch: Batch, rows: Set) -> Stage {
        if self.world.tags && rows.contains(SHARED) {
            Stage::RaiseTag { batch, rows }
        } else if rows.is_empty() {
            Stage::Advance(batch)
        } else {
            Stage::Raise { batch, rows, members: Set::default() }
        }
    }

    fn raise_tag(state: &mut State, worker: usize, batch: Batch, rows: Set, say: Say<'_>) -> Stage {
        if state.redis.table_of(batch.place.epoch).is_none() {
            say(format_args!("W{worker} raises the tag: of another epoch"));
            return Stage::Start;
        }
        state.redis.tag_stamp = state.redis.tag_stamp.max(batch.to.stamp());
        state.count(worker);
        say(format_args!("W{worker} raises the tag to {}", batch.to.stamp()));
        Stage::Enumerate { batch, rows }
    }

    fn raise_batch(
        &self,
        state: &mut State,
        worker: usize,
        batch: Batch,
        rows: Set,
        members: Set,
        say: Say<'_>,
    ) -> Stage {
        let own = rows.without(SHARED);
        let shared = if self.world.tags { members } else { KEYS.into_iter().collect() };
        let keys = if rows.contains(SHARED) { own.union(shared) } else { own };
        if keys.is_empty() {
            say(format_args!("W{worker} has no key to raise"));
            return Stage::Advance(batch);
        }
        if !self.world.rules.feed_raises_first && self.world.on_change == OnChange::Refresh {
            say(format_args!("W{worker} has {keys} to load, with or without an entry"));
            return Stage::Load { batch, keys, job: Job::Feed };
        }
        if !self.world.rules.raise_answers {
            let existing = keys.iter().filter(|key| state.redis.entries[*key].is_some()).collect();
            say(format_args!("W{worker} asks which of {keys} exist: {existing}"));
            return Stage::RaiseLate { batch, keys, existing };
        }
        let deletes = self.world.on_change == OnChange::Delete;
        let named = Some((batch.place.epoch, batch.place.incarnation));
        let existing = self.raise(state, named, keys, batch.to.stamp(), deletes);
        if deletes && self.world.removes_members && existing.is_some() {
            members.iter().for_each(|key| self.remove_member(state, key));
        }
        match existing {
            Some(existing) => {
                say(format_args!("W{worker} raises {keys} to {}, existing {existing}", batch.to.stamp()));
            }
            None => say(format_args!("W{worker} raises: of another epoch")),
        }
        let to_load = existing.map(|existing| if self.world.fills_first { keys } else { existing });
        self.after_raise(state, worker, batch, to_load)
    }

    fn after_raise(&self, state: &mut State, worker: usize, batch: Batch, existing: Option<Set>) -> Stage {
        let Some(keys) = existing else {
            return Stage::Start;
        };
        state.count(worker);
        if keys.is_empty() || self.world.on_change == OnChange::Delete {
            Stage::Advance(batch)
        } else {
            Stage::Load { batch, keys, job: Job::Feed }
        }
    }

    /// Where a statement may be planned long before its snapshot, that is a step of its own.
    fn send_load(
        &self,
        state: &State,
        worker: usize,
        (batch, job): (Batch, Job),
        keys: Set,
        say: Say<'_>,
    ) -> Stage {
        let statement = Self::send(state);
        if self.world.shared == Shared::Row {
            return self.load(state, worker, (batch, job), keys, statement, say);
        }
        say(format_args!("W{worker} sends a statement for {keys} under {}", state.database.rows[SHARED]));
        Stage::Answer { batch, keys, job, statement }
    }

    fn load(
        &self,
        state: &State,
        worker: usize,
        (batch, job): (Batch, Job),
        keys: Set,
        statement: Statement,
        say: Say<'_>,
    ) -> Stage {
        let database = &state.database;
        if self.world.rules.store_names_incarnation && database.incarnation != batch.place.incarnation {
            say(format_args!("W{worker} loads: another incarnation"));
            return Stage::Floor { shown: Some(batch.place.epoch) };
        }
        say(format_args!("W{worker} loads {keys} at {}", database.snapshot()));
        Stage::Store { batch, load: self.answer(state, statement), left: keys, again: Set::default(), job }
    }

    /// R10: the batch goes on, and these keys are gone.
    fn give_up(
        &self,
        state: &mut State,
        worker: usize,
        (batch, job): (Batch, Job),
        keys: Set,
        say: Say<'_>,
    ) -> Stage {
        let named = Some((batch.place.epoch, batch.place.incarnation));
        let done = self.raise(state, named, keys, batch.to.stamp(), true);
        say(format_args!("W{worker} gives up and invalidates {keys} at {}", batch.to.stamp()));
        if done.is_none() {
            return Stage::Start;
        }
        state.count(worker);
        finish(batch, job)
    }

    fn store_next(
        &self,
        state: &mut State,
        worker: usize,
        (batch, job): (Batch, Job),
        load: Load,
        (left, mut again): (Set, Set),
        say: Say<'_>,
    ) -> Stage {
        let key = left.first().unwrap();
        // R7: a page raises the floor in each of its scripts, and no slot.
        let raises_slot = job == Job::Feed || self.world.rules.page != Page::FloorInEachScript;
        let mode = StoreMode { raises_slot, tag: TagPart::Whole };
        let answer = self.store(state, batch.place.epoch, &load, key, mode);
        let entry = Database::query(&load.rows, key, self.world.deleted);
        say(format_args!("W{worker} stores k{key} = {} at {}: {answer}", Words(entry), load.stamp));
        if answer == Answer::Failed {
            return Stage::Start;
        }
        state.count(worker);
        if answer == Answer::Refused && self.world.rules.refusal != Refusal::CountsAsDone {
            again = again.with(key);
        }
        let left = left.without(key);
        if !left.is_empty() {
            Stage::Store { batch, load, left, again, job }
        } else if again.is_empty() {
            finish(batch, job)
        } else if self.world.rules.refusal == Refusal::Invalidates {
            Stage::Invalidate { batch, keys: again, job }
        } else {
            Stage::Load { batch, keys: again, job }
        }
    }
}

/// All keys are seen to: the claim comes next.
fn finish(batch: Batch, job: Job) -> Stage {
    match job {
        Job::Feed => Stage::Advance(batch),
        Job::Revalidation => Stage::RevalidationDone(batch.place),
    }
}
