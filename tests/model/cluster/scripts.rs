//! The scripts on a shard: one each is a step. All checks come before all writes.

use super::database::Snapshot;
use super::invariants::Invariant;
use super::model::Cluster;
use super::rules::Rule;
use super::state::{Adopted, Guard, Held, LeftOver, Map, SLOTS, Shard, State, Value, Watermark};
use super::tasks::{Batch, Job};
use crate::state::Set;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    /// Something newer has touched the key.
    Refused,
    /// The slot is not this shard's, or keys of it are elsewhere: nothing was done.
    Gone,
    /// The metadata is another: begin again.
    Failed,
}

/// A store, and what it was loaded under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(super) shard: usize,
    pub(super) epoch: u8,
    pub(super) slot: usize,
    /// The guard's generation before the load.
    pub(super) generation: u8,
    pub(super) value: Value,
    pub(super) incarnation: u8,
    pub(super) basis: Basis,
    /// Whether the key becomes a member of its tags.
    pub(super) adds_member: bool,
}

/// What an older value is refused by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Basis {
    Stamp(u8),
    /// The counter that was read before the load. (The stamp slot stands for it: what raises one raises the other.)
    Counter(u8),
}

impl Cluster {
    /// R4 for a cluster slot.
    fn check_slot(&self, state: &State, shard: usize, slot: usize, generation: Option<u8>) -> bool {
        let Some(node) = state.homes[shard] else { return false };
        let guard = state.nodes[node].slots[slot].guard;
        let is_ours =
            |guard: Guard| guard.shard == shard && generation.is_none_or(|named| named == guard.generation);
        let is_closed = self.world.moving_is_closed && state.moving[slot].is_some();
        let is_reached = state.reaches(node, slot) && !is_closed;
        is_reached && (guard.is_some_and(is_ours) || !self.world.has(Rule::GuardIsCompared))
    }

    pub(super) fn store(&self, state: &mut State, store: &Store) -> Answer {
        let Store { shard, slot, value, .. } = *store;
        let is_known =
            |data: &&Shard| data.epoch == store.epoch && data.cursor.incarnation == store.incarnation;
        let Some(data) = state.shard(shard).filter(is_known) else { return Answer::Failed };
        let rule = match store.basis {
            Basis::Counter(_) => Rule::GenerationIsCompared,
            Basis::Stamp(_) => Rule::LoadsNameGeneration,
        };
        let is_named = self.world.has(rule) && (rule == Rule::GenerationIsCompared || !self.world.floors);
        if !self.check_slot(state, shard, slot, Some(store.generation).filter(|_| is_named)) {
            return Answer::Gone;
        }
        let held = &state.nodes[state.homes[shard].unwrap()].slots[slot];
        let is_older = match store.basis {
            Basis::Counter(counter) => data.stamps[slot] != counter,
            Basis::Stamp(stamp) => {
                let tag_stamp = if self.world.tags { data.tag_stamp } else { 0 };
                let least = data.floor.max(data.stamps[slot]).max(tag_stamp);
                stamp < least.max(self.floor(held, store.incarnation))
            }
        };
        if is_older {
            return Answer::Refused;
        }
        let is_back = state.newest[slot]
            .is_some_and(|(newest, incarnation)| incarnation == store.incarnation && value.is_behind(newest));
        self.breaks(state, Invariant::C1, is_back);
        state.newest[slot] = Some((value, store.incarnation));
        let node = state.homes[shard].unwrap();
        state.nodes[node].slots[slot].entry = Some(value);
        let data = state.shard_mut(shard).unwrap();
        if store.adds_member {
            data.members = data.members.with(slot);
        }
        if let Basis::Stamp(stamp) = store.basis {
            data.stamps[slot] = data.stamps[slot].max(stamp);
        }
        Answer::Done
    }

