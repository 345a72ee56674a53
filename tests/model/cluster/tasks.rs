//! What leaders do: a task of a leader follows the changes of one shard, adopts one slot, or begins an epoch; then something else.

use super::database::Snapshot;
use super::model::Cluster;
use super::rules::{Application, Duties, Rule};
use super::scripts::{Answer, Basis, Store};
use super::state::{Adopted, Guard, SLOTS, State, TASKS, node_name};
use crate::protocol::Say;
use crate::state::Set;

/// What a task read of a shard when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Job {
    pub(super) shard: usize,
    pub(super) epoch: u8,
    pub(super) run: u8,
    pub(super) cursor: Snapshot,
    pub(super) adopted: [Adopted; SLOTS],
}

impl Job {
    pub(super) fn generation(&self, slot: usize) -> u8 {
        match self.adopted[slot] {
            Adopted::No => 0,
            Adopted::Pending(generation) | Adopted::Settled(generation) => generation,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tag {
    Unchanged,
    Raise,
    List,
}

/// The changes of one shard up to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub(super) job: Job,
    pub(super) to: Snapshot,
    pub(super) tag: Tag,
    pub(super) todo: Set,
    /// The slots that a script refused to touch.
    pub(super) skipped: Set,
    /// Slots with something left elsewhere that this round may be the first to see.
    pub(super) fresh: Set,
}

/// A slot that a task adopts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Adoption {
    job: Job,
    slot: usize,
    generation: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Idle,
    Poll(Job),
    Apply(Batch),
    Load(Batch, usize),
    Store(Batch, usize, Snapshot),
    Advance(Batch, Set),
    /// X: the snapshot before the guard.
    ReadGuard {
        job: Job,
        slot: usize,
        floor: Snapshot,
    },
    Floor {
        job: Job,
        slot: usize,
        guard: Option<Guard>,
    },
    Adopt {
        job: Job,
        slot: usize,
        guard: Option<Guard>,
        floor: Snapshot,
    },
    LoadAgain(Adoption),
    StoreAgain(Adoption, Snapshot),
    Settle(Adoption),
    EpochFloor {
        shard: usize,
        seen: Option<u8>,
    },
    Epoch {
        shard: usize,
        seen: Option<u8>,
        floor: Snapshot,
    },
}

/// What an idle task may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    FetchMap,
    /// A second is over: the others are asked for keys at the next look.
    AskAgain,
    Follow(usize),
    Adopt(usize),
    BeginEpoch(usize),
}

impl Cluster {
    pub(super) fn work(&self, state: &State, task: usize) -> Vec<Work> {
        let mut work = self.all_work(state, task);
        work.retain(|work| match (self.world.duties[task], work) {
            (Duties::All, _) | (_, Work::FetchMap | Work::AskAgain) => true,
            (Duties::FollowsOne(shard), work) => {
                *work == Work::Follow(shard) || *work == Work::BeginEpoch(shard)
            }
            (Duties::Adopts, work) => matches!(work, Work::Adopt(_)),
        });
        work
    }

    fn all_work(&self, state: &State, task: usize) -> Vec<Work> {
        let mut work = Vec::new();
        if state.maps[task] != state.map {
            work.push(Work::FetchMap);
        }
        // Where it would say what is known, nothing comes of it.
        if state.asked[task].is_some_and(|asked| asked.held != state.asked_now().held) {
            work.push(Work::AskAgain);
        }
        for shard in 0..state.homes.len() {
            if self.is_to_follow(state, shard) || 0 < state.idle && state.is_current(shard) {
                work.push(Work::Follow(shard));
            }
            if self.is_to_begin(state, shard) {
                work.push(Work::BeginEpoch(shard));
            }
        }
        work.extend((0..SLOTS).filter(|slot| self.is_to_adopt(state, task, *slot)).map(Work::Adopt));
        work
    }

