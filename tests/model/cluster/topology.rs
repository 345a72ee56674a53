//! What happens to a cluster: slots and homes move, nodes fail over to older copies, keys are lost or come back.

use super::model::{Action, Cluster};
use super::state::{Held, LeftOver, Migration, NODES, Node, SLOTS, State, TASKS, node_name};
use super::tasks::Task;
use crate::protocol::Say;

/// How many kinds of faults there are.
pub(crate) const FAULTS: usize = 11;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// A slot begins to move to the other node.
    Migrate,
    /// Such a migration turns back.
    TurnBack,
    /// The replica of a node takes over, with what it had received.
    Failover,
    /// A node restarts with an old dump: no other node learns of it.
    Restart,
    Flush,
    EvictEntry,
    EvictGuard,
    /// Postgres loses its last commit, and has another incarnation.
    Crash,
    /// The home slot of a shard moves to the other node.
    MoveHome,
    /// A tool restores what another node has left of a slot, over what is there.
    BringBack,
    /// A task ends half way.
    Kill,
}

impl Cluster {
    pub(super) fn faults(&self, state: &State, actions: &mut Vec<Action>) {
        for (fault, target, _) in self.world.faults {
            let (fault, target) = (*fault, *target);
            if state.faults[fault as usize] == 0 {
                continue;
            }
            if matches!(fault, Fault::Failover | Fault::Restart) && state.copies[target].is_none() {
                actions.push(Action::Copy(target));
            }
            if self.can_strike(state, fault, target) {
                actions.push(Action::Fault(fault, target));
            }
            if fault == Fault::BringBack
                && self.can_bring_back(state, target)
                && state.other(target).guard.is_some()
            {
                actions.push(Action::BringBackGuard(target));
            }
        }
    }

    fn can_bring_back(&self, state: &State, slot: usize) -> bool {
        let is_known = state.left_over[slot] == LeftOver::Old || !self.world.tools_are_slow;
        state.moving[slot].is_none() && is_known
    }

    fn can_strike(&self, state: &State, fault: Fault, target: usize) -> bool {
        match fault {
            Fault::Migrate => state.moving[target].is_none(),
            Fault::TurnBack => state.moving[target].is_some_and(|moving| !moving.is_turned_back),
            Fault::Failover | Fault::Restart => state.copies[target].is_some(),
            Fault::Flush => state.nodes[target] != Node::default(),
            Fault::EvictEntry => state.owned(target).entry.is_some(),
            Fault::EvictGuard => state.owned(target).guard.is_some(),
            Fault::Crash => state.database.can_lose(),
            Fault::MoveHome => state.shard(target).is_some(),
            Fault::BringBack => self.can_bring_back(state, target) && state.other(target).entry.is_some(),
            Fault::Kill => state.tasks[target] != Task::Idle,
        }
    }

    pub(super) fn strike(state: &mut State, fault: Fault, target: usize, say: Say<'_>) {
        state.faults[fault as usize] -= 1;
        match fault {
            Fault::Migrate => {
                let target_node = 1 - state.map.owners[target];
                say(format_args!("slot {target} begins to move to {}", node_name(target_node)));
                state.moving[target] = Some(Migration { target: target_node, is_turned_back: false });
            }
            Fault::TurnBack => {
                say(format_args!("the migration of slot {target} turns back"));
                state.moving[target] =
                    state.moving[target].map(|moving| Migration { is_turned_back: true, ..moving });
            }
            Fault::Failover => {
                say(format_args!("{} fails over to its copy", node_name(target)));
                state.nodes[target] = state.copies[target].take().unwrap();
                Self::begin_run(state, target);
            }
            Fault::Restart => {
                say(format_args!("{} restarts with an old dump", node_name(target)));
                state.nodes[target] = state.copies[target].take().unwrap();
                state.map.runs[target] += 1;
                Self::forget_newest(state, target);
            }
            Fault::Flush => {
                say(format_args!("{} is flushed", node_name(target)));
                state.nodes[target] = Node::default();
                Self::forget_newest(state, target);
            }
            Fault::EvictEntry => {
                say(format_args!("k{target} is evicted"));
                let owner = state.map.owners[target];
                state.nodes[owner].slots[target].entry = None;
            }
            Fault::EvictGuard => {
                say(format_args!("the guard of slot {target} is evicted"));
                let owner = state.map.owners[target];
                state.nodes[owner].slots[target].guard = None;
            }
            Fault::Crash => {
                say(format_args!("Postgres crashes and loses its last commit"));
                state.database.crash();
            }
            Fault::MoveHome => Self::move_home(state, target, say),
            Fault::BringBack => {
                say(format_args!(
                    "a tool brings back k{target} = {}",
                    state.other(target).entry.unwrap().own
                ));
                let owner = state.map.owners[target];
                state.nodes[owner].slots[target].entry = state.nodes[1 - owner].slots[target].entry.take();
                state.newest[target] = None;
            }
            Fault::Kill => {
                say(format_args!("T{target} is killed"));
                (state.tasks[target], state.maps[target]) = (Task::Idle, state.map);
                state.asked[target] = None;
            }
        }
    }

