//! Events of a key and of a tag (lost: never scheduled; duplicated: two), and the reader with a token.

use crate::database::{Rows, Stamp};
use crate::invariants::Invariant;
use crate::protocol::{Protocol, Say};
use crate::rules::TokenRead;
use crate::scripts::Load;
use crate::state::{Entry, Epoch, Incarnation, SHARED, Set, State, Words};

/// An invalidation of one key over pub/sub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    Idle,
    Stamped { key: u8, stamp: Stamp, epoch: Epoch, incarnation: Incarnation },
    Done,
}

/// An invalidation by tag, for a change of the shared row that no trigger covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TagEvent {
    Idle,
    Raise { stamp: Stamp, members: Set },
    Enumerate { stamp: Stamp },
    Invalidate { stamp: Stamp, members: Set },
    Done,
}

/// A reader of key 0 with a read-your-writes token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reader {
    Idle,
    Token(Load),
    /// It has read one of watermark and value, and will read the other.
    Second {
        token: Load,
        value: Option<Entry>,
    },
    Done,
}

impl Protocol {
    pub(crate) fn event_can_step(state: &State, event: usize) -> bool {
        match state.events[event] {
            Event::Idle => state.redis.table.is_some() && state.database.has_changes(),
            Event::Stamped { .. } => true,
            Event::Done => false,
        }
    }

    /// `wanted` is the key that an idle event will be about.
    pub(crate) fn event_step(&self, state: &mut State, event: usize, wanted: u8, say: Say<'_>) {
        state.events[event] = match state.events[event] {
            Event::Idle => {
                let stamp = state.database.snapshot().stamp();
                say(format_args!("E{event} is about k{wanted} and takes stamp {stamp}"));
                let epoch = state.redis.table.unwrap().epoch;
                Event::Stamped { key: wanted, stamp, epoch, incarnation: state.database.incarnation }
            }
            Event::Stamped { key, stamp, epoch, incarnation } => {
                let keys = Set::default().with(usize::from(key));
                let named = self.world.rules.invalidation_names_epoch.then_some((epoch, incarnation));
                let is_done = self.raise(state, named, keys, stamp, true).is_some();
                let answer = if is_done { "done" } else { "of another epoch" };
                say(format_args!("E{event} invalidates k{key} at {stamp}: {answer}"));
                Event::Done
            }
            Event::Done => Event::Done,
        };
    }

    pub(crate) fn tag_event_can_step(&self, state: &State) -> bool {
        state.redis.table.is_some()
            && match state.tag_event {
                TagEvent::Idle => self.world.has_tag_event && 1 < state.database.rows[SHARED].number(),
                TagEvent::Done => false,
                _ => true,
            }
    }

    pub(crate) fn tag_event_step(&self, state: &mut State, say: Say<'_>) {
        let rules = &self.world.rules;
        let go_on = |stamp, members: Set| match members.is_empty() {
            true => TagEvent::Done,
            false => TagEvent::Invalidate { stamp, members },
        };
        state.tag_event = match state.tag_event {
            TagEvent::Idle => {
                let stamp = state.database.snapshot().stamp();
                say(format_args!("T takes stamp {stamp} for its event"));
                if rules.tag_is_raised_first {
                    TagEvent::Raise { stamp, members: Set::default() }
                } else {
                    TagEvent::Enumerate { stamp }
                }
            }
            TagEvent::Raise { stamp, members } => {
                say(format_args!("T raises the tag to {stamp}"));
                state.redis.tag_stamp = state.redis.tag_stamp.max(stamp);
                if rules.tag_is_raised_first { TagEvent::Enumerate { stamp } } else { go_on(stamp, members) }
            }
            TagEvent::Enumerate { stamp } => {
                let members = state.redis.members;
                say(format_args!("T enumerates the tag: {members}"));
                if rules.tag_is_raised_first {
                    go_on(stamp, members)
                } else {
                    TagEvent::Raise { stamp, members }
                }
            }
            TagEvent::Invalidate { stamp, members } => {
                let key = members.first().unwrap();
                let exists = state.redis.entries[key].is_some();
                say(format_args!("T invalidates k{key} at {stamp}"));
                if exists || rules.absent_members_are_raised {
                    self.raise(state, None, Set::default().with(key), stamp, true);
                    if self.world.removes_members {
                        self.remove_member(state, key);
                    }
                }
                go_on(stamp, members.without(key))
            }
            TagEvent::Done => TagEvent::Done,
        };
    }

    pub(crate) fn reader_can_step(&self, state: &State) -> bool {
        let order = self.world.rules.token_read;
        match state.reader {
            Reader::Idle => self.world.has_reader && state.database.has_changes(),
            Reader::Token(token) => order == TokenRead::ValueFirst || is_fresh(state, &token),
            Reader::Second { token, .. } => order == TokenRead::WatermarkFirst || is_fresh(state, &token),
            Reader::Done => false,
        }
    }

    pub(crate) fn reader_step(&self, state: &mut State, say: Say<'_>) {
        let now = state.redis.entries[0];
        state.reader = match (state.reader, self.world.rules.token_read) {
            (Reader::Idle, _) => {
                say(format_args!("R takes a token at {}", state.database.snapshot()));
                Reader::Token(Load::now(&state.database, state.redis.revision))
            }
            (Reader::Token(token), TokenRead::Together) => {
                say(format_args!("R reads a watermark that will do, and with it k0 = {}", Words(now)));
                self.accepts(state, &token.rows, now)
            }
            (Reader::Token(token), TokenRead::WatermarkFirst) => {
                say(format_args!("R reads a watermark that will do"));
                Reader::Second { token, value: None }
            }
            (Reader::Token(token), TokenRead::ValueFirst) => {
                say(format_args!("R reads k0 = {}", Words(now)));
                Reader::Second { token, value: now }
            }
            (Reader::Second { token, .. }, TokenRead::WatermarkFirst) => {
                say(format_args!("R reads k0 = {}", Words(now)));
                self.accepts(state, &token.rows, now)
            }
            (Reader::Second { token, value }, _) => {
                say(format_args!("R reads a watermark that will do"));
                self.accepts(state, &token.rows, value)
            }
            (Reader::Done, _) => Reader::Done,
        };
    }

    fn accepts(&self, state: &mut State, token: &Rows, value: Option<Entry>) -> Reader {
        self.breaks(state, Invariant::I10, value.is_some_and(|value| value.is_behind(0, token)));
        Reader::Done
    }
}

/// R18: the watermark satisfies the token.
fn is_fresh(state: &State, token: &Load) -> bool {
    state
        .redis
        .watermark
        .is_some_and(|watermark| watermark.incarnation == token.incarnation && token.stamp <= watermark.stamp)
}
