//! What tasks leave for each other, each thing once: it stays until it is done, also if the one who does it is restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::wake::Wake;

/// Misses that wait. More are dropped: the application that missed loads by itself, or misses again.
const MISSED_MAX: usize = 10_000;
/// Allowance for the time that the reply with Redis's clock took to reach this process.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// A backfill must have begun after this moment to count, by the clocks that it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// Redis's, in Unix milliseconds.
    redis_ms: Option<u64>,
    /// This process's.
    here: Option<Instant>,
}

impl Since {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { redis_ms: None, here: Some(Instant::now()) }
    }

    /// A moment of Redis's clock.
    #[must_use]
    pub fn redis(ms: u64) -> Self {
        Self { redis_ms: Some(ms), here: None }
    }

    /// The later of both: a backfill must satisfy the stricter request.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { redis_ms: self.redis_ms.max(other.redis_ms), here: self.here.max(other.here) }
    }

    /// The same by Redis's clock, which says `now_ms`.
    #[must_use]
    pub fn by_redis(self, now_ms: u64) -> u64 {
        let here = self.here.map(|here| {
            let elapsed = here.elapsed().saturating_sub(CLOCK_SLACK);
            now_ms.saturating_sub(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
        });
        self.redis_ms.max(here).unwrap_or(now_ms)
    }
}

/// Datasets of which a backfill is wanted. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WantedBackfills {
    state: Arc<Mutex<Backfills>>,
    /// Wakes the warmer.
    pub wake: Wake,
}

#[derive(Debug, Default)]
struct Backfills {
    wanted: BTreeMap<String, Since>,
    /// The one that runs, and what it is to do for. A request that comes meanwhile is another one.
    running: Option<(String, Since)>,
}

impl WantedBackfills {
    /// Wants one that begins after this moment, wherever it runs.
    pub fn want(&self, dataset: &str, since: Since) {
        self.lock().want(dataset.to_owned(), since);
        self.wake.now();
    }

    /// All datasets of which one is wanted, but for what runs.
    #[must_use]
    pub fn datasets(&self) -> Vec<String> {
        self.lock().wanted.keys().cloned().collect()
    }

    /// One begins that is to do for all requests so far; answers after which moment that has to be. None: none is wanted.
    #[must_use]
    pub fn begin(&self, dataset: &str) -> Option<Since> {
        let mut state = self.lock();
        state.running = state.wanted.remove_entry(dataset);
        state.running.as_ref().map(|(_, since)| *since)
    }

    /// What ran is done.
    pub fn done(&self) {
        self.lock().running = None;
    }

    /// What ran is not done: it is wanted again. Also where its task was killed.
    pub fn put_back(&self) {
        let mut state = self.lock();
        if let Some((dataset, since)) = state.running.take() {
            state.want(dataset, since);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Backfills> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backfills {
    fn want(&mut self, dataset: String, since: Since) {
        let known = self.wanted.entry(dataset).or_insert(since);
        *known = known.and(since);
    }
}

/// Keys that applications asked for and that are not there. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct MissedKeys {
    keys: Arc<Mutex<BTreeSet<String>>>,
    /// Wakes the refresher.
    pub wake: Wake,
}

impl MissedKeys {
    /// Adds keys; answers how many had no place any more.
    pub fn add(&self, keys: impl IntoIterator<Item = String>) -> usize {
        let mut missed = self.lock();
        let mut dropped = 0;
        for key in keys {
            if missed.len() < MISSED_MAX {
                missed.insert(key);
            } else {
                dropped += 1;
            }
        }
        self.wake.now();
        dropped
    }

    /// Takes all of them.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock()).into_iter().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_for_less_does_not_replace_one_for_more() {
        let wanted = WantedBackfills::default();
        let since = |wanted: &WantedBackfills| {
            let since = wanted.begin("product").unwrap().by_redis(9_000);
            wanted.put_back();
            since
        };
        wanted.want("product", Since::redis(2_000));
        wanted.want("product", Since::redis(1_000));
        assert_eq!(since(&wanted), 2_000);
        // A request by this process's clock counts as of its moment by Redis's.
        wanted.want("product", Since::now());
        tokio::time::advance(Duration::from_millis(1_100)).await;
        assert_eq!(since(&wanted), 8_000);
        wanted.want("product", Since::redis(8_500));
        assert_eq!(since(&wanted), 8_500);
    }

    #[test]
    fn what_runs_is_not_wanted_unless_it_is_wanted_again_or_put_back() {
        let wanted = WantedBackfills::default();
        wanted.want("product", Since::redis(2_000));
        assert_eq!(wanted.begin("product"), Some(Since::redis(2_000)));
        assert_eq!(wanted.datasets(), Vec::<String>::new());
        // The later request stands by itself: the one that runs may do for it.
        wanted.want("product", Since::redis(1_000));
        wanted.done();
        assert_eq!(wanted.begin("product"), Some(Since::redis(1_000)));
        wanted.put_back();
        assert_eq!(wanted.datasets(), ["product"]);
        assert_eq!(wanted.begin("product"), Some(Since::redis(1_000)));
        wanted.done();
        wanted.put_back();
        assert_eq!(wanted.begin("product"), None);
    }
}
