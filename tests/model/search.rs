//! Runs a world through stateright and says what it found.

use std::fmt::Write;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::invariants::{ALL, COMES_TO_REST, Invariant};
use crate::protocol::{Action, Protocol};
use crate::rest;
use crate::worlds::World;

/// A counterexample: an invariant and the shortest way to break it.
struct Found {
    invariant: Invariant,
    actions: Vec<Action>,
}

/// With no invariant to break, the world must be exhausted without a violation; else each of them must be
/// broken.
pub(crate) fn check(name: &str, world: &World, broken: &[Invariant]) {
    if broken.is_empty() {
        holds(name, world);
    }
    for invariant in broken {
        let begin = Instant::now();
        let (found, states) = match invariant {
            Invariant::I13 => livelock(world),
            _ => shortest(world, *invariant),
        };
        let Some(found) = found else {
            panic!("{name}: {states} states, and none breaks {}", invariant.name());
        };
        let seconds = begin.elapsed().as_secs_f64();
        println!("{name}: {states} states, {seconds:.2} s\n{}", in_words(world, &found));
    }
}

fn holds(name: &str, world: &World) {
    let begin = Instant::now();
    let protocol = Protocol { world: world.clone(), watch: ALL.to_vec() };
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    // Beyond the first violation stateright goes on for a while and keeps the last one: search again for the
    // first.
    let violations = ALL.into_iter().filter(|invariant| discoveries.contains_key(invariant.name()));
    let found = violations
        .filter_map(|invariant| shortest(world, invariant).0)
        .min_by_key(|found| found.actions.len());
    if let Some(found) = found {
        panic!("{name}: a rule is missing\n{}", in_words(world, &found));
    }
    assert!(discoveries.contains_key(COMES_TO_REST), "{name}: never at rest, so I11 and I12 say nothing");
    if let Some(found) = livelock(world).0 {
        panic!("{name}: a livelock\n{}", in_words(world, &found));
    }
    println!(
        "{name}: {} states, {} steps, depth {}, {:.2} s",
        checker.unique_state_count(),
        checker.state_count() - 1,
        checker.max_depth(),
        begin.elapsed().as_secs_f64()
    );
}

/// With a single property stateright stops at its first violation, which breadth first is a shortest one.
fn shortest(world: &World, invariant: Invariant) -> (Option<Found>, usize) {
    let protocol = Protocol { world: world.clone(), watch: vec![invariant] };
    let checker = protocol.checker().finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let path = checker.discovery(invariant.name());
    let found = path.map(|path| Found { invariant, actions: path.into_actions() });
    (found, checker.unique_state_count())
}

fn livelock(world: &World) -> (Option<Found>, usize) {
    let (actions, states) = rest::unreachable(&Protocol { world: world.clone(), watch: Vec::new() });
    (actions.map(|actions| Found { invariant: Invariant::I13, actions }), states)
}

fn in_words(world: &World, found: &Found) -> String {
    let protocol = Protocol { world: world.clone(), watch: vec![found.invariant] };
    let mut text = format!("broken: {}", found.invariant.name());
    let mut state = protocol.initial();
    for (number, action) in (1..).zip(&found.actions) {
        write!(text, "\n{number:4}. ").unwrap();
        state = protocol.step(&state, *action, &mut |words| text.write_fmt(words).unwrap());
    }
    text
}