    pub(super) fn bring_back_guard(state: &mut State, slot: usize, say: Say<'_>) {
        state.faults[Fault::BringBack as usize] -= 1;
        let owner = state.map.owners[slot];
        say(format_args!("a tool brings back the guard of slot {slot}"));
        state.nodes[owner].slots[slot].guard = state.nodes[1 - owner].slots[slot].guard.take();
    }

    pub(super) fn copy(state: &mut State, node: usize, say: Say<'_>) {
        say(format_args!("the replica of {} stops receiving", node_name(node)));
        state.copies[node] = Some(state.nodes[node].clone());
    }

    /// A replica was promoted: it knows of no migration.
    fn begin_run(state: &mut State, node: usize) {
        state.map.runs[node] += 1;
        state.moving = [None; SLOTS];
        Self::forget_newest(state, node);
    }

    fn forget_newest(state: &mut State, node: usize) {
        (0..SLOTS).filter(|slot| state.map.owners[*slot] == node).for_each(|slot| state.newest[slot] = None);
    }

    fn move_home(state: &mut State, shard: usize, say: Say<'_>) {
        let from = state.homes[shard].unwrap();
        let to = 1 - from;
        say(format_args!("the home slot of shard {shard} moves to {}", node_name(to)));
        state.nodes[to].shards[shard] = state.nodes[from].shards[shard].take();
        state.homes[shard] = Some(to);
    }

    /// The steps of migrations under way, and what expires where it is not served.
    pub(super) fn migrations(&self, state: &State, actions: &mut Vec<Action>) {
        for slot in 0..SLOTS {
            let Some(moving) = state.moving[slot] else {
                if state.other(slot).entry.is_some() {
                    actions.push(Action::Expire(slot));
                }
                continue;
            };
            let from = source(moving);
            let held = &state.nodes[from].slots[slot];
            // On the way back nothing is replaced: what stayed is newer than what an old copy of the other node has.
            let is_in_the_way = moving.is_turned_back && state.owned(slot).entry.is_some();
            if held.entry.is_some() && !is_in_the_way {
                actions.push(Action::MoveEntry(slot));
            }
            let is_in_the_way = moving.is_turned_back && state.owned(slot).guard.is_some();
            if held.guard.is_some() && !is_in_the_way {
                actions.push(Action::MoveGuard(slot));
            }
            if self.world.ends_early || moving.is_turned_back || held.entry.is_none() && held.guard.is_none()
            {
                actions.push(Action::End(slot));
            }
        }
    }

    pub(super) fn move_entry(state: &mut State, slot: usize, say: Say<'_>) {
        let from = source(state.moving[slot].unwrap());
        say(format_args!("k{slot} moves to {}", node_name(1 - from)));
        state.nodes[1 - from].slots[slot].entry = state.nodes[from].slots[slot].entry.take();
    }

    pub(super) fn move_guard(state: &mut State, slot: usize, say: Say<'_>) {
        let from = source(state.moving[slot].unwrap());
        say(format_args!("the guard of slot {slot} moves to {}", node_name(1 - from)));
        state.nodes[1 - from].slots[slot].guard = state.nodes[from].slots[slot].guard.take();
    }

    pub(super) fn end(state: &mut State, slot: usize, say: Say<'_>) {
        let moving = state.moving[slot].take().unwrap();
        if moving.is_turned_back {
            say(format_args!("slot {slot} stays where it was"));
            return;
        }
        say(format_args!("slot {slot} is {}'s", node_name(moving.target)));
        state.map.owners[slot] = moving.target;
    }

    pub(super) fn expire(state: &mut State, slot: usize, say: Say<'_>) {
        say(format_args!("k{slot} expires where it is not served"));
        let other = 1 - state.map.owners[slot];
        state.nodes[other].slots[slot].entry = None;
    }

    pub(super) fn has_tools(&self) -> bool {
        self.world.faults.iter().any(|(fault, ..)| *fault == Fault::BringBack)
    }

    /// What is left of a slot at another node is news, until a round of the feed has seen it.
    pub(super) fn note_left_overs(&self, before: &State, state: &mut State) {
        if !self.has_tools() {
            return;
        }
        for slot in 0..SLOTS {
            let left = |state: &State| {
                if state.moving[slot].is_none() { *state.other(slot) } else { Held::default() }
            };
            let now = left(state);
            if now.entry.is_none() && now.guard.is_none() {
                state.left_over[slot] = LeftOver::None;
            } else if now != left(before) {
                state.left_over[slot] = LeftOver::Fresh;
                (0..TASKS).for_each(|task| state.tasks[task].forget_fresh(slot));
            }
        }
    }
}

fn source(moving: Migration) -> usize {
    if moving.is_turned_back { moving.target } else { NODES - 1 - moving.target }
}
