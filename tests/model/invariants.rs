//! What must hold: I1 to I10 in every state, I11, I12 and I14 at rest, I13 of the graph (see `rest`).

use stateright::Property;

use crate::faults::Fault;
use crate::protocol::Protocol;
use crate::state::{State, Table};

/// Invariants of single steps are flags that the step sets; the others are predicates of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invariant {
    I1,
    I2,
    I3,
    I4,
    I5,
    I6,
    I7,
    I8,
    I9,
    I10,
    I11,
    I12,
    I13,
    I14,
}

/// Those that stateright checks as properties: all but I13.
pub(crate) const ALL: [Invariant; 13] = [
    Invariant::I1,
    Invariant::I2,
    Invariant::I3,
    Invariant::I4,
    Invariant::I5,
    Invariant::I6,
    Invariant::I7,
    Invariant::I8,
    Invariant::I9,
    Invariant::I10,
    Invariant::I11,
    Invariant::I12,
    Invariant::I14,
];

pub(crate) const COMES_TO_REST: &str = "some state is at rest";

/// The invariants that one step broke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken(u16);

impl Broken {
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn contains(self, invariant: Invariant) -> bool {
        self.0 >> invariant as u16 & 1 == 1
    }
}

impl Invariant {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::I1 => "I1 an accepted store never goes back within an epoch, deletions included",
            Self::I2 => "I2 no readable value is older than what the watermark's snapshot saw",
            Self::I3 => "I3 no value of a lost commit is readable under a watermark of the surviving history",
            Self::I4 => "I4 the watermark is of the head's epoch and not ahead of the cursor",
            Self::I5 => "I5 no value that is paid for is older than the snapshot its epoch began at",
            Self::I6 => "I6 a claim moves the cursor from what was read, in its epoch, with no script lost",
            Self::I7 => "I7 stamps never fall within an epoch, but for a failover",
            Self::I8 => "I8 a value that is present is a member of its tag",
            Self::I9 => "I9 a retired incarnation does not return to the head",
            Self::I10 => "I10 a value accepted for a token is as new as the token",
            Self::I11 => "I11 at rest every readable value is that of the database",
            Self::I12 => "I12 at rest the watermark is that of the database and nothing is pending",
            Self::I13 => "I13 from every state a state at rest can be reached",
            Self::I14 => "I14 at rest every row is there, where Redis is to hold every row",
        }
    }

    fn property(self) -> Property<Protocol> {
        let holds: fn(&Protocol, &State) -> bool = match self {
            Self::I1 => |_, state| !state.broken.contains(Self::I1),
            Self::I2 => watermark_is_honest,
            Self::I3 => lost_commits_are_uncovered,
            Self::I4 => watermark_follows_cursor,
            Self::I5 => paid_is_as_new_as_its_epoch,
            Self::I6 => |_, state| !state.broken.contains(Self::I6),
            Self::I7 => |_, state| !state.broken.contains(Self::I7),
            Self::I8 => values_are_members,
            Self::I9 => |_, state| !state.broken.contains(Self::I9),
            Self::I10 => |_, state| !state.broken.contains(Self::I10),
            Self::I11 => values_are_right_at_rest,
            Self::I12 => watermark_has_arrived_at_rest,
            Self::I13 => |_, _| true,
            Self::I14 => nothing_is_missing_at_rest,
        };
        Property::always(self.name(), holds)
    }
}

impl Protocol {
    /// With a `sometimes` beside the `always`: a world that never rests would keep I11 and I12 without
    /// checking them.
    pub(crate) fn watched(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<_> = self.watch.iter().map(|watched| watched.property()).collect();
        if 1 < self.watch.len() {
            let is_at_rest: fn(&Self, &State) -> bool = Self::is_at_rest;
            properties.push(Property::sometimes(COMES_TO_REST, is_at_rest));
        }
        properties
    }

    /// Notes a broken invariant, if this search looks for it.
    pub(crate) fn breaks(&self, state: &mut State, invariant: Invariant, is_broken: bool) {
        if is_broken && self.watch.contains(&invariant) {
            state.broken = Broken(state.broken.0 | 1 << invariant as u16);
        }
    }

