//! The scripts of Redis: each is one atomic step. All checks come before all writes (R4).

use crate::database::{Database, Rows, Stamp};
use crate::invariants::Invariant;
use crate::protocol::Protocol;
use crate::rules::Page;
use crate::state::{Epoch, Incarnation, Newest, Set, State};

/// What a load returned (R1): the rows, the stamp of its snapshot, the incarnation of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Load {
    pub(crate) stamp: Stamp,
    pub(crate) rows: Rows,
    pub(crate) incarnation: Incarnation,
}

impl Load {
    pub(crate) fn now(database: &Database) -> Self {
        let stamp = database.snapshot().stamp();
        Self { stamp, rows: database.rows, incarnation: database.incarnation }
    }
}

/// R5: what a store does beside writing the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreMode {
    pub(crate) raises_slot: bool,
    /// R8: registers the key and checks its tag, in the same script.
    pub(crate) minds_tag: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored,
    /// R5: something newer has touched the slot, the tag or everything.
    Refused,
    /// R4: another epoch or incarnation, or no table at all.
    Gone,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stored => "stored",
            Self::Refused => "refused",
            Self::Gone => "of another epoch",
        })
    }
}

impl Protocol {
    /// R5.
    pub(crate) fn store(
        &self,
        state: &mut State,
        epoch: Epoch,
        load: &Load,
        key: usize,
        mode: StoreMode,
    ) -> Answer {
        let (rules, redis) = (&self.world.rules, &mut state.redis);
        let has_tag = self.world.tags && mode.minds_tag;
        let Some(table) = redis.table.as_mut().filter(|table| {
            table.epoch == epoch && (!rules.store_names_incarnation || table.incarnation == load.incarnation)
        }) else {
            return Answer::Gone;
        };
        let slot = self.world.slots[key];
        let tag_stamp = if has_tag { redis.tag_stamp } else { 0 };
        let limit = table.floor.max(table.slots[slot]).max(tag_stamp);
        if rules.stamps_are_compared && load.stamp < limit {
            return Answer::Refused;
        }
        let entry = Database::query(&load.rows, key, self.world.deleted);
        let is_same = entry.is_some() && redis.entries[key] == entry;
        if rules.store_raises && mode.raises_slot && (rules.equal_bytes_raise || !is_same) {
            table.slots[slot] = table.slots[slot].max(load.stamp);
        }
        if rules.page == Page::FloorInEachScript && !mode.raises_slot {
            table.floor = table.floor.max(load.stamp);
        }
        redis.entries[key] = entry;
        if has_tag && entry.is_some() {
            redis.members = redis.members.with(key);
        }
        self.accept(state, epoch, load, key);
        Answer::Stored
    }

    /// I1: what was accepted may only be followed by what is as new, a deletion included.
    fn accept(&self, state: &mut State, epoch: Epoch, load: &Load, key: usize) {
        let shared = load.rows[crate::state::SHARED].number();
        let new = Newest { epoch, own: load.rows[key].number(), shared };
        if let Some(old) = state.newest[key].replace(new) {
            let goes_back = old.epoch == epoch && (new.own < old.own || new.shared < old.shared);
            self.breaks(state, Invariant::I1, goes_back);
        }
    }

    /// R6: `None` means another epoch; else the keys that exist, of which `deletes` removes the values.
    pub(crate) fn raise(
        &self,
        state: &mut State,
        named: Option<(Epoch, Incarnation)>,
        keys: Set,
        stamp: Stamp,
        deletes: bool,
    ) -> Option<Set> {
        let (rules, redis) = (&self.world.rules, &mut state.redis);
        let existing = redis.existing();
        let table = redis.table.as_mut().filter(|table| {
            named.is_none_or(|(epoch, incarnation)| {
                table.epoch == epoch && (!rules.store_names_incarnation || table.incarnation == incarnation)
            })
        });
        // R4: a delete is carried out even where the epoch is another. Absence is always legal.
        if deletes {
            keys.iter().for_each(|key| redis.entries[key] = None);
        }
        let table = table?;
        for key in keys.iter() {
            let slot = self.world.slots[key];
            let least = if rules.raises_only_rise { table.slots[slot] } else { 0 };
            table.slots[slot] = stamp.max(least);
        }
        Some(keys.iter().filter(|key| existing.contains(*key)).collect())
    }
}