    /// The metadata is lost, of another run, or of another incarnation; or a node has no shard.
    fn is_to_begin(&self, state: &State, shard: usize) -> bool {
        let has_shards = |node| state.local_shard(node).is_some();
        match (state.homes[shard], state.shard(shard)) {
            (None, _) => !has_shards(0) || !has_shards(1),
            (Some(_), None) => true,
            (Some(_), Some(data)) if self.world.has(Rule::RolledBackIsNewEpoch) => {
                debug_assert!(data.epoch != 0);
                !state.is_current(shard)
            }
            (Some(_), Some(data)) => data.cursor.incarnation != state.database.snapshot().incarnation,
        }
    }

    /// Whether a round would change something. (The real one looks at least each second.)
    fn is_to_follow(&self, state: &State, shard: usize) -> bool {
        let Some(data) = state.shard(shard) else { return false };
        if self.is_to_begin(state, shard) {
            return false;
        }
        let node = state.homes[shard].unwrap();
        let asks = self.world.has(Rule::OthersAreAsked) && self.world.has(Rule::OthersAreAskedAgain);
        let is_clear = |slot: usize| !asks || state.is_clear(slot);
        let covered: Set = data.settled().iter().filter(|slot| is_clear(*slot)).collect();
        let is_published = data.watermark.is_some_and(|mark| {
            let is_named = self.world.has(Rule::WatermarkNamesSlots);
            mark.runs == state.map.runs
                && mark.snapshot == state.database.snapshot()
                && (mark.covers == covered || !is_named)
        });
        let is_lost = |slot: usize| !state.serves(node, slot) || !is_clear(slot);
        data.cursor != state.database.snapshot()
            || !is_published
            || data.runs != state.map.runs
            || data.all_adopted().iter().any(is_lost)
    }

    /// A slot that is not its owner's yet, by the map that the task knows; or whose adoption was not finished.
    fn is_to_adopt(&self, state: &State, task: usize, slot: usize) -> bool {
        let node = state.maps[task].owners[slot];
        let Some(shard) = state.local_shard(node) else { return false };
        let Some(data) = state.shard(shard) else { return false };
        let guard = state.nodes[node].slots[slot].guard;
        let is_done = guard.is_some_and(|guard| Adopted::Settled(guard.generation) == data.adopted[slot]);
        let is_free = state.is_clear(slot) || !self.world.has(Rule::OthersAreAsked);
        let is_contested = (0..TASKS).any(|other| other != task && state.tasks[other].adopts(slot));
        (!is_contested || 0 < state.contests)
            && !is_done
            && is_free
            && state.serves(node, slot)
            && !self.is_to_begin(state, shard)
    }

    fn read(state: &State, shard: usize) -> Option<Job> {
        let data = state.shard(shard)?;
        let run = state.map.runs[state.homes[shard]?];
        Some(Job { shard, epoch: data.epoch, run, cursor: data.cursor, adopted: data.adopted })
    }

    pub(super) fn begin(&self, state: &mut State, task: usize, work: Work, say: Say<'_>) {
        state.tasks[task] = match work {
            Work::FetchMap => {
                say(format_args!("T{task} fetches the map"));
                state.maps[task] = state.map;
                Task::Idle
            }
            Work::AskAgain => {
                say(format_args!("T{task} is to ask the others again"));
                state.asked[task] = None;
                Task::Idle
            }
            Work::Follow(shard) => {
                state.idle -= u8::from(!self.is_to_follow(state, shard));
                say(format_args!("T{task} reads the metadata of shard {shard}"));
                Self::read(state, shard).map_or(Task::Idle, Task::Poll)
            }
            Work::Adopt(slot) => {
                if (0..TASKS).any(|other| other != task && state.tasks[other].adopts(slot)) {
                    state.contests -= 1;
                }
                let node = state.maps[task].owners[slot];
                let job = Self::read(state, state.local_shard(node).unwrap()).unwrap();
                if self.world.has(Rule::FloorComesAfterGuard) {
                    let guard = state.nodes[node].slots[slot].guard;
                    say(format_args!("T{task} reads the guard of slot {slot} on {}", node_name(node)));
                    Task::Floor { job, slot, guard }
                } else {
                    say(format_args!("T{task} takes a snapshot, to adopt slot {slot}"));
                    Task::ReadGuard { job, slot, floor: state.database.snapshot() }
                }
            }
            Work::BeginEpoch(shard) => {
                say(format_args!("T{task} finds that shard {shard} needs a new epoch"));
                if state.homes[shard].is_none() {
                    state.homes[shard] = (0..2).find(|node| state.local_shard(*node).is_none());
                }
                Task::EpochFloor { shard, seen: state.shard(shard).map(|data| data.epoch) }
            }
        };
    }

