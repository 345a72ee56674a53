//! What goes wrong: Redis evicts, forgets or fails over, Postgres crashes, workers are killed.

use crate::database::ROW_NAMES;
use crate::invariants::Invariant;
use crate::protocol::{Action, Protocol, Say};
use crate::state::{KEYS, Newest, Redis, Set, State};
use crate::worker::{Job, Stage};

/// How many kinds of faults there are.
pub(crate) const FAULTS: usize = 13;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    EvictEntry,
    EvictTable,
    EvictCursor,
    EvictTag,
    Flush,
    Failover,
    Crash,
    CrashLosing,
    Kill,
    Rollback,
    /// Redis's clock is set back.
    ClockBack,
    /// The database is too slow for a load of the feed.
    LoadFails,
    /// A window of the tag's members is dropped, with an absent key in it.
    DropWindow,
}

impl Protocol {
    pub(crate) fn faults(&self, state: &State, actions: &mut Vec<Action>) {
        if state.faults == [0; FAULTS] {
            return;
        }
        let redis = &state.redis;
        let mut add = |fault: Fault, target: u8, is_possible: bool| {
            if is_possible && 0 < state.faults[fault as usize] {
                actions.push(Action::Fault(fault, target));
            }
        };
        for (key, entry) in (0..).zip(&redis.entries) {
            add(Fault::EvictEntry, key, entry.is_some());
            let is_member = redis.members.contains(usize::from(key));
            add(Fault::DropWindow, key, entry.is_none() && is_member);
        }
        add(Fault::EvictTable, 0, redis.table.is_some());
        add(Fault::EvictCursor, 0, redis.cursor.is_some());
        add(Fault::EvictTag, 0, !redis.members.is_empty() && !self.world.rules.tag_sets_stay);
        add(Fault::Flush, 0, redis.table.is_some());
        add(Fault::Failover, 0, self.can_fail_over(state));
        for (row, _) in (0..).zip(ROW_NAMES) {
            add(Fault::Rollback, row, state.database.running(usize::from(row)).is_some());
        }
        add(Fault::Crash, 0, true);
        add(Fault::CrashLosing, 0, state.database.can_lose());
        for (worker, stage) in (0..).zip(&state.workers[..self.world.workers]) {
            add(Fault::Kill, worker, *stage != Stage::Start);
            add(Fault::LoadFails, worker, matches!(stage, Stage::Load { job: Job::Feed, .. }));
        }
        add(Fault::ClockBack, 0, !self.world.rules.causes_are_numbers && 1 < redis.causes);
        if 0 < state.faults[Fault::Failover as usize] && state.copy.is_none() {
            actions.push(Action::Copy);
        }
    }

    fn can_fail_over(&self, state: &State) -> bool {
        let redis = &state.redis;
        state.copy.as_ref().is_some_and(|(copy, _)| {
            if self.world.is_sharded {
                let slots = |redis: &Redis| redis.table.map(|table| table.slots[1]);
                copy.entries[1] != redis.entries[1] || slots(copy) != slots(redis)
            } else {
                copy != redis
            }
        })
    }

    /// From here on the replica receives nothing, until a failover makes it the primary.
    pub(crate) fn copy(state: &mut State, say: Say<'_>) {
        say(format_args!("** the replica stops receiving here"));
        state.redis.counted = Set::default();
        state.copy = Some((state.redis, state.newest));
    }

    pub(crate) fn strike(&self, state: &mut State, fault: Fault, target: u8, say: Say<'_>) {
        state.faults[fault as usize] -= 1;
        let target = usize::from(target);
        match fault {
            Fault::EvictEntry => {
                say(format_args!("** k{target} is evicted or expires"));
                state.redis.entries[target] = None;
                self.remove_member(state, target);
            }
            Fault::EvictTable => {
                say(format_args!("** Redis evicts the stamp table"));
                state.redis.table = None;
            }
            Fault::EvictCursor => {
                say(format_args!("** Redis evicts the cursor"));
                state.redis.cursor = None;
            }
            Fault::EvictTag => {
                say(format_args!("** Redis evicts the tag set"));
                state.redis.members = Set::default();
            }
            Fault::Flush => {
                say(format_args!("** FLUSHALL"));
                state.redis = Redis { counted: state.redis.counted, ..Redis::default() };
            }
            Fault::Failover => self.fail_over(state, say),
            Fault::Crash | Fault::CrashLosing => {
                let loses = fault == Fault::CrashLosing;
                let what = if loses { " and loses the last commit" } else { "" };
                say(format_args!("** Postgres crashes{what}; xids are used again"));
                state.database.crash(loses);
            }
            Fault::Kill => {
                say(format_args!("** W{target} is killed and starts again"));
                state.workers[target] = Stage::Start;
                state.begin_job(target);
            }
            Fault::Rollback => {
                let xid = state.database.rollback(target);
                say(format_args!("** transaction {xid} is rolled back"));
            }
            Fault::LoadFails => {
                if let Stage::Load { batch, keys, .. } = state.workers[target] {
                    say(format_args!("** W{target} cannot load {keys}, and leaves them out"));
                    state.workers[target] = self.leave_out_raised(state, target, batch, keys);
                }
            }
            Fault::DropWindow => {
                say(format_args!("** a window with k{target} is dropped"));
                self.remove_member(state, target);
            }
            Fault::ClockBack => {
                say(format_args!("** Redis's clock is set back"));
                state.redis.causes -= 2;
            }
        }
    }

    fn fail_over(&self, state: &mut State, say: Say<'_>) {
        let counted = state.redis.counted;
        state.swallowed = state.swallowed.union(counted);
        if self.world.is_sharded {
            say(format_args!("** the shard of k1 fails over to its old copy"));
            let (copy, newest) = state.copy.as_ref().unwrap();
            state.newest[1] = newest[1];
            state.redis.entries[1] = copy.entries[1];
            if let (Some(table), Some(old)) = (&mut state.redis.table, &copy.table) {
                table.slots[1] = old.slots[1];
            }
            return;
        }
        say(format_args!("** Redis fails over to the old copy"));
        let (copy, newest) = state.copy.take().unwrap();
        let accepted = std::mem::replace(&mut state.newest, newest);
        let before = std::mem::replace(&mut state.redis, copy);
        let goes_back = |key: usize| {
            let is_older = |newest: Newest| {
                copy.entries[key]
                    .is_some_and(|old| old.own.number() < newest.own || old.shared.number() < newest.shared)
            };
            let epoch = before.table.filter(|table| copy.table_of(table.epoch).is_some());
            let of_epoch = |newest: &Newest| epoch.is_some_and(|table| table.epoch == newest.epoch);
            accepted[key].filter(of_epoch).is_some_and(is_older)
        };
        let is_step_back = !self.world.rules.failover_may_go_back && KEYS.into_iter().any(goes_back);
        self.breaks(state, Invariant::I1, is_step_back);
    }
}
