//! What tasks leave for each other, each thing once: it stays until it is done, also if the one who does it is restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::wake::Wake;

/// Misses that wait. More are dropped: the application that missed loads by itself, or misses again.
const MISSED_MAX: usize = 10_000;
/// How long Redis's clock may have been on its way here.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// The moment after which a backfill must have begun to do, by the clocks that it was read from.
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

    /// After both: whoever wished first must not have to do with less because somebody else wished for less.
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
    wanted: Arc<Mutex<BTreeMap<String, Since>>>,
    /// Wakes the warmer.
    pub wake: Wake,
}

impl WantedBackfills {
    /// Wants one that begins after this moment, wherever it runs.
    pub fn want(&self, dataset: &str, since: Since) {
        let mut wanted = self.lock();
        let known = wanted.entry(dataset.to_owned()).or_insert(since);
        *known = known.and(since);
        self.wake.now();
    }

    /// All that are wanted.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Since> {
        self.lock().clone()
    }

    /// One that began after this moment has been done. If a later one was wanted meanwhile, it still is.
    pub fn done(&self, dataset: &str, since: Since) {
        let mut wanted = self.lock();
        if wanted.get(dataset) == Some(&since) {
            wanted.remove(dataset);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Since>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
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
    async fn a_wish_for_less_does_not_replace_one_for_more() {
        let wanted = WantedBackfills::default();
        let newer = Since::redis(2_000);
        wanted.want("product", newer);
        wanted.want("product", Since::redis(1_000));
        assert_eq!(wanted.all()["product"].by_redis(9_000), 2_000);
        // A wish by this process's clock counts as of its moment by Redis's.
        wanted.want("product", Since::now());
        tokio::time::advance(Duration::from_millis(1_100)).await;
        assert_eq!(wanted.all()["product"].by_redis(9_000), 8_000);
        wanted.want("product", Since::redis(8_500));
        assert_eq!(wanted.all()["product"].by_redis(9_000), 8_500);
    }

    #[test]
    fn a_backfill_that_is_done_is_wanted_no_more_unless_a_later_one_is() {
        let wanted = WantedBackfills::default();
        wanted.want("product", Since::redis(1_000));
        let begun = wanted.all()["product"];
        wanted.want("product", Since::redis(2_000));
        wanted.done("product", begun);
        wanted.done("product", wanted.all()["product"]);
        assert_eq!(wanted.all(), BTreeMap::new());
    }
}
