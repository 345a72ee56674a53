//! The model of the cluster, as the search takes it.

use stateright::{Model, Property};

use super::database::{Database, SHARED};
use super::invariants::{ALL, Broken, Invariant};
use super::outside::{Loader, Reader};
use super::rules::World;
use super::state::{Adopted, Guard, Held, LeftOver, Map, Node, SLOTS, Shard, State, Watermark};
use super::tasks::{Task, Work};
use super::topology::{FAULTS, Fault};
use crate::protocol::Say;
use crate::search::Searched;
use crate::state::Set;

#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) watch: Vec<Invariant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Commit(usize),
    Begin(usize, Work),
    GoOn(usize),
    Fill,
    Read,
    MoveEntry(usize),
    MoveGuard(usize),
    End(usize),
    Expire(usize),
    Fault(Fault, usize),
    BringBackGuard(usize),
    Copy(usize),
}

impl Cluster {
    /// Slot 0 is A's, slot 1 is B's, and each has been adopted and is covered.
    fn first(&self) -> State {
        let database = Database::new(self.world.todo);
        let snapshot = database.snapshot();
        let runs = [1, 11];
        let map = Map { owners: [0, 1], runs };
        let node = |node: usize| {
            let mut slots = [Held::default(); SLOTS];
            let entry = self.world.cached[node].then(|| snapshot.value(node));
            let guard = Guard { shard: node, generation: 1, floor: 1, incarnation: 1 };
            slots[node] = Held { entry, guard: Some(guard) };
            let mut adopted = [Adopted::No; SLOTS];
            adopted[node] = Adopted::Settled(1);
            let own = Set::default().with(node);
            let shard = Shard {
                epoch: 1,
                cursor: snapshot,
                floor: 1,
                stamps: [0; SLOTS],
                tag_stamp: 0,
                members: if entry.is_some() { own } else { Set::default() },
                adopted,
                run: runs[node],
                runs,
                watermark: Some(Watermark { snapshot, runs, node, covers: own }),
            };
            let mut shards = [None; 3];
            shards[node] = Some(shard);
            Node { slots, shards }
        };
        let mut faults = [0; FAULTS];
        for (fault, _, times) in self.world.faults {
            faults[*fault as usize] = faults[*fault as usize].max(*times);
        }
        let mut state = State {
            database,
            nodes: [node(0), node(1)],
            map,
            moving: [None; SLOTS],
            homes: [Some(0), Some(1), None],
            copies: [None, None],
            left_over: [LeftOver::None; SLOTS],
            tasks: [Task::Idle; 2],
            maps: [map; 2],
            asked: [None; 2],
            loader: Loader::Idle,
            reader: Reader::Idle,
            newest: [None; SLOTS],
            faults,
            last_epoch: 1,
            last_generation: 1,
            idle: self.world.idle,
            contests: self.world.contests,
            broken: Broken::default(),
        };
        if self.world.has_moved {
            Self::move_before(&mut state);
        }
        state
    }

    /// B has adopted slot 0, and A is not told of its past; its replica has received nothing since.
    fn move_before(state: &mut State) {
        let [a, b] = &mut state.nodes;
        state.copies[0] = Some(a.clone());
        state.map = Map { owners: [1, 1], ..state.map };
        state.maps = [state.map; 2];
        state.last_generation = 2;
        let guard = Guard { shard: 1, generation: 2, floor: 1, incarnation: 1 };
        b.slots[0] = Held { guard: Some(guard), ..std::mem::take(&mut a.slots[0]) };
        let (a, b) = (a.shards[0].as_mut().unwrap(), b.shards[1].as_mut().unwrap());
        (a.adopted[0], b.adopted[0]) = (Adopted::No, Adopted::Settled(2));
        (a.members, b.members) = (Set::default(), a.members.union(b.members));
        let watermark = |covers| a.watermark.map(|mark| Watermark { covers, ..mark });
        (a.watermark, b.watermark) = (watermark(Set::default()), watermark([0, 1].into_iter().collect()));
    }

    /// Every step that is no fault.
    fn steps(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend((0..=SHARED).filter(|row| state.database.can_commit(*row)).map(Action::Commit));
        for task in 0..self.world.tasks {
            if state.tasks[task] == Task::Idle {
                actions.extend(self.work(state, task).into_iter().map(|work| Action::Begin(task, work)));
            } else {
                actions.push(Action::GoOn(task));
            }
        }
        if self.can_fill(state) {
            actions.push(Action::Fill);
        }
        if self.can_read(state) {
            actions.push(Action::Read);
        }
        self.migrations(state, actions);
    }
}

impl Searched for Cluster {
    type Invariant = Invariant;

    const ALL: &'static [Invariant] = &ALL;
    const REST_IS_REACHABLE: Invariant = Invariant::C8;

    fn name(invariant: Invariant) -> &'static str {
        invariant.name()
    }

    fn watching(&self, watch: &[Invariant]) -> Self {
        Self { world: self.world.clone(), watch: watch.to_vec() }
    }

    fn initial(&self) -> State {
        self.first()
    }

    fn step(&self, before: &State, action: Action, say: Say<'_>) -> State {
        let mut state = before.clone();
        match action {
            Action::Commit(row) => {
                let version = state.database.commit(row);
                let name =
                    if row == SHARED { "the shared row".to_owned() } else { format!("the row of k{row}") };
                say(format_args!("{name} is committed as {version}"));
            }
            Action::Begin(task, work) => self.begin(&mut state, task, work, say),
            Action::GoOn(task) => self.go_on(&mut state, task, say),
            Action::Fill => self.fill(&mut state, say),
            Action::Read => self.read_value(&mut state, say),
            Action::MoveEntry(slot) => Self::move_entry(&mut state, slot, say),
            Action::MoveGuard(slot) => Self::move_guard(&mut state, slot, say),
            Action::End(slot) => Self::end(&mut state, slot, say),
            Action::Expire(slot) => Self::expire(&mut state, slot, say),
            Action::Fault(fault, target) => Self::strike(&mut state, fault, target, say),
            Action::BringBackGuard(slot) => Self::bring_back_guard(&mut state, slot, say),
            Action::Copy(node) => Self::copy(&mut state, node, say),
        }
        self.note_left_overs(before, &mut state);
        state
    }

    fn is_at_rest(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        let is_busy = state.tasks.iter().any(|task| *task != Task::Idle);
        if !is_busy && state.broken.is_empty() {
            self.steps(state, &mut actions);
        }
        !is_busy && state.broken.is_empty() && actions.is_empty()
    }

    fn is_fault(action: Action) -> bool {
        matches!(action, Action::Fault(..) | Action::Copy(_) | Action::BringBackGuard(_))
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.first()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_empty() {
            self.steps(state, actions);
            self.faults(state, actions);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.step(state, action, &mut |_| ()))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        self.watched()
    }
}
