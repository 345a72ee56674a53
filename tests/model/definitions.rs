//! Whose definition of a dataset counts (R16): a model of its own, because it has other parts than the rest. Two definitions, each
//! with a worker; the newer one also reads a second table, which the older one does not watch. Leases guard nothing, so either worker
//! may apply changes at any moment, also by what it knew of the registration before. By the other's definition it raises and deletes.

use stateright::{Checker, Model, Property};

const OLDER: usize = 0;
const NEWER: usize = 1;

/// Versions of the two tables.
type Versions = [u8; 2];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Entry {
    definition: usize,
    versions: Versions,
}

/// A statement that was sent, and what its script must find unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Load {
    versions: Versions,
    revision: (usize, u8),
    cause: u8,
}

/// A step of the feed under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Batch {
    from: Versions,
    to: Versions,
    /// By which definition the dataset is followed; none: it is not. By another's it is raised and deleted, never loaded.
    follows: Option<usize>,
    is_stored: bool,
    revision: (usize, u8),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Worker {
    is_running: bool,
    /// Whether it is registered as living; ends some time after the process, or before it where it is slow.
    is_living: bool,
    /// What it knows of the registered revision; none: not its own.
    known: Option<u8>,
    /// The definition that was registered when it looked last.
    seen: usize,
    starts: u8,
    batch: Option<Batch>,
    load: Option<Load>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    tables: Versions,
    workers: [Worker; 2],
    /// The registered definition, and its nonce.
    registered: (usize, u8),
    entry: Option<Entry>,
    /// The stamp of its key: nothing older is stored.
    stamp: Versions,
    /// The newest cause by which the dataset is pending.
    pending: Option<u8>,
    causes: u8,
    cursor: Versions,
    /// Whose coverage fingerprint is recorded.
    recorded: Option<usize>,
    /// The watermark, where it does not leave the dataset out.
    watermark: Option<Versions>,
    /// A watermark was written over an entry of a definition that is not the registered one.
    is_foreign: bool,
    /// How often somebody was taken for dead who lives.
    early: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Commit(usize),
    Start(usize),
    Stop(usize),
    /// Others take it for dead.
    Expire(usize),
    /// Reads what is registered, and takes the dataset where it may.
    Look(usize),
    Poll(usize),
    Store(usize),
    Advance(usize),
    Load(usize),
    Settle(usize),
}

/// The rules; each left out must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The script that moves the cursor follows a dataset only under the registered definition.
    AdvanceCompares,
    /// Whoever changes the registered definition makes the dataset pending in that script.
    TakingMakesPending,
    /// What was loaded under another revision is not stored.
    StoresCompare,
    /// A dataset that a move of the cursor did not follow is pending in that script.
    UnfollowedIsPending,
}

struct Rollout {
    without: Option<Rule>,
    commits: u8,
    starts: u8,
    early: u8,
    causes: u8,
}

impl State {
    fn make_pending(&mut self) {
        self.causes += 1;
        self.pending = Some(self.causes);
        self.registered.1 += 1;
    }

    /// Whether a value of a definition needs nothing that was committed between the two.
    fn is_as_fresh(definition: usize, value: Versions, than: Versions) -> bool {
        than[0] <= value[0] && (definition == OLDER || than[1] <= value[1])
    }

    /// Whether it was stored: nothing newer has touched the key.
    fn store(&mut self, definition: usize, versions: Versions) -> bool {
        let is_stored = self.stamp <= versions;
        if is_stored {
            self.entry = Some(Entry { definition, versions });
            self.stamp = versions;
        }
        is_stored
    }
}

impl Rollout {
    fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    fn take(&self, state: &mut State, by: usize) {
        state.registered.0 = by;
        state.registered.1 += 1;
        if self.has(Rule::TakingMakesPending) {
            state.make_pending();
        }
    }

