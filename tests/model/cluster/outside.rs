//! An application, about the key of slot 0: it fills by what it read before, or reads with a token.

use super::database::Snapshot;
use super::invariants::Invariant;
use super::model::Cluster;
use super::rules::{Application, Rule};
use super::scripts::{Answer, Basis, Store};
use super::state::{State, Value, Watermark, node_name};
use crate::protocol::Say;

const SLOT: usize = 0;

/// What a fill goes by: guard and metadata as they were before its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    shard: usize,
    epoch: u8,
    generation: u8,
    counter: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Loader {
    Idle,
    Load(Seen),
    Store(Seen, Snapshot),
    Done,
}

/// One connection: to a node, for one run of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Connection {
    token: Snapshot,
    node: usize,
    run: u8,
    shard: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reader {
    Idle,
    Guard(Snapshot),
    Watermark(Connection, Option<Value>),
    Value(Connection, Option<Watermark>),
    Done,
}

impl Cluster {
    pub(super) fn can_fill(&self, state: &State) -> bool {
        let fills = matches!(self.world.application, Application::Fills | Application::FillsUnstamped);
        match state.loader {
            Loader::Idle => fills && self.seen(state).is_some(),
            Loader::Load(_) | Loader::Store(..) => true,
            Loader::Done => false,
        }
    }

    fn seen(&self, state: &State) -> Option<Seen> {
        let node = state.map.owners[SLOT];
        let guard = state.owned(SLOT).guard?;
        let shard = if self.world.has(Rule::GuardIsCompared) {
            Some(guard.shard).filter(|shard| state.homes[*shard] == Some(node))
        } else {
            state.local_shard(node)
        }?;
        let data = state.shard(shard)?;
        let counter = data.stamps[SLOT];
        Some(Seen { shard, epoch: data.epoch, generation: guard.generation, counter })
    }

    pub(super) fn fill(&self, state: &mut State, say: Say<'_>) {
        state.loader = match state.loader {
            Loader::Idle => match self.seen(state) {
                Some(seen) => {
                    say(format_args!("L reads guard and metadata of slot {SLOT}: shard {}", seen.shard));
                    Loader::Load(seen)
                }
                None => Loader::Idle,
            },
            Loader::Load(seen) => {
                let now = state.database.snapshot();
                say(format_args!("L loads k{SLOT}: {}", now.rows[SLOT]));
                Loader::Store(seen, now)
            }
            Loader::Store(seen, loaded) => {
                let answer = self.store_fill(state, seen, &loaded);
                let words = if answer == Answer::Done { "done" } else { "refused" };
                say(format_args!("L stores k{SLOT} = {}: {words}", loaded.rows[SLOT]));
                Loader::Done
            }
            Loader::Done => Loader::Done,
        };
    }

    fn store_fill(&self, state: &mut State, mut seen: Seen, loaded: &Snapshot) -> Answer {
        if !self.world.has(Rule::GuardIsCompared) {
            // It goes wherever the map of now sends it.
            let Some(now) = self.seen(state) else { return Answer::Gone };
            (seen.shard, seen.epoch) = (now.shard, now.epoch);
        }
        let basis = if self.world.application == Application::Fills {
            Basis::Stamp(loaded.stamp)
        } else {
            Basis::Counter(seen.counter)
        };
        let store = Store {
            shard: seen.shard,
            epoch: seen.epoch,
            slot: SLOT,
            generation: seen.generation,
            value: loaded.value(SLOT),
            incarnation: loaded.incarnation,
            basis,
            adds_member: true,
        };
        self.store(state, &store)
    }

    pub(super) fn can_read(&self, state: &State) -> bool {
        let reads = self.world.application == Application::Reads;
        reads && state.reader != Reader::Done
    }

    /// The three reads: one step in a script, else one each.
    pub(super) fn read_value(&self, state: &mut State, say: Say<'_>) {
        let is_begun = state.reader != Reader::Idle;
        self.read_on(state, say);
        while is_begun && !self.world.pipelined && state.reader != Reader::Done {
            say(format_args!("; "));
            self.read_on(state, say);
        }
    }

    fn read_on(&self, state: &mut State, say: Say<'_>) {
        let node = state.map.owners[SLOT];
        let is_connected = |link: &Connection| link.node == node && state.map.runs[node] == link.run;
        let value = state.owned(SLOT).entry;
        let mark = |link: &Connection| {
            let data = state.shard(link.shard).filter(|_| state.homes[link.shard] == Some(link.node));
            data.and_then(|data| data.watermark)
        };
        let is_watermark_first = self.world.has(Rule::WatermarkBeforeValue);
        state.reader = match state.reader {
            Reader::Idle => {
                let token = state.database.snapshot();
                say(format_args!("R takes a token at {}", token.stamp));
                Reader::Guard(token)
            }
            Reader::Guard(token) => {
                let named = state.owned(SLOT).guard.map(|guard| guard.shard);
                let local = state.local_shard(node);
                let shard = if self.world.has(Rule::ReaderLooksAtGuard) { named } else { local };
                say(format_args!("R reads the guard of slot {SLOT} on {}", node_name(node)));
                let link = |shard| Connection { token, node, run: state.map.runs[node], shard };
                match shard.filter(|shard| state.homes[*shard] == Some(node)) {
                    Some(shard) if is_watermark_first => Reader::Watermark(link(shard), None),
                    Some(shard) => Reader::Value(link(shard), None),
                    None => Reader::Done,
                }
            }
            Reader::Watermark(link, _) | Reader::Value(link, _) if !is_connected(&link) => {
                say(format_args!("R is cut off"));
                Reader::Done
            }
            Reader::Watermark(link, read) => {
                say(format_args!("R reads the watermark of shard {}", link.shard));
                let mark = mark(&link);
                if is_watermark_first {
                    Reader::Value(link, mark)
                } else {
                    self.accept(state, &link, mark, read);
                    Reader::Done
                }
            }
            Reader::Value(link, mark) => {
                say(format_args!("R reads k{SLOT}"));
                if is_watermark_first {
                    self.accept(state, &link, mark, value);
                    Reader::Done
                } else {
                    Reader::Watermark(link, value)
                }
            }
            Reader::Done => Reader::Done,
        };
    }

    /// R18: whoever is told that a value is fresh enough must not find it older than the token.
    fn accept(&self, state: &mut State, link: &Connection, mark: Option<Watermark>, value: Option<Value>) {
        let is_trusted = mark.is_some_and(|mark| {
            mark.covers.contains(SLOT)
                && mark.snapshot.incarnation == link.token.incarnation
                && link.token.stamp <= mark.snapshot.stamp
        });
        let is_older = value.is_some_and(|value| value.is_behind(link.token.value(SLOT)));
        self.breaks(state, Invariant::C5, is_trusted && is_older);
    }
}