    fn floor(&self, held: &Held, incarnation: u8) -> u8 {
        let counts =
            |guard: &Guard| guard.incarnation == incarnation || !self.world.has(Rule::FloorNamesIncarnation);
        let is_compared = self.world.floors && self.world.has(Rule::FloorIsCompared);
        let guard = held.guard.filter(|guard| is_compared && counts(guard));
        guard.map_or(0, |guard| guard.floor)
    }

    /// R6: answers whether there is an entry.
    pub(super) fn raise(&self, state: &mut State, job: &Job, slot: usize, stamp: u8) -> Result<bool, Answer> {
        if state.shard(job.shard).is_none_or(|data| data.epoch != job.epoch) {
            return Err(Answer::Failed);
        }
        if !self.check_slot(state, job.shard, slot, None) {
            return Err(Answer::Gone);
        }
        let node = state.homes[job.shard].unwrap();
        let has_entry = state.nodes[node].slots[slot].entry.is_some();
        let data = state.shard_mut(job.shard).unwrap();
        data.stamps[slot] = data.stamps[slot].max(stamp);
        Ok(has_entry)
    }

    /// R12 on a shard: moves the cursor and publishes the watermark; drops slots that are not its own any more.
    pub(super) fn advance(&self, state: &mut State, batch: &Batch, clear: Set, map: Map) -> bool {
        let Batch { job, to, .. } = batch;
        let Some(node) = state.homes[job.shard] else { return false };
        let run = state.map.runs[node];
        let Some(data) = state.shard(job.shard) else { return false };
        let has = |rule| self.world.has(rule);
        let is_refused = data.epoch != job.epoch
            || (run != job.run || run != map.runs[node]) && has(Rule::ClaimsNameRun)
            || data.cursor != job.cursor
            || data.adopted != job.adopted && has(Rule::AdvanceComparesSlots);
        if is_refused {
            return false;
        }
        let is_dropped = |slot: usize| {
            let guard = state.nodes[node].slots[slot].guard;
            let is_foreign = guard.is_none_or(|guard| guard.shard != job.shard);
            batch.skipped.contains(slot) && has(Rule::RefusedIsDropped)
                || !state.serves(node, slot) && has(Rule::AdvanceLooksAtNode)
                || !clear.contains(slot) && has(Rule::LeftOversDropSlot)
                || map.runs != data.runs && is_foreign && has(Rule::GuardsAreLookedAt)
        };
        let mut data = *data;
        data.adopted = [0, 1].map(|slot| if is_dropped(slot) { Adopted::No } else { data.adopted[slot] });
        (data.run, data.runs, data.cursor) = (run, map.runs, *to);
        let pending = |slot: &usize| matches!(data.adopted[*slot], Adopted::Pending(_));
        let covers: Set = if has(Rule::WatermarkNamesSlots) {
            data.settled().iter().filter(|slot| clear.contains(*slot)).collect()
        } else {
            (0..SLOTS).filter(|slot| !pending(slot)).collect()
        };
        data.watermark = Some(Watermark { snapshot: *to, runs: map.runs, node, covers });
        let is_foreign = |slot: usize| {
            let guard = state.nodes[node].slots[slot].guard.filter(|guard| guard.shard != job.shard);
            let has_adopted = |guard: &Guard| {
                let is_here = state.homes[guard.shard] == Some(node) && state.is_current(guard.shard);
                is_here && state.shard(guard.shard).is_some_and(|data| data.all_adopted().contains(slot))
            };
            !state.serves(node, slot) || guard.as_ref().is_some_and(has_adopted)
        };
        let is_false = has(Rule::WatermarkNamesSlots) && covers.iter().any(is_foreign);
        self.breaks(state, Invariant::C3, is_false);
        *state.shard_mut(job.shard).unwrap() = data;
        for slot in batch.fresh.iter().filter(|slot| state.map.owners[*slot] == node).collect::<Set>().iter()
        {
            let is_known = !clear.contains(slot) || state.other(slot).entry.is_none();
            if state.left_over[slot] == LeftOver::Fresh && (is_known || !self.world.tools_wait_for_it) {
                state.left_over[slot] = LeftOver::Old;
            }
        }
        true
    }

