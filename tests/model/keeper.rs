//! Revalidations beside the feed (R14): a counted scan of Redis whose claim settles what was pending before it began. Where Redis is to
//! hold every row, a backfill comes first, as steps of the same job, and the scan passes over what it has stored.

use crate::database::Database;
use crate::invariants::Invariant;
use crate::protocol::{Protocol, Say};
use crate::rules::Page;
use crate::scripts::{Answer, Load, Statement, StoreMode, TagPart};
use crate::state::{Cause, Epoch, Incarnation, KEYS, Set, State, Words};

/// One revalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Run {
    epoch: Epoch,
    incarnation: Incarnation,
    /// R14a: the newest cause when it began.
    newest: Cause,
    /// The stamp slots whose entries it revalidates.
    slots: Set,
    /// Its backfill has not ended.
    is_filling: bool,
    /// What that has stored.
    stored: Set,
}

/// The next step of a revalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Keeper {
    Idle,
    /// The backfill: its statement, which takes a snapshot, and a script for each row.
    Fill(Run),
    FillAnswer {
        run: Run,
        statement: Statement,
    },
    FillStore {
        run: Run,
        load: Load,
        left: Set,
        again: Set,
    },
    Scan(Run),
    Load {
        run: Run,
        keys: Set,
    },
    Answer {
        run: Run,
        keys: Set,
        statement: Statement,
    },
    Store {
        run: Run,
        load: Load,
        left: Set,
        again: Set,
    },
    Claim(Run),
}

/// The counted job of a revalidation; those of the workers come before.
fn job_of(keeper: usize) -> usize {
    2 + keeper
}

impl Protocol {
    pub(crate) fn keeper_can_step(&self, state: &State, keeper: usize) -> bool {
        let redis = &state.redis;
        let is_current = redis.table.is_some_and(|table| table.incarnation == state.database.incarnation);
        state.keepers[keeper] != Keeper::Idle || is_current && !redis.is_settled()
    }

    pub(crate) fn keeper_step(&self, state: &mut State, keeper: usize, say: Say<'_>) {
        state.keepers[keeper] = match state.keepers[keeper] {
            Keeper::Idle => self.begin_revalidation(state, keeper, say),
            Keeper::Fill(run) => {
                let revision = state.redis.revision;
                say(format_args!("K{keeper} reads revision {revision} and sends a statement for every row"));
                Keeper::FillAnswer { run, statement: Self::send(state) }
            }
            Keeper::FillAnswer { run, statement } => {
                let load = self.answer(state, statement);
                say(format_args!("K{keeper} loads every row at {}", state.database.snapshot()));
                let has_row = |key: &usize| Database::query(&load.rows, *key, self.world.deleted).is_some();
                let left: Set = KEYS.into_iter().filter(has_row).collect();
                if load.incarnation != run.incarnation {
                    Keeper::Idle
                } else if left.is_empty() {
                    Keeper::Scan(Run { is_filling: false, ..run })
                } else {
                    Keeper::FillStore { run, load, left, again: Set::default() }
                }
            }
            Keeper::FillStore { run, load, left, again } => {
                self.store_filled(state, keeper, run, load, (left, again), say)
            }
            Keeper::Scan(run) => self.scan_pending(state, keeper, run, say),
            Keeper::Load { run, keys } => {
                let statement = Self::send(state);
                let revision = state.redis.revision;
                say(format_args!("K{keeper} reads revision {revision} and sends a statement for {keys}"));
                Keeper::Answer { run, keys, statement }
            }
            Keeper::Answer { run, keys, statement } => {
                let load = self.answer(state, statement);
                say(format_args!("K{keeper} loads {keys} at {}", state.database.snapshot()));
                if load.incarnation == run.incarnation {
                    Keeper::Store { run, load, left: keys, again: Set::default() }
                } else {
                    Keeper::Idle
                }
            }
            Keeper::Store { run, load, left, again } => {
                self.store_revalidated(state, keeper, run, load, (left, again), say)
            }
            Keeper::Claim(run) => self.claim(state, keeper, run, say),
        };
    }

    /// R9: the metadata and the job's count are read by one script, which is counted.
    fn begin_revalidation(&self, state: &mut State, keeper: usize, say: Say<'_>) -> Keeper {
        let Some(table) = state.redis.table else {
            return Keeper::Idle;
        };
        state.begin_job(job_of(keeper));
        if self.world.rules.beginnings_are_counted {
            state.count(job_of(keeper));
        }
        if !self.world.rules.causes_are_numbers {
            state.redis.causes += 1;
        }
        let newest = state.redis.causes;
        say(format_args!("K{keeper} begins to revalidate; the newest cause is {newest}"));
        let is_wanted = |slot: &usize| state.redis.pending != 0 || state.redis.pending_slots[*slot] != 0;
        let slots = [0, 1].into_iter().filter(is_wanted).collect();
        let stored = Set::default();
        let is_filled = self.world.fills_first && self.world.rules.missing_is_filled;
        let is_filling = is_filled && state.redis.pending != 0;
        let run =
            Run { epoch: table.epoch, incarnation: table.incarnation, newest, slots, is_filling, stored };
        if is_filling { Keeper::Fill(run) } else { Keeper::Scan(run) }
    }

