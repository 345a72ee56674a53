//! What must hold on a cluster: C1 to C5 in every state, C6 and C7 at rest, C8 of the graph.

use stateright::Property;

use super::model::Cluster;
use super::rules::Rule;
use super::state::{Adopted, NODES, SLOTS, State, Value, Watermark};
use crate::invariants::COMES_TO_REST;
use crate::search::Searched;
use crate::state::Set;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invariant {
    C1,
    C2,
    C3,
    C4,
    C5,
    C6,
    C7,
    C8,
}

/// All but C8, which is one of the graph.
pub(crate) const ALL: [Invariant; 7] =
    [Invariant::C1, Invariant::C2, Invariant::C3, Invariant::C4, Invariant::C5, Invariant::C6, Invariant::C7];

/// The invariants that one step broke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken(u8);

impl Broken {
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn contains(self, invariant: Invariant) -> bool {
        self.0 >> invariant as u8 & 1 == 1
    }
}

impl Invariant {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::C1 => "C1 an accepted store never goes back, also where the slot has moved",
            Self::C2 => {
                "C2 no entry is older than the watermark of the shard that its guard names, where that covers its slot"
            }
            Self::C3 => {
                "C3 a watermark covers no slot that its node does not serve or another shard of it has adopted"
            }
            Self::C4 => "C4 no entry is older than the minimum over shards, where that covers its slot",
            Self::C5 => "C5 a value accepted for a token is as new as the token",
            Self::C6 => "C6 at rest every entry is that of the database",
            Self::C7 => {
                "C7 at rest every slot is adopted and covered, and every watermark is that of the database"
            }
            Self::C8 => "C8 from every state a state at rest can be reached",
        }
    }

    fn property(self) -> Property<Cluster> {
        let holds: fn(&Cluster, &State) -> bool = match self {
            Self::C1 => |_, state| !state.broken.contains(Self::C1),
            Self::C2 => watermarks_are_true,
            Self::C3 => |_, state| !state.broken.contains(Self::C3),
            Self::C4 => minimum_is_true,
            Self::C5 => |_, state| !state.broken.contains(Self::C5),
            Self::C6 => {
                |cluster, state| (0..SLOTS).all(|slot| is_right(state, slot)) || !cluster.is_at_rest(state)
            }
            Self::C7 => |cluster, state| has_arrived(cluster, state) || !cluster.is_at_rest(state),
            Self::C8 => |_, _| true,
        };
        Property::always(self.name(), holds)
    }
}

impl Cluster {
    pub(super) fn watched(&self) -> Vec<Property<Self>> {
        let mut properties: Vec<_> = self.watch.iter().map(|watched| watched.property()).collect();
        if 1 < self.watch.len() {
            let is_at_rest: fn(&Self, &State) -> bool = Self::is_at_rest;
            properties.push(Property::sometimes(COMES_TO_REST, is_at_rest));
        }
        properties
    }

    /// Notes a broken invariant, if this search looks for it.
    pub(super) fn breaks(&self, state: &mut State, invariant: Invariant, is_broken: bool) {
        if is_broken && self.watch.contains(&invariant) {
            state.broken = Broken(state.broken.0 | 1 << invariant as u8);
        }
    }
}

/// A watermark of an incarnation that is over says nothing of the one of now.
fn is_older(state: &State, mark: &Watermark, slot: usize, entry: Value) -> bool {
    mark.snapshot.incarnation == state.database.snapshot().incarnation
        && (entry.is_behind(mark.snapshot.value(slot)) || state.database.is_lost(slot, entry))
}

fn watermarks_are_true(_: &Cluster, state: &State) -> bool {
    (0..SLOTS).all(|slot| {
        let node = state.map.owners[slot];
        let held = state.owned(slot);
        let shard = held.guard.map(|guard| guard.shard).filter(|shard| state.homes[*shard] == Some(node));
        let mark = shard.and_then(|shard| state.shard(shard)).and_then(|data| data.watermark);
        let mark = mark.filter(|mark| mark.covers.contains(slot));
        mark.zip(held.entry).is_none_or(|(mark, entry)| !is_older(state, &mark, slot, entry))
    })
}

/// The least of all watermarks, and the slots that any of them covers; none where they do not go together.
fn minimum(cluster: &Cluster, state: &State) -> Option<(Watermark, Set)> {
    let shards = (0..state.homes.len()).filter(|shard| state.homes[*shard].is_some());
    let is_in_place = |shard: usize, mark: &Watermark| {
        let is_of_this_run = mark.runs[mark.node] == state.map.runs[mark.node];
        (state.homes[shard] == Some(mark.node) || !cluster.world.has(Rule::MinimumLooksAtNode))
            && (is_of_this_run || !cluster.world.has(Rule::MinimumLooksAtRun))
    };
    let mark = |shard: usize| {
        let mark = state.shard(shard).and_then(|data| data.watermark);
        mark.filter(|mark| is_in_place(shard, mark))
    };
    let marks: Option<Vec<Watermark>> = shards.map(mark).collect();
    let marks = marks?;
    let first = marks.first()?;
    let knows_same_runs =
        |mark: &Watermark| mark.runs == first.runs || !cluster.world.has(Rule::MinimumNamesRuns);
    let is_same_life = |mark: &Watermark| {
        mark.snapshot.incarnation == first.snapshot.incarnation
            || !cluster.world.has(Rule::MinimumNamesIncarnation)
    };
    let has_mark = |node: usize| marks.iter().any(|mark| mark.node == node);
    let is_complete = (0..NODES).all(has_mark) || !cluster.world.has(Rule::MinimumLooksAtNode);
    if !is_complete || !marks.iter().all(|mark| knows_same_runs(mark) && is_same_life(mark)) {
        return None;
    }
    let covers = marks.iter().fold(Set::default(), |covers, mark| covers.union(mark.covers));
    marks.into_iter().min_by_key(|mark| mark.snapshot.stamp).map(|mark| (mark, covers))
}

fn minimum_is_true(cluster: &Cluster, state: &State) -> bool {
    let Some((least, covers)) = minimum(cluster, state) else { return true };
    covers.iter().all(|slot| state.readable(slot).is_none_or(|entry| !is_older(state, &least, slot, entry)))
}

fn is_right(state: &State, slot: usize) -> bool {
    state.readable(slot).is_none_or(|entry| entry == state.database.snapshot().value(slot))
}

fn has_arrived(cluster: &Cluster, state: &State) -> bool {
    let now = state.database.snapshot();
    let all: Set = (0..SLOTS).collect();
    let is_adopted = |slot: usize| {
        let local = state.local_shard(state.map.owners[slot]);
        let guard = state.owned(slot).guard;
        guard.zip(local.and_then(|shard| state.shard(shard))).is_some_and(|(guard, data)| {
            Some(guard.shard) == local && data.adopted[slot] == Adopted::Settled(guard.generation)
        })
    };
    let mut shards = (0..state.homes.len()).filter(|shard| state.homes[*shard].is_some());
    let is_level = |shard: usize| {
        state.shard(shard).and_then(|data| data.watermark).is_some_and(|mark| mark.snapshot == now)
    };
    let is_covered = minimum(cluster, state).is_some_and(|(_, covers)| covers == all);
    (0..SLOTS).all(is_adopted) && shards.all(is_level) && is_covered
}
