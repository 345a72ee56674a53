//! I13: from every state a state at rest can be reached without a further fault.
//!
//! stateright's `eventually` asks for more and sees less. It wants every path to arrive, so a worker that
//! could retry for ever while others stall is a failure to it, although no rule forbids the others to move;
//! and it does not look at cycles at all, which is what a livelock is. So this records the graph and walks it
//! backwards from rest. As in stateright, 64 bits stand for a state.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::search::Searched;

/// The way to the first state from which no rest can be reached, if there is one, and the number of states.
pub(crate) fn unreachable<M: Searched>(protocol: &M) -> (Option<Vec<M::Action>>, usize) {
    let initial = protocol.initial();
    let fingerprint = |state: &M::State| BuildHasherDefault::<DefaultHasher>::new().hash_one(state);
    let mut numbers = HashMap::from([(fingerprint(&initial), 0_usize)]);
    let mut parents: Vec<Option<(usize, M::Action)>> = vec![None];
    let mut sources: Vec<Vec<u32>> = vec![Vec::new()];
    let mut at_rest = Vec::new();
    let mut queue = VecDeque::from([(initial, 0_usize)]);
    let mut actions = Vec::new();
    while let Some((state, number)) = queue.pop_front() {
        if protocol.is_at_rest(&state) {
            at_rest.push(number);
        }
        protocol.actions(&state, &mut actions);
        for action in actions.drain(..) {
            let next = protocol.step(&state, action, &mut |_| ());
            let target = match numbers.entry(fingerprint(&next)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) => {
                    let target = *unknown.insert(parents.len());
                    parents.push(Some((number, action)));
                    sources.push(Vec::new());
                    queue.push_back((next, target));
                    target
                }
            };
            if !M::is_fault(action) {
                sources[target].push(u32::try_from(number).unwrap());
            }
        }
    }
    let mut reaches = vec![false; parents.len()];
    let mut open = at_rest;
    while let Some(number) = open.pop() {
        if !std::mem::replace(&mut reaches[number], true) {
            open.extend(sources[number].iter().map(|source| usize::try_from(*source).unwrap()));
        }
    }
    let stuck = reaches.iter().position(|reaches| !reaches);
    (stuck.map(|number| path(&parents, number)), parents.len())
}

fn path<A: Copy>(parents: &[Option<(usize, A)>], mut number: usize) -> Vec<A> {
    let mut actions = Vec::new();
    while let Some((parent, action)) = parents[number] {
        actions.push(action);
        number = parent;
    }
    actions.reverse();
    actions
}
