//! Faults on purpose, for an application's own tests: delays, failures and lost replies of Redis and of loaders.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::moments;
use cachekeeper_engine::stores::redis::CacheError;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It takes this much longer.
    Delay(Duration),
    /// It fails and is not carried out.
    Fail,
    /// It is carried out, but the reply is lost: the caller cannot know.
    DropReply,
}

/// Where it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// Commands to Redis.
    Redis,
    /// Loaders.
    Loader,
}

/// Faults with their probabilities; cheap to clone, and what is changed here changes for the cache that has it.
///
/// ```
/// use cachekeeper_client::{Cache, Chaos, Fault, Place};
/// let chaos = Chaos::with_seed(7);
/// chaos.set(Place::Redis, Fault::DropReply, 0.1);
/// let cache = Cache::in_memory().chaos(chaos.clone()).build();
/// // … the test …
/// chaos.calm();
/// # drop(cache);
/// ```
#[derive(Debug, Clone)]
pub struct Chaos {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: StdRng,
    rules: Vec<(Place, Fault, f64)>,
    struck: u64,
}

impl Chaos {
    /// No faults yet; the same seed gives the same faults.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        let state = State { random: StdRng::seed_from_u64(seed), rules: Vec::new(), struck: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Adds a fault that strikes with this probability (1.0: always).
    pub fn set(&self, place: Place, fault: Fault, probability: f64) {
        self.with(|state| state.rules.push((place, fault, moments::share(probability, 1.0))));
    }

    /// No faults any more.
    pub fn calm(&self) {
        self.with(|state| state.rules.clear());
    }

    /// How many faults have struck, so that a test can tell that it tested something.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.with(|state| state.struck)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn draw(&self, place: Place) -> Vec<Fault> {
        self.with(|state| {
            let State { random, rules, struck } = state;
            let here = rules.iter().filter(|(at, ..)| *at == place);
            let drawn: Vec<Fault> = here
                .filter(|(_, _, probability)| random.random_bool(*probability))
                .map(|(_, fault, _)| *fault)
                .collect();
            *struck += drawn.len() as u64;
            drawn
        })
    }

    /// Carries out a command, or not, as the lot falls.
    pub(super) async fn around_redis<T>(
        &self,
        what: &'static str,
        command: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        let faults = self.draw(Place::Redis);
        delay(&faults).await;
        if faults.contains(&Fault::Fail) {
            return Err(CacheError::injected(what));
        }
        let result = command.await;
        if faults.contains(&Fault::DropReply) { Err(CacheError::injected(what)) } else { result }
    }

    /// Runs a loader, or not; true in the answer: it failed on purpose.
    pub(super) async fn around_loader<T>(&self, loader: impl Future<Output = T>) -> Option<T> {
        let faults = self.draw(Place::Loader);
        delay(&faults).await;
        if faults.contains(&Fault::Fail) {
            return None;
        }
        let result = loader.await;
        (!faults.contains(&Fault::DropReply)).then_some(result)
    }
}

async fn delay(faults: &[Fault]) {
    for fault in faults {
        if let Fault::Delay(pause) = fault {
            tokio::time::sleep(*pause).await;
        }
    }
}