    fn advance(&self, state: &mut State, batch: Batch) {
        let is_registered = batch.follows == Some(state.registered.0) || !self.has(Rule::AdvanceCompares);
        let follows = batch.follows.filter(|_| is_registered);
        let was_pending = state.pending.is_some();
        let mut is_left_out = was_pending || follows.is_none();
        if follows.is_some() {
            if state.recorded != follows {
                state.make_pending();
                is_left_out = true;
            }
            state.recorded = follows;
        } else if state.recorded.is_some() && self.has(Rule::UnfollowedIsPending) {
            state.recorded = None;
            state.make_pending();
        }
        state.cursor = batch.to;
        state.watermark = (!is_left_out).then_some(batch.to);
        let is_foreign = state.entry.is_some_and(|entry| entry.definition != state.registered.0);
        state.is_foreign |= !is_left_out && is_foreign;
    }

    /// Loads and stores what a step of the feed touches; by the other's definition it is deleted.
    fn apply(&self, state: &mut State, at: usize) -> Option<()> {
        let mut batch = state.workers[at].batch?;
        let is_touched = |by: usize| !State::is_as_fresh(by, batch.from, batch.to);
        let is_stale = self.has(Rule::StoresCompare) && batch.revision != state.registered;
        match batch.follows.filter(|by| is_touched(*by)) {
            Some(by) if by == at && is_stale => {
                // It begins again, knowing that it must look.
                (state.workers[at].batch, state.workers[at].known) = (None, None);
                state.workers[at].seen = at;
                return Some(());
            }
            Some(by) if by == at => {
                state.store(at, batch.to);
            }
            Some(_) => {
                state.entry = None;
                state.stamp = state.stamp.max(batch.to);
            }
            None => {}
        }
        batch.is_stored = true;
        state.workers[at].batch = Some(batch);
        Some(())
    }

    fn may_take(state: &State, by: usize) -> bool {
        by == NEWER || !state.workers[state.registered.0].is_living
    }
}

