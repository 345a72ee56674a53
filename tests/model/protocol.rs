//! The model: one SQL statement, one commit, one script is one step, and all else interleaves.

use std::fmt::Arguments;

use stateright::{Model, Property};

use crate::database::{Capture, Database, ROW_NAMES};
use crate::faults::{FAULTS, Fault};
use crate::invariants::{Broken, Invariant};
use crate::keeper::Keeper;
use crate::loaders::Loader;
use crate::signals::{Event, Reader, TagEvent};
use crate::state::{Cursor, KEYS, Redis, SHARED, Set, State, Table, Watermark};
use crate::worker::Stage;
use crate::worlds::{Growth, Shared, World};

/// Takes a step in words; silent but for traces.
pub(crate) type Say<'a> = &'a mut dyn FnMut(Arguments<'_>);

/// The protocol in one world, and the invariants that this search looks for.
#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) world: World,
    pub(crate) watch: Vec<Invariant>,
}

/// A process that makes its next step, or a fault. A process that is never scheduled has stalled for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A statement begins, and writes later.
    Open(u8),
    Begin(u8),
    Prepare(u8),
    Commit(u8),
    /// Somebody switches the capture off, and on again.
    Switch,
    /// A partition is added to the tree.
    Grow,
    Worker(u8),
    /// A poll that does not verify the fingerprint.
    QuickPoll(u8),
    Keeper(u8),
    Loader(u8),
    /// With the key that an event which begins is about.
    Event(u8, u8),
    TagEvent,
    Reader,
    Fault(Fault, u8),
    /// The replica stops receiving: half of a failover.
    Copy,
}

impl Action {
    pub(crate) fn is_fault(self) -> bool {
        matches!(self, Self::Fault(..) | Self::Copy)
    }
}

impl Protocol {
    pub(crate) fn initial(&self) -> State {
        let database = Database::new(self.world.todo);
        let (rows, snapshot) = (database.rows, database.snapshot());
        let stamp = snapshot.stamp();
        let is_warm = !self.world.is_cold;
        let entries = KEYS.map(|key| Database::query(&rows, key, self.world.deleted).filter(|_| is_warm));
        let redis = Redis {
            table: Some(Table { epoch: 1, incarnation: 1, floor: stamp, slots: [0; 2], born: rows }),
            entries,
            cursor: Some(Cursor { epoch: 1, snapshot, seen: rows }),
            watermark: Some(Watermark { epoch: 1, incarnation: 1, stamp, seen: rows }),
            covered: self.coverage(&database),
            members: KEYS.into_iter().filter(|_| is_warm).collect(),
            ..Redis::default()
        };
        let mut faults = [0; FAULTS];
        for (fault, times) in self.world.faults {
            faults[*fault as usize] = *times;
        }
        // R16: a worker with a new definition begins by replacing the epoch of the old one.
        let first = |worker| match self.world.rules.definition_is_an_epoch && self.world.blind != Some(worker)
        {
            true => Stage::Floor { shown: Some(1) },
            false => Stage::Start,
        };
        let plan = |loader: usize| self.world.loaders.get(loader).map_or(0, |plan| plan.loads);
        State {
            database,
            redis,
            copy: None,
            newest: [None; 2],
            workers: [0, 1].map(first),
            keepers: [Keeper::Idle; 2],
            loaders: [0, 1, 2].map(|loader| Loader::Idle { left: plan(loader) }),
            events: [0, 1].map(|event| if event < self.world.events { Event::Idle } else { Event::Done }),
            tag_event: TagEvent::Idle,
            reader: Reader::Idle,
            faults,
            last_epoch: 1,
            last_revision: 0,
            swallowed: Set::default(),
            broken: Broken::default(),
        }
    }

    /// Every step that is no fault.
    fn steps(&self, state: &State, actions: &mut Vec<Action>) {
        for (row, _) in (0..).zip(ROW_NAMES) {
            if state.database.running(usize::from(row)).is_some() {
                actions.push(Action::Commit(row));
            }
            self.begin_steps(state, row, actions);
        }
        for (worker, index) in (0..self.world.workers).zip(0..) {
            if self.worker_can_step(state, worker) {
                actions.push(Action::Worker(index));
            }
            if self.can_poll_quickly(state, worker) {
                actions.push(Action::QuickPoll(index));
            }
        }
        if self.world.has_switch && !matches!(state.database.capture, Capture::Back { .. }) {
            actions.push(Action::Switch);
        }
        if self.world.grows.is_some() && state.database.can_grow() {
            actions.push(Action::Grow);
        }
        for (keeper, index) in (0..self.world.keepers).zip(0..) {
            if self.keeper_can_step(state, keeper) {
                actions.push(Action::Keeper(index));
            }
        }
        for (loader, index) in (0..self.world.loaders.len()).zip(0..) {
            if self.loader_can_step(state, loader) {
                actions.push(Action::Loader(index));
            }
        }
        for (event, index) in (0..self.world.events).zip(0..) {
            if Self::event_can_step(state, event) {
                actions.push(Action::Event(index, 0));
                if state.events[event] == Event::Idle {
                    actions.push(Action::Event(index, 1));
                }
            }
        }
        if self.tag_event_can_step(state) {
            actions.push(Action::TagEvent);
        }
        if self.reader_can_step(state) {
            actions.push(Action::Reader);
        }
    }