    pub(super) fn go_on(&self, state: &mut State, task: usize, say: Say<'_>) {
        state.tasks[task] = match state.tasks[task] {
            Task::Idle => Task::Idle,
            Task::Poll(job) => self.poll(state, task, job, say),
            Task::Apply(batch) if batch.tag != Tag::Unchanged => self.apply_tag(state, task, batch, say),
            Task::Apply(batch) => match batch.todo.first() {
                Some(slot) => self.raise_one(state, task, batch, slot, say),
                None => self.look(state, task, batch, say),
            },
            Task::Load(batch, slot) => {
                let now = state.database.snapshot();
                say(format_args!("T{task} loads k{slot}: {}", now.rows[slot]));
                Task::Store(batch, slot, now)
            }
            Task::Store(batch, slot, loaded) => self.store_one(state, task, batch, slot, &loaded, say),
            Task::Advance(batch, clear) => self.move_cursor(state, task, &batch, clear, say),
            Task::ReadGuard { job, slot, floor } => {
                let guard = state.owned(slot).guard;
                say(format_args!("T{task} reads the guard of slot {slot}"));
                Task::Adopt { job, slot, guard, floor }
            }
            Task::Floor { job, slot, guard } => {
                let floor = state.database.snapshot();
                let asks = self.world.has(Rule::OthersAreAsked);
                let is_free = !asks || self.clear(state, task).contains(slot);
                say(format_args!("T{task} takes snapshot {}", floor.stamp));
                if asks {
                    let answer = if is_free { "none" } else { "some" };
                    say(format_args!(", and asks the other node for keys of slot {slot}: {answer}"));
                }
                if is_free { Task::Adopt { job, slot, guard, floor } } else { Task::Idle }
            }
            Task::Adopt { job, slot, guard, floor } => {
                self.adopt_one(state, task, job, slot, guard, &floor, say)
            }
            Task::LoadAgain(adoption) => {
                let now = state.database.snapshot();
                say(format_args!("T{task} loads k{} again: {}", adoption.slot, now.rows[adoption.slot]));
                Task::StoreAgain(adoption, now)
            }
            Task::StoreAgain(adoption, loaded) => self.store_again(state, task, adoption, &loaded, say),
            Task::Settle(Adoption { job, slot, generation }) => {
                let is_settled = self.settle(state, &job, slot, generation);
                say(format_args!("T{task} settles slot {slot} on shard {}: {}", job.shard, done(is_settled)));
                Task::Idle
            }
            Task::EpochFloor { shard, seen } => {
                let floor = state.database.snapshot();
                say(format_args!("T{task} takes snapshot {} for an epoch", floor.stamp));
                Task::Epoch { shard, seen, floor }
            }
            Task::Epoch { shard, seen, floor } => {
                let is_done = Self::create(state, shard, seen, &floor);
                say(format_args!(
                    "T{task} begins an epoch of shard {shard} at {}: {}",
                    floor.stamp,
                    done(is_done)
                ));
                Task::Idle
            }
        };
    }

    /// What was stored without a stamp is of no dataset: nobody can load it again, so it is deleted.
    pub(super) fn is_unstamped(&self, slot: usize) -> bool {
        self.world.application == Application::FillsUnstamped && slot == 0
    }

