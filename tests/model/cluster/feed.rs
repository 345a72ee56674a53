//! How a task follows the changes of one shard: poll, tag, keys one by one, look, cursor.

use super::database::Snapshot;
use super::model::Cluster;
use super::rules::Rule;
use super::scripts::Answer;
use super::state::{Adopted, LeftOver, SLOTS, State};
use super::tasks::{Batch, Job, Tag, Task, done, to_store, told, words};
use crate::protocol::Say;
use crate::state::Set;

impl Cluster {
    pub(super) fn poll(&self, state: &State, task: usize, job: Job, say: Say<'_>) -> Task {
        let to = state.database.snapshot();
        if to.incarnation != job.cursor.incarnation {
            say(format_args!("T{task} polls: another incarnation"));
            return Task::Idle;
        }
        let (changed, is_shared) = to.changes(&job.cursor);
        let is_routed = |slot: &usize| job.adopted[*slot] != Adopted::No;
        let todo = (0..SLOTS).filter(|slot| changed[*slot] && is_routed(slot)).collect();
        say(format_args!(
            "T{task} polls {} to {} for shard {}: {todo}",
            job.cursor.stamp, to.stamp, job.shard
        ));
        let first = if self.world.has(Rule::TagIsRaisedFirst) { Tag::Raise } else { Tag::List };
        let tag = if is_shared && self.world.tags { first } else { Tag::Unchanged };
        let fresh = (0..SLOTS).filter(|slot| state.left_over[*slot] == LeftOver::Fresh).collect();
        Task::Apply(Batch { job, to, tag, todo, skipped: Set::default(), fresh })
    }

    pub(super) fn apply_tag(&self, state: &mut State, task: usize, mut batch: Batch, say: Say<'_>) -> Task {
        let (is_first, is_everywhere) =
            (self.world.has(Rule::TagIsRaisedFirst), self.world.has(Rule::TagIsRaisedEverywhere));
        let epoch = batch.job.epoch;
        let Some(data) = state.shard_mut(batch.job.shard).filter(|data| data.epoch == epoch) else {
            say(format_args!("T{task} finds another epoch"));
            return Task::Idle;
        };
        if batch.tag == Tag::Raise {
            if is_everywhere || !data.members.is_empty() {
                data.tag_stamp = data.tag_stamp.max(batch.to.stamp);
            }
            say(format_args!("T{task} raises the tag on shard {} to {}", batch.job.shard, data.tag_stamp));
        } else {
            say(format_args!("T{task} lists the tag on shard {}: {}", batch.job.shard, data.members));
            let adopted = data.members.iter().filter(|slot| batch.job.adopted[*slot] != Adopted::No);
            batch.todo = adopted.fold(batch.todo, Set::with);
        }
        batch.tag = match (batch.tag, is_first) {
            (Tag::Raise, true) => Tag::List,
            (Tag::List, false) => Tag::Raise,
            _ => Tag::Unchanged,
        };
        Task::Apply(batch)
    }

    pub(super) fn raise_one(
        &self,
        state: &mut State,
        task: usize,
        mut batch: Batch,
        slot: usize,
        say: Say<'_>,
    ) -> Task {
        let answer = self.raise(state, &batch.job, slot, batch.to.stamp);
        say(format_args!("T{task} raises k{slot} on shard {}: {}", batch.job.shard, words(answer)));
        batch.todo = batch.todo.without(slot);
        match answer {
            Ok(true) if self.is_unstamped(slot) => {
                state.nodes[state.homes[batch.job.shard].unwrap()].slots[slot].entry = None;
                say(format_args!(", and deleted"));
                Task::Apply(batch)
            }
            Ok(true) => Task::Load(batch, slot),
            Ok(false) => Task::Apply(batch),
            Err(Answer::Failed) => Task::Idle,
            Err(_) => Task::Apply(Batch { skipped: batch.skipped.with(slot), ..batch }),
        }
    }

    pub(super) fn store_one(
        &self,
        state: &mut State,
        task: usize,
        batch: Batch,
        slot: usize,
        loaded: &Snapshot,
        say: Say<'_>,
    ) -> Task {
        let answer = self.store(state, &to_store(&batch.job, slot, batch.job.generation(slot), loaded));
        say(format_args!("T{task} stores k{slot} on shard {}: {}", batch.job.shard, words(told(answer))));
        match answer {
            Answer::Done => Task::Apply(batch),
            Answer::Refused => Task::Load(batch, slot),
            Answer::Gone => Task::Apply(Batch { skipped: batch.skipped.with(slot), ..batch }),
            Answer::Failed => Task::Idle,
        }
    }

    /// The others are asked before the cursor moves.
    pub(super) fn look(&self, state: &mut State, task: usize, batch: Batch, say: Say<'_>) -> Task {
        let all: Set = (0..SLOTS).collect();
        if !self.world.has(Rule::OthersAreAsked) || !self.world.has(Rule::OthersAreAskedAgain) {
            return self.move_cursor(state, task, &batch, all, say);
        }
        let clear = self.clear(state, task);
        say(format_args!("T{task} asks for keys at other nodes than their own: none of {clear}"));
        Task::Advance(batch, clear)
    }

    /// The slots that no server shows as moving and of which, as far as the task knows, no other node holds keys.
    pub(super) fn clear(&self, state: &mut State, task: usize) -> Set {
        let now = state.asked_now();
        let known = state.asked[task].filter(|known| (known.map, known.moving) == (now.map, now.moving));
        let asked = known.unwrap_or(now);
        if self.world.asks_seldom {
            state.asked[task] = Some(asked);
        }
        let held = if self.world.asks_seldom { asked.held } else { now.held };
        (0..SLOTS).filter(|slot| !now.moving[*slot] && !held.contains(*slot)).collect()
    }

    pub(super) fn move_cursor(
        &self,
        state: &mut State,
        task: usize,
        batch: &Batch,
        clear: Set,
        say: Say<'_>,
    ) -> Task {
        let is_done = self.advance(state, batch, clear, state.maps[task]);
        let covers = state.shard(batch.job.shard).and_then(|data| data.watermark).map(|mark| mark.covers);
        say(format_args!(
            "T{task} moves the cursor of shard {} to {}: {}",
            batch.job.shard,
            batch.to.stamp,
            done(is_done)
        ));
        if let Some(covers) = covers.filter(|_| is_done) {
            say(format_args!("; the watermark covers {covers}"));
        }
        Task::Idle
    }
}
