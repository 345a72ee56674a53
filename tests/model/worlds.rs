//! A world: who takes part, what may go wrong, and which rules are kept.

use crate::faults::Fault;
use crate::rules::{Page, Rules};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnChange {
    Refresh,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TagScripts {
    One,
    /// Register, check and write by themselves (Cluster, where they are in different slots).
    Three,
    /// The members of a page by one script, then stores that check what that script did.
    MembersFirst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Loads where there is no value.
    Fill,
    /// A page of a backfill: loads whatever is there.
    Warm,
}

/// What the shared row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    /// A row of a watched table.
    Row,
    /// What the query means: DDL changes it, and no row of the outbox says so. A statement may have been planned
    /// before it and see data of after it (a function that was inlined).
    Definition,
}

/// A partition that is added to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    Empty,
    WithRows,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) keys: &'static [usize],
    pub(crate) loads: u8,
}

pub(crate) const FILL0: Plan = Plan { kind: Kind::Fill, keys: &[0], loads: 1 };
pub(crate) const FILL1: Plan = Plan { kind: Kind::Fill, keys: &[1], loads: 1 };
pub(crate) const WARM: Plan = Plan { kind: Kind::Warm, keys: &[0, 1], loads: 1 };
pub(crate) const WARM_TWICE: Plan = Plan { kind: Kind::Warm, keys: &[0, 1], loads: 2 };
pub(crate) const WARM0: Plan = Plan { kind: Kind::Warm, keys: &[0], loads: 1 };
pub(crate) const WARM1: Plan = Plan { kind: Kind::Warm, keys: &[1], loads: 1 };

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether one thing is part of the world")]
pub(crate) struct World {
    /// Transactions of p0, p1 and c.
    pub(crate) todo: [u8; 3],
    /// Transactions are open together and commit in any order; else each is one step.
    pub(crate) overlap: bool,
    /// The version at which the own row of each key is deleted; 0 is never.
    pub(crate) deleted: [u8; 2],
    /// The slot of each key: the same one, unless a world says otherwise.
    pub(crate) slots: [usize; 2],
    pub(crate) workers: usize,
    pub(crate) loaders: &'static [Plan],
    pub(crate) events: usize,
    pub(crate) has_tag_event: bool,
    pub(crate) tags: bool,
    pub(crate) tag_scripts: TagScripts,
    /// An invalidation that deletes a member takes it out of the set, too.
    pub(crate) removes_members: bool,
    pub(crate) has_reader: bool,
    /// The cache begins empty.
    pub(crate) is_cold: bool,
    pub(crate) on_change: OnChange,
    /// How often each fault may happen.
    pub(crate) faults: &'static [(Fault, u8)],
    /// Revalidations run beside the feed. Else the worker runs those of a new epoch itself, and then goes on.
    pub(crate) keepers: usize,
    /// What transactions of the shared row change.
    pub(crate) shared: Shared,
    /// The capture is switched off, and on again.
    pub(crate) has_switch: bool,
    /// Transactions may be prepared.
    pub(crate) has_prepared: bool,
    pub(crate) grows: Option<Growth>,
    /// Redis is to hold every row, so a revalidation begins with a backfill, and the feed loads what is absent too.
    pub(crate) fills_first: bool,
    /// A worker of an older definition, which does not watch the shared row.
    pub(crate) blind: Option<usize>,
    /// Redis Cluster: k1 and its slot are on a shard that fails over alone.
    pub(crate) is_sharded: bool,
    pub(crate) rules: Rules,
}

impl Default for World {
    fn default() -> Self {
        Self {
            todo: [1, 1, 1],
            overlap: true,
            deleted: [0, 2],
            slots: [0, 0],
            workers: 1,
            loaders: &[],
            events: 0,
            has_tag_event: false,
            tags: false,
            tag_scripts: TagScripts::One,
            removes_members: false,
            has_reader: false,
            is_cold: false,
            on_change: OnChange::Refresh,
            faults: &[],
            keepers: 0,
            shared: Shared::Row,
            has_switch: false,
            has_prepared: false,
            grows: None,
            fills_first: false,
            blind: None,
            is_sharded: false,
            rules: Rules::default(),
        }
    }
}

/// A world with DDL, and a revalidation beside the feed.
pub(crate) fn ddl(todo: [u8; 3]) -> World {
    World { keepers: 1, shared: Shared::Definition, deleted: [0; 2], ..row(todo) }
}

/// A world whose transactions are one step each, with a revalidation beside the feed and two stamp slots.
pub(crate) fn kept(todo: [u8; 3]) -> World {
    World { keepers: 1, slots: [0, 1], ..row(todo) }
}

/// A world with DDL, in which a revalidation begins with a backfill.
pub(crate) fn filled(todo: [u8; 3]) -> World {
    World { fills_first: true, ..ddl(todo) }.under(|rules| rules.page = Page::FloorInEachScript)
}

/// A world without DDL, in which a revalidation begins with a backfill. The row of `k1` may be deleted, and come again.
pub(crate) fn filled_rows(todo: [u8; 3]) -> World {
    World { shared: Shared::Row, deleted: [0, 2], ..filled(todo) }
}

/// A world whose capture is switched off and on again, with open transactions and a revalidation beside the feed.
pub(crate) fn switched(todo: [u8; 3]) -> World {
    World { keepers: 1, has_switch: true, deleted: [0; 2], ..crowd(todo) }
}

/// A world with prepared transactions and a crash.
pub(crate) fn prepared(todo: [u8; 3]) -> World {
    World { keepers: 1, has_prepared: true, deleted: [0; 2], faults: &[(Fault::Crash, 1)], ..crowd(todo) }
}

/// A world of tags whose members are added before the stores. It begins without entries.
pub(crate) fn members_first(todo: [u8; 3]) -> World {
    World { tags: true, tag_scripts: TagScripts::MembersFirst, is_cold: true, ..row(todo) }
}

/// A world whose transactions may be open together.
pub(crate) fn crowd(todo: [u8; 3]) -> World {
    World { todo, ..World::default() }
}

/// A world whose transactions are one step each.
pub(crate) fn row(todo: [u8; 3]) -> World {
    World { todo, overlap: false, ..World::default() }
}

impl World {
    /// Coverage may change, so polls that verify it and others differ.
    pub(crate) fn changes_coverage(&self) -> bool {
        self.shared == Shared::Definition || self.has_switch || self.has_prepared || self.grows.is_some()
    }

    /// The same world under other rules.
    pub(crate) fn under(mut self, change: fn(&mut Rules)) -> Self {
        change(&mut self.rules);
        self
    }
}

/// Makes a test of each world, named after it; those that are expected to break something say what.
macro_rules! worlds {
    ($($(#[$meta:meta])* $name:ident $(breaks $($broken:ident),+)? : $world:expr;)+) => {
        $(
            $(#[$meta])*
            #[test]
            fn $name() {
                let broken = [$($($crate::invariants::Invariant::$broken),+)?];
                $crate::search::check(stringify!($name), &$world, &broken);
            }
        )+
    };
}
pub(crate) use worlds;