    #[expect(clippy::too_many_arguments, reason = "what the task has read")]
    fn adopt_one(
        &self,
        state: &mut State,
        task: usize,
        job: Job,
        slot: usize,
        guard: Option<Guard>,
        floor: &Snapshot,
        say: Say<'_>,
    ) -> Task {
        let Some((generation, has_entry)) = self.adopt(state, &job, slot, guard, floor) else {
            say(format_args!("T{task} adopts slot {slot} for shard {}: refused", job.shard));
            return Task::Idle;
        };
        say(format_args!("T{task} adopts slot {slot} for shard {}, floor {}", job.shard, floor.stamp));
        let adoption = Adoption { job, slot, generation };
        match has_entry {
            _ if !self.world.has(Rule::PendingUntilLoaded) => Task::Idle,
            true if self.is_unstamped(slot) => {
                state.nodes[state.homes[job.shard].unwrap()].slots[slot].entry = None;
                say(format_args!(", and deletes k{slot}"));
                Task::Settle(adoption)
            }
            true => Task::LoadAgain(adoption),
            false => Task::Settle(adoption),
        }
    }

    fn store_again(
        &self,
        state: &mut State,
        task: usize,
        adoption: Adoption,
        loaded: &Snapshot,
        say: Say<'_>,
    ) -> Task {
        let Adoption { job, slot, generation } = adoption;
        let adds_member = self.world.has(Rule::AdoptionAddsMembers);
        let store = Store { adds_member, ..to_store(&job, slot, generation, loaded) };
        let answer = self.store(state, &store);
        say(format_args!("T{task} stores k{slot} on shard {}: {}", job.shard, words(told(answer))));
        match answer {
            Answer::Done => Task::Settle(adoption),
            Answer::Refused => Task::LoadAgain(adoption),
            Answer::Gone | Answer::Failed => Task::Idle,
        }
    }
}

pub(super) fn to_store(job: &Job, slot: usize, generation: u8, loaded: &Snapshot) -> Store {
    Store {
        shard: job.shard,
        epoch: job.epoch,
        slot,
        generation,
        value: loaded.value(slot),
        incarnation: loaded.incarnation,
        basis: Basis::Stamp(loaded.stamp),
        adds_member: true,
    }
}

pub(super) fn told(answer: Answer) -> Result<bool, Answer> {
    if answer == Answer::Done { Ok(true) } else { Err(answer) }
}

pub(super) fn done(is_done: bool) -> &'static str {
    if is_done { "done" } else { "refused" }
}

pub(super) fn words(answer: Result<bool, Answer>) -> &'static str {
    match answer {
        Ok(true) => "done",
        Ok(false) | Err(Answer::Done) => "done, no entry",
        Err(Answer::Refused) => "older, refused",
        Err(Answer::Gone) => "not its slot",
        Err(Answer::Failed) => "another epoch",
    }
}

impl Task {
    fn adopts(&self, wanted: usize) -> bool {
        match self {
            Self::ReadGuard { slot, .. } | Self::Floor { slot, .. } | Self::Adopt { slot, .. } => {
                *slot == wanted
            }
            Self::LoadAgain(adoption) | Self::StoreAgain(adoption, _) | Self::Settle(adoption) => {
                adoption.slot == wanted
            }
            Self::Idle
            | Self::Poll(_)
            | Self::Apply(_)
            | Self::Load(..)
            | Self::Store(..)
            | Self::Advance(..)
            | Self::EpochFloor { .. }
            | Self::Epoch { .. } => false,
        }
    }

    /// This round did not begin after the news.
    pub(super) fn forget_fresh(&mut self, slot: usize) {
        if let Self::Apply(batch) | Self::Load(batch, _) | Self::Store(batch, ..) | Self::Advance(batch, _) =
            self
        {
            batch.fresh = batch.fresh.without(slot);
        }
    }
}
