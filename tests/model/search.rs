//! Runs a world through stateright and says what it found.

use std::fmt::{Debug, Write};
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use crate::invariants::{ALL, COMES_TO_REST, Invariant};
use crate::protocol::{Action, Protocol, Say};
use crate::rest;
use crate::state::State;
use crate::worlds::World;

/// A model whose steps can be told in words, and whose invariants can be looked for one by one.
pub(crate) trait Searched:
    Model<
        State: Clone + Debug + PartialEq + Hash + Send + Sync,
        Action: Copy + Debug + PartialEq + Send + Sync,
    > + Send
    + Sync
    + Sized
    + 'static
{
    type Invariant: Copy + PartialEq;

    /// Those that stateright checks as properties.
    const ALL: &'static [Self::Invariant];
    /// The one of the graph, which `rest` checks.
    const REST_IS_REACHABLE: Self::Invariant;

    fn name(invariant: Self::Invariant) -> &'static str;
    /// The same model, in search of these.
    fn watching(&self, watch: &[Self::Invariant]) -> Self;
    fn initial(&self) -> Self::State;
    fn step(&self, before: &Self::State, action: Self::Action, say: Say<'_>) -> Self::State;
    fn is_at_rest(&self, state: &Self::State) -> bool;
    fn is_fault(action: Self::Action) -> bool;
}

impl Searched for Protocol {
    type Invariant = Invariant;

    const ALL: &'static [Invariant] = &ALL;
    const REST_IS_REACHABLE: Invariant = Invariant::I13;

    fn name(invariant: Invariant) -> &'static str {
        invariant.name()
    }

    fn watching(&self, watch: &[Invariant]) -> Self {
        Self { world: self.world.clone(), watch: watch.to_vec() }
    }

    fn initial(&self) -> State {
        self.initial()
    }

    fn step(&self, before: &State, action: Action, say: Say<'_>) -> State {
        self.step(before, action, say)
    }

    fn is_at_rest(&self, state: &State) -> bool {
        self.is_at_rest(state)
    }

    fn is_fault(action: Action) -> bool {
        action.is_fault()
    }
}

/// A counterexample: an invariant and the shortest way to break it.
struct Found<M: Searched> {
    invariant: M::Invariant,
    actions: Vec<M::Action>,
}

pub(crate) fn check(name: &str, world: &World, broken: &[Invariant]) {
    search(name, &Protocol { world: world.clone(), watch: Vec::new() }, broken);
}

/// With no invariant to break, the world must be exhausted without a violation; else each of them must be
/// broken.
pub(crate) fn search<M: Searched>(name: &str, model: &M, broken: &[M::Invariant]) {
    if broken.is_empty() {
        holds(name, model);
    }
    for invariant in broken {
        let begin = Instant::now();
        let (found, states) =
            if *invariant == M::REST_IS_REACHABLE { livelock(model) } else { shortest(model, *invariant) };
        let Some(found) = found else {
            panic!("{name}: {states} states, and none breaks {}", M::name(*invariant));
        };
        let seconds = begin.elapsed().as_secs_f64();
        println!("{name}: {states} states, {seconds:.2} s\n{}", in_words(model, &found));
    }
}

fn holds<M: Searched>(name: &str, model: &M) {
    let begin = Instant::now();
    let checker =
        model.watching(M::ALL).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let discoveries = checker.discoveries();
    // Beyond the first violation stateright goes on for a while and keeps the last one: search again for the
    // first.
    let violations = M::ALL.iter().filter(|invariant| discoveries.contains_key(M::name(**invariant)));
    let found = violations
        .filter_map(|invariant| shortest(model, *invariant).0)
        .min_by_key(|found| found.actions.len());
    if let Some(found) = found {
        panic!("{name}: a rule is missing\n{}", in_words(model, &found));
    }
    assert!(
        discoveries.contains_key(COMES_TO_REST),
        "{name}: never at rest, so what holds at rest says nothing"
    );
    if let Some(found) = livelock(model).0 {
        panic!("{name}: a livelock\n{}", in_words(model, &found));
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
fn shortest<M: Searched>(model: &M, invariant: M::Invariant) -> (Option<Found<M>>, usize) {
    let checker = model.watching(&[invariant]).checker().finish_when(HasDiscoveries::Any).spawn_bfs().join();
    let path = checker.discovery(M::name(invariant));
    let found = path.map(|path| Found { invariant, actions: path.into_actions() });
    (found, checker.unique_state_count())
}

fn livelock<M: Searched>(model: &M) -> (Option<Found<M>>, usize) {
    let (actions, states) = rest::unreachable(&model.watching(&[]));
    (actions.map(|actions| Found { invariant: M::REST_IS_REACHABLE, actions }), states)
}

fn in_words<M: Searched>(model: &M, found: &Found<M>) -> String {
    let model = model.watching(&[found.invariant]);
    let mut text = format!("broken: {}", M::name(found.invariant));
    let mut state = model.initial();
    for (number, action) in (1..).zip(&found.actions) {
        write!(text, "\n{number:4}. ").unwrap();
        state = model.step(&state, *action, &mut |words| text.write_fmt(words).unwrap());
    }
    text
}
