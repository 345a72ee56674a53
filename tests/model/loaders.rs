//! Loaders: fills on a miss and pages of a backfill. Each may stall between any two steps, for ever too.

use crate::database::Database;
use crate::protocol::{Protocol, Say};
use crate::rules::Page;
use crate::scripts::{Answer, Load, Statement, StoreMode};
use crate::state::{Epoch, SHARED, Set, State, Table, Words};
use crate::worlds::{Kind, Shared, TagScripts};

/// A page or fill under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flight {
    /// How many loads come after this one.
    left: u8,
    epoch: Epoch,
    load: Load,
    keys: Set,
}

/// The next step of a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Loader {
    Idle {
        left: u8,
    },
    /// The statement was sent and takes its snapshot.
    Sent {
        left: u8,
        epoch: Epoch,
        statement: Statement,
    },
    FloorBefore(Flight),
    Store(Flight),
    FloorAfter(Flight),
    /// R8 left out: register, check and write as three scripts.
    Register(Flight),
    Check(Flight),
    Write(Flight),
}

impl Protocol {
    pub(crate) fn loader_can_step(&self, state: &State, loader: usize) -> bool {
        let Loader::Idle { left } = state.loaders[loader] else {
            return true;
        };
        let plan = &self.world.loaders[loader];
        let Some(table) = &state.redis.table else {
            return false;
        };
        let is_wanted = plan.kind == Kind::Warm || state.redis.entries[plan.keys[0]].is_none();
        let names = self.world.rules.store_names_incarnation;
        0 < left && is_wanted && (!names || table.incarnation == state.database.incarnation)
    }

    pub(crate) fn loader_step(&self, state: &mut State, loader: usize, say: Say<'_>) {
        state.loaders[loader] = match state.loaders[loader] {
            Loader::Idle { left } if self.world.shared == Shared::Definition => {
                let (revision, definition) = (state.redis.revision, state.database.rows[SHARED]);
                say(format_args!(
                    "L{loader} reads revision {revision} and sends a statement under {definition}"
                ));
                let epoch = state.redis.table.unwrap().epoch;
                Loader::Sent { left, epoch, statement: Self::send(state) }
            }
            Loader::Idle { left } => {
                let epoch = state.redis.table.unwrap().epoch;
                self.begin_load(state, loader, (left, epoch), Self::send(state), say)
            }
            Loader::Sent { left, epoch, statement } => {
                self.begin_load(state, loader, (left, epoch), statement, say)
            }
            Loader::FloorBefore(flight) => Self::floor_before(state, loader, flight, say),
            Loader::Store(flight) => self.store_page(state, loader, flight, true, say),
            Loader::Write(flight) => self.store_page(state, loader, flight, false, say),
            Loader::FloorAfter(flight) => {
                say(format_args!("L{loader} raises the floor to {} afterwards", flight.load.stamp));
                if let Some(table) = state.redis.table.as_mut().filter(|table| table.epoch == flight.epoch) {
                    table.floor = table.floor.max(flight.load.stamp);
                }
                Loader::Idle { left: flight.left }
            }
            Loader::Register(flight) => {
                let key = flight.keys.first().unwrap();
                say(format_args!("L{loader} registers k{key} under its tag"));
                state.redis.members = state.redis.members.with(key);
                if self.world.rules.registers_before_check {
                    Loader::Check(flight)
                } else {
                    Loader::Write(flight)
                }
            }
            Loader::Check(flight) => self.check_tag(state, loader, flight, say),
        };
    }

    fn begin_load(
        &self,
        state: &State,
        loader: usize,
        (left, epoch): (u8, Epoch),
        statement: Statement,
        say: Say<'_>,
    ) -> Loader {
        let rules = &self.world.rules;
        let keys: Set = self.world.loaders[loader].keys.iter().copied().collect();
        say(format_args!("L{loader} loads {keys} at {}", state.database.snapshot()));
        let flight = Flight { left: left - 1, epoch, load: self.answer(state, statement), keys };
        if rules.page == Page::FloorBefore {
            Loader::FloorBefore(flight)
        } else if !self.world.tags || self.world.tag_scripts == TagScripts::One {
            Loader::Store(flight)
        } else if rules.registers_before_check {
            Loader::Register(flight)
        } else {
            Loader::Check(flight)
        }
    }

    fn floor_before(state: &mut State, loader: usize, flight: Flight, say: Say<'_>) -> Loader {
        let is_allowed = |table: &&mut Table| {
            table.epoch == flight.epoch
                && table.incarnation == flight.load.incarnation
                && table.floor <= flight.load.stamp
        };
        let Some(table) = state.redis.table.as_mut().filter(is_allowed) else {
            say(format_args!("L{loader} raises the floor: refused"));
            return Loader::Idle { left: flight.left };
        };
        table.floor = flight.load.stamp;
        say(format_args!("L{loader} raises the floor to {}", flight.load.stamp));
        Loader::Store(flight)
    }

    fn check_tag(&self, state: &State, loader: usize, flight: Flight, say: Say<'_>) -> Loader {
        if state.redis.table.is_none() || flight.load.stamp < state.redis.tag_stamp {
            say(format_args!("L{loader} checks the tag: refused"));
            return Loader::Idle { left: flight.left };
        }
        say(format_args!("L{loader} checks the tag: passes"));
        if self.world.rules.registers_before_check { Loader::Write(flight) } else { Loader::Register(flight) }
    }

    /// One key of the page. `minds_tag` is false where two scripts before this one did it.
    fn store_page(
        &self,
        state: &mut State,
        loader: usize,
        mut flight: Flight,
        minds_tag: bool,
        say: Say<'_>,
    ) -> Loader {
        let rules = &self.world.rules;
        if let Some(table) = state.redis.table.filter(|_| !rules.epoch_before_load) {
            flight.epoch = table.epoch;
        }
        let key = flight.keys.first().unwrap();
        let mode = StoreMode { raises_slot: rules.page == Page::Slots, minds_tag };
        let answer = self.store(state, flight.epoch, &flight.load, key, mode);
        let entry = Database::query(&flight.load.rows, key, self.world.deleted);
        say(format_args!("L{loader} stores k{key} = {} at {}: {answer}", Words(entry), flight.load.stamp));
        flight.keys = flight.keys.without(key);
        if answer == Answer::Failed {
            Loader::Idle { left: flight.left }
        } else if !flight.keys.is_empty() {
            if minds_tag { Loader::Store(flight) } else { Loader::Write(flight) }
        } else if rules.page == Page::FloorAfter {
            Loader::FloorAfter(flight)
        } else {
            Loader::Idle { left: flight.left }
        }
    }
}
