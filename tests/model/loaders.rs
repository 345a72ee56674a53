//! Loaders: fills on a miss and pages of a backfill. Each may stall between any two steps, for ever too.

use crate::database::Database;
use crate::protocol::{Protocol, Say};
use crate::rules::Page;
use crate::scripts::{Answer, Load, Statement, StoreMode, TagPart};
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
    /// What was removed from the tag when the keys were registered by an earlier script.
    removals: u8,
}

/// The counted job of a loader; those of workers and revalidations come before.
fn job_of(loader: usize) -> usize {
    4 + loader
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
    /// R8: all keys of the page in one script, which the job counts.
    RegisterPage(Flight),
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
            Loader::Store(flight) => self.store_page(state, loader, flight, say),
            Loader::Write(flight) => self.store_page(state, loader, flight, say),
            Loader::RegisterPage(flight) => Self::register_page(state, loader, flight, say),
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
        let flight = Flight { left: left - 1, epoch, load: self.answer(state, statement), keys, removals: 0 };
        if rules.page == Page::FloorBefore {
            Loader::FloorBefore(flight)
        } else if !self.world.tags || self.world.tag_scripts == TagScripts::One {
            Loader::Store(flight)
        } else if self.world.tag_scripts == TagScripts::MembersFirst {
            Loader::RegisterPage(flight)
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

    fn register_page(state: &mut State, loader: usize, flight: Flight, say: Say<'_>) -> Loader {
        say(format_args!("L{loader} registers {} under their tag", flight.keys));
        state.begin_job(job_of(loader));
        state.count(job_of(loader));
        state.redis.members = state.redis.members.union(flight.keys);
        Loader::Store(Flight { removals: state.redis.removals, ..flight })
    }

    fn check_tag(&self, state: &State, loader: usize, flight: Flight, say: Say<'_>) -> Loader {
        if state.redis.table.is_none() || flight.load.stamp < state.redis.tag_stamp {
            say(format_args!("L{loader} checks the tag: refused"));
            return Loader::Idle { left: flight.left };
        }
        say(format_args!("L{loader} checks the tag: passes"));
        if self.world.rules.registers_before_check { Loader::Write(flight) } else { Loader::Register(flight) }
    }

    /// One key of the page.
    fn store_page(&self, state: &mut State, loader: usize, mut flight: Flight, say: Say<'_>) -> Loader {
        let rules = &self.world.rules;
        if let Some(table) = state.redis.table.filter(|_| !rules.epoch_before_load) {
            flight.epoch = table.epoch;
        }
        let key = flight.keys.first().unwrap();
        let raises_slot = rules.page == Page::Slots;
        let tag = match (state.loaders[loader], self.world.tag_scripts) {
            (Loader::Write(_), _) => TagPart::None,
            (_, TagScripts::MembersFirst) => TagPart::Check,
            _ => TagPart::Whole,
        };
        let answer = if tag == TagPart::Check && self.has_lost_members(state, loader, &flight) {
            Answer::Failed
        } else {
            self.store(state, flight.epoch, &flight.load, key, StoreMode { raises_slot, tag })
        };
        let entry = Database::query(&flight.load.rows, key, self.world.deleted);
        say(format_args!("L{loader} stores k{key} = {} at {}: {answer}", Words(entry), flight.load.stamp));
        flight.keys = flight.keys.without(key);
        if answer == Answer::Failed {
            Loader::Idle { left: flight.left }
        } else if !flight.keys.is_empty() {
            if tag == TagPart::None { Loader::Write(flight) } else { Loader::Store(flight) }
        } else if rules.page == Page::FloorAfter {
            Loader::FloorAfter(flight)
        } else {
            Loader::Idle { left: flight.left }
        }
    }

    /// R8: what an earlier script registered may be gone: Redis was rolled back, or members were removed.
    fn has_lost_members(&self, state: &State, loader: usize, flight: &Flight) -> bool {
        let rules = &self.world.rules;
        rules.store_names_count && state.swallowed.contains(job_of(loader))
            || rules.store_names_removals && state.redis.removals != flight.removals
    }
}