impl Model for Rollout {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // The older one has worked for a while.
        let older = Worker { is_running: true, is_living: true, known: Some(0), ..Worker::default() };
        vec![State {
            tables: [0, 0],
            workers: [older, Worker::default()],
            registered: (OLDER, 0),
            entry: Some(Entry { definition: OLDER, versions: [0, 0] }),
            stamp: [0, 0],
            pending: None,
            causes: 0,
            cursor: [0, 0],
            recorded: Some(OLDER),
            watermark: Some([0, 0]),
            is_foreign: false,
            early: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.tables.iter().sum::<u8>() < self.commits {
            actions.extend([Action::Commit(0), Action::Commit(1)]);
        }
        for (at, worker) in state.workers.iter().enumerate() {
            if worker.is_living && (!worker.is_running || state.early < self.early) {
                actions.push(Action::Expire(at));
            }
            if !worker.is_running {
                if at == NEWER && worker.starts < self.starts {
                    actions.push(Action::Start(at));
                }
                continue;
            }
            actions.extend([Action::Stop(at), Action::Look(at)]);
            actions.push(match worker.batch {
                None => Action::Poll(at),
                Some(batch) if batch.is_stored => Action::Advance(at),
                Some(_) => Action::Store(at),
            });
            match worker.load {
                None if state.pending.is_some() && worker.known.is_some() => actions.push(Action::Load(at)),
                None => {}
                Some(_) => actions.push(Action::Settle(at)),
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Commit(table) => state.tables[table] += 1,
            Action::Start(at) => {
                let starts = state.workers[at].starts + 1;
                state.workers[at] = Worker { is_running: true, starts, ..state.workers[at].clone() };
            }
            Action::Stop(at) => {
                let Worker { is_living, starts, .. } = state.workers[at];
                state.workers[at] = Worker { is_living, starts, ..Worker::default() };
            }
            Action::Expire(at) => {
                state.early += u8::from(state.workers[at].is_running);
                state.workers[at].is_living = false;
            }
            Action::Look(at) => {
                state.workers[at].is_living = true;
                if state.registered.0 != at && Self::may_take(&state, at) {
                    self.take(&mut state, at);
                }
                state.workers[at].known = (state.registered.0 == at).then_some(state.registered.1);
                state.workers[at].seen = state.registered.0;
            }
            Action::Poll(at) => {
                let Worker { known, seen, .. } = state.workers[at];
                state.workers[at].batch = Some(Batch {
                    from: state.cursor,
                    to: state.tables,
                    follows: if known.is_some() { Some(at) } else { Some(seen).filter(|seen| *seen != at) },
                    is_stored: false,
                    revision: (at, known.unwrap_or_default()),
                });
            }
            Action::Store(at) => self.apply(&mut state, at)?,
            Action::Advance(at) => {
                let batch = state.workers[at].batch.take()?;
                if batch.from == state.cursor {
                    self.advance(&mut state, batch);
                }
            }
            Action::Load(at) => {
                let revision = (at, state.workers[at].known?);
                state.workers[at].load =
                    Some(Load { versions: state.tables, revision, cause: state.pending? });
            }
            Action::Settle(at) => {
                let load = state.workers[at].load.take()?;
                if self.has(Rule::StoresCompare) && load.revision != state.registered {
                    state.workers[at].known = None;
                    return Some(state);
                }
                // What is refused is loaded again.
                if state.store(at, load.versions) && state.pending == Some(load.cause) {
                    state.pending = None;
                }
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what the watermark claims is there", |_, state: &State| {
                state.watermark.zip(state.entry).is_none_or(|(claimed, entry)| {
                    State::is_as_fresh(entry.definition, entry.versions, claimed)
                })
            }),
            Property::always("it claims the registered definition", |_, state: &State| !state.is_foreign),
            Property::sometimes("the older one comes back", |_, state: &State| {
                let newer = &state.workers[NEWER];
                newer.starts == 1
                    && !newer.is_running
                    && state.registered.0 == OLDER
                    && state.watermark.is_some()
                    && state.tables == [1, 0]
                    && state.watermark == Some([1, 0])
            }),
            Property::sometimes("the older one follows for the newer one", |_, state: &State| {
                state.registered.0 == NEWER
                    && state.workers[OLDER].known.is_none()
                    && state.workers[NEWER].batch.is_none()
                    && state.entry.is_none()
                    && state.watermark == Some([0, 1])
            }),
            Property::sometimes("the newer one is served", |_, state: &State| {
                state.registered.0 == NEWER
                    && state.watermark == Some([1, 1])
                    && state.entry.is_some_and(|entry| entry.definition == NEWER)
            }),
        ]
    }

    fn within_boundary(&self, state: &State) -> bool {
        state.causes <= self.causes
    }
}

fn violated(without: Option<Rule>) -> Vec<&'static str> {
    let rollout = Rollout { without, commits: 2, starts: 1, early: 0, causes: 2 };
    let checker = rollout.checker().spawn_bfs().join();
    let discoveries = checker.discoveries();
    println!("without {without:?}: {} states", checker.unique_state_count());
    for name in
        ["the older one comes back", "the older one follows for the newer one", "the newer one is served"]
    {
        assert!(discoveries.contains_key(name), "without {without:?}: {name}: never");
    }
    let broken = ["what the watermark claims is there", "it claims the registered definition"];
    for (name, path) in discoveries.iter().filter(|(name, _)| without.is_none() && broken.contains(name)) {
        println!("{name}:");
        path.clone().into_vec().iter().for_each(|(state, action)| println!("{action:?} <- {state:?}"));
    }
    broken.into_iter().filter(|name| discoveries.contains_key(name)).collect()
}

#[test]
fn d01_a_rollout_keeps_the_promises_whoever_leads() {
    assert_eq!(violated(None), Vec::<&str>::new());
}

#[test]
fn d02_each_rule_of_it_is_needed() {
    for rule in
        [Rule::AdvanceCompares, Rule::TakingMakesPending, Rule::StoresCompare, Rule::UnfollowedIsPending]
    {
        assert!(!violated(Some(rule)).is_empty(), "without {rule:?} nothing breaks");
    }
}
