//! The scripts of Redis: each is one atomic step. All checks come before all writes (R4).

use crate::database::{Database, Rows, Stamp, Version};
use crate::invariants::Invariant;
use crate::protocol::Protocol;
use crate::rules::{Page, Rules};
use crate::state::{Epoch, Incarnation, Newest, Revision, SHARED, Set, State};
use crate::worlds::{Shared, TagScripts};

/// What a load returned (R1): the rows, the stamp of its snapshot, the incarnation of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Load {
    pub(crate) stamp: Stamp,
    pub(crate) rows: Rows,
    pub(crate) incarnation: Incarnation,
    pub(crate) revision: Revision,
}

/// A statement that was sent and has taken no snapshot yet: the revision that was read before, and the definition it
/// was planned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Statement {
    revision: Revision,
    definition: Version,
}

impl Load {
    pub(crate) fn now(database: &Database, revision: Revision) -> Self {
        let stamp = database.snapshot().stamp();
        Self { stamp, rows: database.rows, incarnation: database.incarnation, revision }
    }
}

/// What one store is decided by (R4, R5, R8).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    /// R4: epoch, incarnation and revision are those of the load, and the tables are whole.
    pub(crate) holds: bool,
    /// None: an application's, which no snapshot orders.
    pub(crate) stamp: Option<Stamp>,
    pub(crate) floor: Stamp,
    pub(crate) slot: Stamp,
    /// The newest stamp of its tags.
    pub(crate) tag: Stamp,
    /// One of the counters that a fill must find unchanged was raised.
    pub(crate) has_moved: bool,
    pub(crate) raises: Raises,
}

/// What a store raises, if it raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Raises {
    Slot,
    Floor,
    Nothing,
}

/// What a store does, and the stamps afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) answer: Answer,
    pub(crate) floor: Stamp,
    pub(crate) slot: Stamp,
}

/// The rule of the store script.
pub(crate) fn decide(rules: &Rules, question: &Question) -> Verdict {
    let Question { holds, stamp, floor, slot, tag, has_moved, raises } = *question;
    let unchanged = |answer| Verdict { answer, floor, slot };
    let Some(stamp) = stamp else {
        return unchanged(if has_moved { Answer::Refused } else { Answer::Stored });
    };
    if !holds {
        return unchanged(Answer::Failed);
    }
    let is_older = rules.stamps_are_compared && stamp < floor.max(slot).max(tag);
    let mut verdict = unchanged(if is_older || has_moved { Answer::Refused } else { Answer::Stored });
    match raises {
        // R7: a page raises the floor also where entries of it are refused.
        Raises::Floor => verdict.floor = floor.max(stamp),
        Raises::Slot if verdict.answer == Answer::Stored => verdict.slot = slot.max(stamp),
        Raises::Slot | Raises::Nothing => {}
    }
    verdict
}

/// R5: what a store does beside writing the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreMode {
    pub(crate) raises_slot: bool,
    pub(crate) tag: TagPart,
}

/// R8: what a store sees to by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagPart {
    /// It checks the tag's stamp and registers the key.
    Whole,
    /// It checks; an earlier script registered the key.
    Check,
    /// Earlier scripts did both.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored,
    /// R5: something newer has touched the slot, the tag or everything.
    Refused,
    /// R4: another epoch or incarnation, or no table at all.
    Failed,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stored => "stored",
            Self::Refused => "refused",
            Self::Failed => "of another epoch",
        })
    }
}

impl Protocol {
    /// Reads the revision and sends a statement.
    pub(crate) fn send(state: &State) -> Statement {
        Statement { revision: state.redis.revision, definition: state.database.rows[SHARED] }
    }

    /// The statement takes its snapshot.
    pub(crate) fn answer(&self, state: &State, statement: Statement) -> Load {
        let is_read_first = self.world.rules.revision_is_read_first;
        let revision = if is_read_first { statement.revision } else { state.redis.revision };
        let mut load = Load::now(&state.database, revision);
        if self.world.shared == Shared::Definition {
            load.rows[SHARED] = statement.definition;
        }
        load
    }

    /// Where stores rely on members that an earlier script added, removals are counted.
    pub(crate) fn remove_member(&self, state: &mut State, key: usize) {
        state.redis.members = state.redis.members.without(key);
        if self.world.tag_scripts == TagScripts::MembersFirst {
            state.redis.removals += 1;
        }
    }

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
        let checks_tag = self.world.tags
            && match mode.tag {
                TagPart::Whole => true,
                TagPart::Check => rules.store_checks_tag,
                TagPart::None => false,
            };
        let registers = self.world.tags && mode.tag == TagPart::Whole;
        let Some(table) = redis.table.as_mut() else { return Answer::Failed };
        let slot = &mut table.slots[self.world.slots[key]];
        let entry = Database::query(&load.rows, key, self.world.deleted);
        let is_same = entry.is_some() && redis.entries[key] == entry;
        let question = Question {
            holds: table.epoch == epoch
                && redis.revision == load.revision
                && (!rules.store_names_incarnation || table.incarnation == load.incarnation),
            stamp: Some(load.stamp),
            floor: table.floor,
            slot: *slot,
            tag: if checks_tag { redis.tag_stamp } else { 0 },
            has_moved: false,
            raises: match mode.raises_slot {
                true if rules.store_raises && (rules.equal_bytes_raise || !is_same) => Raises::Slot,
                false if rules.page == Page::FloorInEachScript => Raises::Floor,
                _ => Raises::Nothing,
            },
        };
        let verdict = decide(rules, &question);
        (table.floor, *slot) = (verdict.floor, verdict.slot);
        if verdict.answer != Answer::Stored {
            return verdict.answer;
        }
        redis.entries[key] = entry;
        if registers && entry.is_some() {
            redis.members = redis.members.with(key);
        }
        self.accept(state, epoch, load, key);
        Answer::Stored
    }

    /// I1: what was accepted may only be followed by what is as new, a deletion included.
    fn accept(&self, state: &mut State, epoch: Epoch, load: &Load, key: usize) {
        let shared = load.rows[SHARED].number();
        let new = Newest { epoch, revision: load.revision, own: load.rows[key].number(), shared };
        if let Some(old) = state.newest[key].replace(new) {
            // Until the feed has seen a DDL, statements that were planned before it may come last.
            let may_go_back = self.world.shared == Shared::Definition && old.revision == new.revision;
            let is_older = new.own < old.own || new.shared < old.shared && !may_go_back;
            let goes_back = old.epoch == epoch && is_older;
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