    /// Gives a slot to the shard. Answers the new generation and whether there is an entry.
    pub(super) fn adopt(
        &self,
        state: &mut State,
        job: &Job,
        slot: usize,
        read: Option<Guard>,
        floor: &Snapshot,
    ) -> Option<(u8, bool)> {
        let node = state.homes[job.shard]?;
        let held = state.nodes[node].slots[slot];
        let has = |rule| self.world.has(rule);
        let is_still =
            state.moving[slot].is_none() || held.guard.is_some() && !has(Rule::AdoptionLooksAtNode);
        let is_reached = state.serves(node, slot) && is_still;
        let is_unchanged = held.guard == read || !has(Rule::AdoptionCompares);
        let data = state.shard(job.shard)?;
        if data.epoch != job.epoch
            || !is_reached
            || !is_unchanged
            || data.cursor.incarnation != floor.incarnation
        {
            return None;
        }
        let cursor = if has(Rule::FloorReachesCursor) { data.cursor.stamp } else { 0 };
        let next = held.guard.map_or(0, |guard| guard.generation) + 1;
        let is_unique = has(Rule::GenerationsAreUnique);
        let generation = if is_unique { state.last_generation + 1 } else { next };
        state.last_generation = state.last_generation.max(generation);
        let guard = Guard {
            shard: job.shard,
            generation,
            floor: floor.stamp.max(cursor),
            incarnation: floor.incarnation,
        };
        state.nodes[node].slots[slot].guard = Some(guard);
        let is_pending = has(Rule::PendingUntilLoaded);
        let adopted = if is_pending { Adopted::Pending(generation) } else { Adopted::Settled(generation) };
        let data = state.shard_mut(job.shard)?;
        data.adopted[slot] = adopted;
        if let Some(mark) = data.watermark.as_mut().filter(|_| has(Rule::AdoptionUncovers)) {
            mark.covers = mark.covers.without(slot);
        }
        Some((generation, held.entry.is_some()))
    }

    /// The entries of an adopted slot were loaded again.
    pub(super) fn settle(&self, state: &mut State, job: &Job, slot: usize, generation: u8) -> bool {
        let run = state.homes[job.shard].map(|node| state.map.runs[node]);
        let names_adoption = self.world.has(Rule::SettlingNamesAdoption);
        let is_same_run = run == Some(job.run) || !self.world.has(Rule::ClaimsNameRun);
        let Some(data) = state.shard_mut(job.shard).filter(|data| data.epoch == job.epoch) else {
            return false;
        };
        let is_pending = match data.adopted[slot] {
            Adopted::Pending(known) => known == generation || !names_adoption,
            Adopted::No => !names_adoption,
            Adopted::Settled(_) => false,
        };
        if is_pending && is_same_run {
            data.adopted[slot] = Adopted::Settled(generation);
        }
        is_pending && is_same_run
    }

    /// R13: begins an epoch, in which every slot is to be adopted again.
    pub(super) fn create(state: &mut State, shard: usize, seen: Option<u8>, floor: &Snapshot) -> bool {
        let Some(node) = state.homes[shard] else { return false };
        if state.shard(shard).map(|data| data.epoch) != seen {
            return false;
        }
        state.last_epoch += 1;
        let data = Shard {
            epoch: state.last_epoch,
            cursor: *floor,
            floor: floor.stamp,
            stamps: [0; SLOTS],
            tag_stamp: 0,
            members: Set::default(),
            adopted: [Adopted::No; SLOTS],
            run: state.map.runs[node],
            runs: state.map.runs,
            watermark: None,
        };
        state.nodes[node].shards[shard] = Some(data);
        (0..SLOTS).filter(|slot| state.map.owners[*slot] == node).for_each(|slot| state.newest[slot] = None);
        true
    }
}