    /// Nothing happens any more, unless something goes wrong.
    pub(crate) fn is_at_rest(&self, state: &State) -> bool {
        // The cheap half of the question answers it for nearly all states.
        let is_busy = (0..self.world.workers).any(|worker| self.worker_can_step(state, worker));
        let mut actions = Vec::new();
        if !is_busy && state.broken.is_empty() {
            self.steps(state, &mut actions);
        }
        !is_busy && state.broken.is_empty() && actions.is_empty()
    }

    pub(crate) fn step(&self, before: &State, action: Action, say: Say<'_>) -> State {
        let mut state = before.clone();
        match action {
            Action::Open(row) => {
                say(format_args!("a statement begins that will write row {}", ROW_NAMES[usize::from(row)]));
                state.database.open(usize::from(row));
            }
            Action::Prepare(row) => {
                let xid = state.database.prepare(usize::from(row));
                say(format_args!("transaction {xid} is prepared"));
            }
            Action::Switch => {
                state.database.switch();
                let is_off = state.database.capture == Capture::Off;
                say(format_args!("the capture is switched {}", if is_off { "off" } else { "on" }));
            }
            Action::Grow => {
                let has_rows = self.world.grows == Some(Growth::WithRows);
                state.database.grow(has_rows);
                let rows = if has_rows { state.database.rows[0].to_string() } else { "no rows".to_owned() };
                say(format_args!("a partition is added, with {rows}"));
            }
            Action::Begin(row) => self.begin(&mut state, usize::from(row), say),
            Action::Commit(row) => Self::commit(&mut state, usize::from(row), say),
            Action::Worker(worker) => self.worker_step(&mut state, usize::from(worker), say),
            Action::QuickPoll(worker) => self.quick_poll(&mut state, usize::from(worker), say),
            Action::Keeper(keeper) => self.keeper_step(&mut state, usize::from(keeper), say),
            Action::Loader(loader) => self.loader_step(&mut state, usize::from(loader), say),
            Action::Event(event, key) => self.event_step(&mut state, usize::from(event), key, say),
            Action::TagEvent => self.tag_event_step(&mut state, say),
            Action::Reader => self.reader_step(&mut state, say),
            Action::Fault(fault, target) => self.strike(&mut state, fault, target, say),
            Action::Copy => Self::copy(&mut state, say),
        }
        if !matches!(action, Action::Fault(Fault::Failover, _)) {
            self.compare_tables(before, &mut state);
        }
        state
    }

    /// What a transaction may do before it commits.
    fn begin_steps(&self, state: &State, row: u8, actions: &mut Vec<Action>) {
        let (database, index) = (&state.database, usize::from(row));
        let opens_first = self.world.has_switch;
        if opens_first && database.can_open(index) {
            actions.push(Action::Open(row));
        }
        if database.can_begin(index) && (!opens_first || database.has_opened(index)) {
            actions.push(Action::Begin(row));
        }
        if self.world.has_prepared && database.can_prepare(index) {
            actions.push(Action::Prepare(row));
        }
    }

    /// Where transactions do not overlap, begin and commit are one step.
    fn begin(&self, state: &mut State, row: usize, say: Say<'_>) {
        let is_data = row != SHARED || self.world.shared == Shared::Row;
        let is_captured = is_data && state.database.is_captured(row);
        let xid = state.database.begin(row, is_captured);
        if self.world.overlap {
            say(format_args!("transaction {xid} begins and writes row {}", ROW_NAMES[row]));
        } else {
            Self::commit(state, row, say);
        }
    }

    fn commit(state: &mut State, row: usize, say: Say<'_>) {
        let xid = state.database.commit(row);
        say(format_args!("transaction {xid} commits row {} as {}", ROW_NAMES[row], state.database.rows[row]));
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.initial()]
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