    /// I7 and I9 compare what stood in Redis before a step and after it.
    pub(crate) fn compare_tables(&self, before: &State, after: &mut State) {
        let (Some(old), Some(new)) = (before.redis.table, after.redis.table) else {
            return;
        };
        let falls = stamps_fall(&old, &new) || after.redis.tag_stamp < before.redis.tag_stamp;
        self.breaks(after, Invariant::I7, old.epoch == new.epoch && falls);
        self.breaks(after, Invariant::I9, new.incarnation < old.incarnation);
    }
}

pub(crate) fn stamps_fall(old: &Table, new: &Table) -> bool {
    new.floor < old.floor || new.slots.iter().zip(old.slots).any(|(new, old)| *new < old)
}

fn watermark_is_honest(protocol: &Protocol, state: &State) -> bool {
    let redis = &state.redis;
    let Some(mark) = redis.watermark else {
        return true;
    };
    if redis.table.is_some_and(|table| table.epoch != mark.epoch) {
        return true;
    }
    // Under the first definition of a rolling deploy the shared row is not watched: it is not covered.
    let covers_shared = !(protocol.world.rules.definition_is_an_epoch && mark.epoch == 1);
    redis.entries.iter().zip(mark.seen).all(|(entry, own)| {
        entry.is_none_or(|entry| {
            let is_shared_old = entry.shared.number() < mark.seen[crate::state::SHARED].number();
            own.number() <= entry.own.number() && !(covers_shared && is_shared_old)
        })
    })
}

fn lost_commits_are_uncovered(_: &Protocol, state: &State) -> bool {
    let redis = &state.redis;
    let Some(mark) = redis.watermark else {
        return true;
    };
    if redis.table.is_some_and(|table| table.epoch != mark.epoch) {
        return true;
    }
    mark.incarnation != state.database.incarnation
        || redis
            .entries
            .iter()
            .enumerate()
            .all(|(key, entry)| entry.is_none_or(|entry| !state.database.has_lost(key, entry)))
}

fn watermark_follows_cursor(_: &Protocol, state: &State) -> bool {
    let (Some(mark), Some(table)) = (state.redis.watermark, state.redis.table) else {
        return true;
    };
    let cursor = state.redis.cursor.filter(|cursor| cursor.epoch == mark.epoch);
    mark.epoch == table.epoch && cursor.is_none_or(|cursor| mark.stamp <= cursor.snapshot.stamp())
}

/// The floor of the epoch's beginning, not the one that pages raise (R7): that one only refuses writers, it
/// claims nothing about values that were there before.
fn paid_is_as_new_as_its_epoch(_: &Protocol, state: &State) -> bool {
    let Some(table) = state.redis.table else {
        return true;
    };
    !state.redis.is_settled()
        || state
            .redis
            .entries
            .iter()
            .enumerate()
            .all(|(key, entry)| entry.is_none_or(|entry| !entry.is_behind(key, &table.born)))
}

fn values_are_members(protocol: &Protocol, state: &State) -> bool {
    !protocol.world.tags || state.redis.existing().iter().all(|key| state.redis.members.contains(key))
}

fn values_are_right_at_rest(protocol: &Protocol, state: &State) -> bool {
    let rows = &state.database.rows;
    let is_right = |(key, entry): (usize, &Option<_>)| {
        entry.is_none() || *entry == crate::database::Database::query(rows, key, protocol.world.deleted)
    };
    state.redis.entries.iter().enumerate().all(is_right) || !protocol.is_at_rest(state)
}

fn watermark_has_arrived_at_rest(protocol: &Protocol, state: &State) -> bool {
    let redis = &state.redis;
    let has_arrived = redis.table.is_some_and(|table| {
        let mark = redis.watermark.filter(|mark| mark.epoch == table.epoch);
        mark.is_some_and(|mark| mark.seen == state.database.rows)
    });
    protocol.world.workers == 0 || has_arrived && redis.is_settled() || !protocol.is_at_rest(state)
}

/// What Redis evicts comes again only when somebody asks for it.
fn nothing_is_missing_at_rest(protocol: &Protocol, state: &State) -> bool {
    let world = &protocol.world;
    let evicts = world.faults.iter().any(|(fault, _)| *fault == Fault::EvictEntry);
    let is_there = |(key, entry): (usize, &Option<_>)| {
        entry.is_some()
            || crate::database::Database::query(&state.database.rows, key, world.deleted).is_none()
    };
    !world.fills_first
        || evicts
        || state.redis.entries.iter().enumerate().all(is_there)
        || !protocol.is_at_rest(state)
}
