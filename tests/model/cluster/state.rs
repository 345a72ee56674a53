//! What a state of the cluster consists of.

use super::database::{Database, Snapshot, Version};
use super::invariants::Broken;
use super::outside::{Loader, Reader};
use super::tasks::Task;
use super::topology::FAULTS;
use crate::state::Set;

pub(super) const NODES: usize = 2;
pub(super) const SLOTS: usize = 2;
/// One for each node, and one that begins where a home slot has moved away.
pub(super) const SHARDS: usize = 3;
pub(super) const TASKS: usize = 2;

/// The value of a key: its own row, and the one that both share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Value {
    pub(super) own: Version,
    pub(super) shared: Version,
}

impl Value {
    pub(super) fn is_behind(self, other: Self) -> bool {
        self.own.number() < other.own.number() || self.shared.number() < other.shared.number()
    }
}

/// The key in each cluster slot that says whose it is. It migrates with the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Guard {
    pub(super) shard: usize,
    pub(super) generation: u8,
    pub(super) floor: u8,
    pub(super) incarnation: u8,
}

/// What a node holds of a cluster slot, whether it serves it or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Held {
    pub(super) entry: Option<Value>,
    pub(super) guard: Option<Guard>,
}

/// Whether a shard has adopted a slot; the number is the guard's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Adopted {
    No,
    /// The guard names the shard, and the entries have not been loaded again yet.
    Pending(u8),
    Settled(u8),
}

/// What a task fetches from all nodes: which of them serves each slot, and the run of each server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Map {
    pub(super) owners: [usize; SLOTS],
    pub(super) runs: [u8; NODES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Watermark {
    pub(super) snapshot: Snapshot,
    /// Of all servers, as the writer knew them.
    pub(super) runs: [u8; NODES],
    /// Where it was written.
    pub(super) node: usize,
    pub(super) covers: Set,
}

/// Metadata and tables of a shard, all in its home slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shard {
    pub(super) epoch: u8,
    pub(super) cursor: Snapshot,
    pub(super) floor: u8,
    pub(super) stamps: [u8; SLOTS],
    pub(super) tag_stamp: u8,
    pub(super) members: Set,
    pub(super) adopted: [Adopted; SLOTS],
    /// The run of the server, and of all as far as the writer knew, when the cursor moved last.
    pub(super) run: u8,
    pub(super) runs: [u8; NODES],
    pub(super) watermark: Option<Watermark>,
}

impl Shard {
    pub(super) fn settled(&self) -> Set {
        (0..SLOTS).filter(|slot| matches!(self.adopted[*slot], Adopted::Settled(_))).collect()
    }

    pub(super) fn all_adopted(&self) -> Set {
        (0..SLOTS).filter(|slot| self.adopted[*slot] != Adopted::No).collect()
    }
}

/// What a master and its replica hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(super) slots: [Held; SLOTS],
    pub(super) shards: [Option<Shard>; SHARDS],
}

/// A migration of a slot away from its owner, or, turned back, to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Migration {
    pub(super) target: usize,
    pub(super) is_turned_back: bool,
}

/// How far what is left of a slot at another node is known to the feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LeftOver {
    None,
    Fresh,
    /// A whole round of the feed on the slot's shard has passed since.
    Old,
}

/// What the others have said, where they are asked seldom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    /// What all servers looked like.
    pub(super) map: Map,
    pub(super) moving: [bool; SLOTS],
    /// Slots of which another node held keys.
    pub(super) held: Set,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(super) database: Database,
    pub(super) nodes: [Node; NODES],
    pub(super) map: Map,
    pub(super) moving: [Option<Migration>; SLOTS],
    /// The node that serves the home slot of each shard.
    pub(super) homes: [Option<usize>; SHARDS],
    /// What the replica of each node has received, once it has stopped receiving.
    pub(super) copies: [Option<Node>; NODES],
    pub(super) left_over: [LeftOver; SLOTS],
    pub(super) tasks: [Task; TASKS],
    pub(super) maps: [Map; TASKS],
    /// None: they are asked at the next look.
    pub(super) asked: [Option<Asked>; TASKS],
    pub(super) loader: Loader,
    pub(super) reader: Reader,
    /// The newest value that was stored of each key, and in which incarnation, until the slot's data is rolled back.
    pub(super) newest: [Option<(Value, u8)>; SLOTS],
    pub(super) faults: [u8; FAULTS],
    pub(super) idle: u8,
    pub(super) contests: u8,
    pub(super) last_epoch: u8,
    pub(super) last_generation: u8,
    pub(super) broken: Broken,
}

impl State {
    /// The data of a shard, where its home slot is served.
    pub(super) fn shard(&self, shard: usize) -> Option<&Shard> {
        self.nodes[self.homes[shard]?].shards[shard].as_ref()
    }

    pub(super) fn shard_mut(&mut self, shard: usize) -> Option<&mut Shard> {
        self.nodes[self.homes[shard]?].shards[shard].as_mut()
    }

    /// The shard that adopts slots on a node: the one that began there, if its home slot is still there.
    pub(super) fn local_shard(&self, node: usize) -> Option<usize> {
        let is_here = |shard: &usize| self.homes[*shard] == Some(node);
        Some(node).filter(is_here).or_else(|| (NODES..SHARDS).find(is_here))
    }

    pub(super) fn serves(&self, node: usize, slot: usize) -> bool {
        self.map.owners[slot] == node
    }

    /// What the owner holds.
    pub(super) fn owned(&self, slot: usize) -> &Held {
        &self.nodes[self.map.owners[slot]].slots[slot]
    }

    pub(super) fn other(&self, slot: usize) -> &Held {
        &self.nodes[1 - self.map.owners[slot]].slots[slot]
    }

    /// Whether a script on a node reaches guard and entry: in a migrating slot only what is still there.
    pub(super) fn reaches(&self, node: usize, slot: usize) -> bool {
        let held = &self.nodes[node].slots[slot];
        let is_whole = held.guard.is_some() && held.entry.is_some();
        self.serves(node, slot) && (self.moving[slot].is_none() || is_whole)
    }

    /// What a client reads that follows redirections.
    pub(super) fn readable(&self, slot: usize) -> Option<Value> {
        let by_asking = self.moving[slot].and_then(|_| self.other(slot).entry);
        self.owned(slot).entry.or(by_asking)
    }

    /// Whether no other node holds an entry of the slot, and it is not shown as moving.
    pub(super) fn is_clear(&self, slot: usize) -> bool {
        self.moving[slot].is_none() && self.other(slot).entry.is_none()
    }

    /// What all servers look like, and which slots others hold keys of.
    pub(super) fn asked_now(&self) -> Asked {
        let held = (0..SLOTS).filter(|slot| self.other(*slot).entry.is_some()).collect();
        Asked { map: self.map, moving: self.moving.map(|moving| moving.is_some()), held }
    }

    /// Whether the metadata of a shard is of now: neither rolled back nor of another incarnation.
    pub(super) fn is_current(&self, shard: usize) -> bool {
        let run = self.homes[shard].map(|node| self.map.runs[node]);
        self.shard(shard).is_some_and(|data| {
            Some(data.run) == run && data.cursor.incarnation == self.database.snapshot().incarnation
        })
    }
}

pub(super) fn node_name(node: usize) -> char {
    if node == 0 { 'A' } else { 'B' }
}