    /// R7: a backfill raises the floor, and loads again by key what was refused. Only what it has stored need not be looked at
    /// afterwards.
    fn store_filled(
        &self,
        state: &mut State,
        keeper: usize,
        mut run: Run,
        load: Load,
        (left, mut again): (Set, Set),
        say: Say<'_>,
    ) -> Keeper {
        let key = left.first().unwrap();
        let mode = StoreMode { raises_slot: false, tag: TagPart::Whole };
        let answer = self.store(state, run.epoch, &load, key, mode);
        let entry = Database::query(&load.rows, key, self.world.deleted);
        say(format_args!("K{keeper} fills k{key} = {} at {}: {answer}", Words(entry), load.stamp));
        if answer == Answer::Failed {
            return Keeper::Idle;
        }
        if self.world.rules.fills_are_counted {
            state.count(job_of(keeper));
        }
        if answer == Answer::Stored || !self.world.rules.refused_rows_are_loaded {
            run.stored = run.stored.with(key);
        } else {
            again = again.with(key);
        }
        let left = left.without(key);
        if !left.is_empty() {
            Keeper::FillStore { run, load, left, again }
        } else if again.is_empty() {
            Keeper::Scan(Run { is_filling: false, ..run })
        } else {
            Keeper::Load { run, keys: again }
        }
    }

    fn scan_pending(&self, state: &mut State, keeper: usize, run: Run, say: Say<'_>) -> Keeper {
        let existing = state.redis.existing();
        let is_wanted =
            |key: &usize| run.slots.contains(self.world.slots[*key]) && !run.stored.contains(*key);
        let keys: Set = existing.iter().filter(is_wanted).collect();
        say(format_args!("K{keeper} scans and finds {keys}"));
        self.count_read(state, job_of(keeper));
        if keys.is_empty() { Keeper::Claim(run) } else { Keeper::Load { run, keys } }
    }

    fn store_revalidated(
        &self,
        state: &mut State,
        keeper: usize,
        run: Run,
        load: Load,
        (left, mut again): (Set, Set),
        say: Say<'_>,
    ) -> Keeper {
        let key = left.first().unwrap();
        let mode =
            StoreMode { raises_slot: self.world.rules.page != Page::FloorInEachScript, tag: TagPart::Whole };
        let answer = self.store(state, run.epoch, &load, key, mode);
        let entry = Database::query(&load.rows, key, self.world.deleted);
        say(format_args!("K{keeper} stores k{key} = {} at {}: {answer}", Words(entry), load.stamp));
        if answer == Answer::Failed {
            return Keeper::Idle;
        }
        state.count(job_of(keeper));
        if answer == Answer::Refused {
            again = again.with(key);
        }
        let left = left.without(key);
        if !left.is_empty() {
            Keeper::Store { run, load, left, again }
        } else if again.is_empty() && run.is_filling {
            Keeper::Scan(Run { is_filling: false, ..run })
        } else if again.is_empty() {
            Keeper::Claim(run)
        } else {
            Keeper::Load { run, keys: again }
        }
    }

    fn claim(&self, state: &mut State, keeper: usize, run: Run, say: Say<'_>) -> Keeper {
        let rules = &self.world.rules;
        let is_whole = !state.swallowed.contains(job_of(keeper));
        let is_in_epoch = state.redis.table_of(run.epoch).is_some();
        if !is_in_epoch || !is_whole && rules.revalidations_are_counted {
            say(format_args!("K{keeper} says that the revalidation is done: refused"));
            return Keeper::Idle;
        }
        self.breaks(state, Invariant::I6, !is_whole);
        let newest = if rules.cause_is_read_first { run.newest } else { state.redis.causes };
        if state.redis.pending <= newest {
            state.redis.pending = 0;
        }
        for cause in state.redis.pending_slots.iter_mut().filter(|cause| **cause <= newest) {
            *cause = 0;
        }
        let settled =
            if state.redis.is_settled() { "nothing is pending" } else { "a later cause is pending" };
        say(format_args!("K{keeper} says that the revalidation is done up to cause {newest}: {settled}"));
        Keeper::Idle
    }
}
