//! What tasks leave for each other, each thing once: it stays until it is done, also if the one who does it is restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::under_way::UnderWay;
use super::wake::Wake;
use cachekeeper_engine::stores::redis::Backfilled;

/// Misses that wait. More are dropped: the application that missed loads by itself, or misses again.
const MISSED_MAX: usize = 10_000;
/// Allowance for the time that the reply with Redis's clock took to reach this process.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// After what a backfill must have begun to count: a cause of pending revalidations, or a moment (of a schedule or a start,
/// where counting one too many only costs the next one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// The number of the cause.
    cause: Option<u64>,
    /// The moment by this process's clock.
    here: Option<Instant>,
    /// The moment by Redis's clock, in Unix milliseconds.
    there: Option<u64>,
    /// Whether one that began before the moment and was interrupted may be gone on with.
    may_resume: bool,
}

impl Since {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self { cause: None, here: Some(Instant::now()), there: None, may_resume: false }
    }

    /// The start of this process. What changed while none ran is a cause of its own, unless the feed follows it.
    #[must_use]
    pub fn start() -> Self {
        Self { may_resume: true, ..Self::now() }
    }

    /// A cause.
    #[must_use]
    pub fn cause(number: u64) -> Self {
        Self { cause: Some(number), here: None, there: None, may_resume: true }
    }

    /// When one began that was interrupted: it is to be gone on with.
    #[must_use]
    pub fn interrupted(began: Backfilled) -> Self {
        Self { cause: None, here: None, there: Some(began.began_ms), may_resume: true }
    }

    /// The later of both: a backfill must satisfy the stricter request.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cause: self.cause.max(other.cause),
            here: self.here.max(other.here),
            there: self.there.max(other.there),
            may_resume: self.may_resume && other.may_resume,
        }
    }

    /// Whether a backfill began late enough. Redis's clock, by which it is known when, says `now_ms`.
    #[must_use]
    pub fn is_satisfied_by(self, backfilled: Backfilled, now_ms: u64) -> bool {
        let moment = self.here.map(|here| {
            let elapsed = here.elapsed().saturating_sub(CLOCK_SLACK);
            now_ms.saturating_sub(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
        });
        // What began later than now began before that clock was set back, who knows when.
        let is_late_enough =
            moment.is_none_or(|moment| moment <= backfilled.began_ms && backfilled.began_ms <= now_ms);
        let is_after = self.there.is_none_or(|there| there <= backfilled.began_ms);
        self.cause <= Some(backfilled.cause) && is_late_enough && is_after
    }

    /// Whether a backfill that was interrupted does, if it is gone on with.
    #[must_use]
    pub fn allows_resuming(self, began: Backfilled, now_ms: u64) -> bool {
        let causes_only = Self { here: self.here.filter(|_| !self.may_resume), ..self };
        causes_only.is_satisfied_by(began, now_ms)
    }

    /// Whether nothing depends on it but that entries are there early: a start or a schedule wants it, and no cause.
    #[must_use]
    pub fn is_optional(self) -> bool {
        self.cause.is_none()
    }

    /// Whether what satisfies this satisfies the other too.
    fn includes(self, other: Self) -> bool {
        self.and(other) == self
    }
}

/// Datasets of which a backfill is wanted. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct WantedBackfills {
    state: Arc<Mutex<Backfills>>,
    /// The one that runs.
    pub under_way: UnderWay,
    /// Wakes the warmer.
    pub wake: Wake,
}

#[derive(Debug, Default)]
struct Backfills {
    wanted: BTreeMap<String, Wanted>,
    /// The number of the last that was wanted.
    last: u64,
    /// The one that runs, and what it is to do for. A request that comes meanwhile is another one.
    running: Option<(String, Since)>,
}

#[derive(Debug, Clone, Copy)]
struct Wanted {
    since: Since,
    /// Who came first goes first: one that is wanted again and again holds up nobody.
    number: u64,
}

impl WantedBackfills {
    /// Wants one that begins after this moment, wherever it runs.
    pub fn want(&self, dataset: &str, since: Since) {
        self.lock().want(dataset.to_owned(), since);
        self.wake.now();
    }

    /// All datasets of which one is wanted, in the order in which they were; but for what runs and for what can wait where a dataset is
    /// paused.
    #[must_use]
    pub fn datasets(&self, is_paused: impl Fn(&str) -> bool) -> Vec<String> {
        let state = self.lock();
        let may_wait = |(name, wanted): &(&String, &Wanted)| wanted.since.is_optional() && is_paused(name);
        let due = state.wanted.iter().filter(|one| !may_wait(one));
        let mut due: Vec<(u64, &String)> = due.map(|(name, wanted)| (wanted.number, name)).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// One begins that is to do for all requests so far; answers after which moment that has to be. None: none is wanted.
    #[must_use]
    pub fn begin(&self, dataset: &str) -> Option<Since> {
        let mut state = self.lock();
        state.running = state.wanted.remove_entry(dataset).map(|(name, wanted)| (name, wanted.since));
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
        // It began after what it is to do for.
        if self
            .running
            .as_ref()
            .is_some_and(|(running, for_what)| *running == dataset && for_what.includes(since))
        {
            return;
        }
        self.last += 1;
        let known = self.wanted.entry(dataset).or_insert(Wanted { since, number: self.last });
        known.since = known.since.and(since);
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
        let began = |began_ms, cause| Backfilled { began_ms, cause };
        let is_done = |wanted: &WantedBackfills, backfilled| {
            let is_done = wanted.begin("product").unwrap().is_satisfied_by(backfilled, 9_000);
            wanted.put_back();
            is_done
        };
        wanted.want("product", Since::cause(7));
        wanted.want("product", Since::cause(5));
        assert!(is_done(&wanted, began(1, 7)) && !is_done(&wanted, began(1, 6)));
        // A request by this process's clock counts as of its moment by Redis's.
        wanted.want("product", Since::now());
        tokio::time::advance(Duration::from_millis(1_100)).await;
        assert!(is_done(&wanted, began(8_000, 7)));
        assert!(!is_done(&wanted, began(7_999, 7)) && !is_done(&wanted, began(8_000, 6)));
        // Redis's clock was set back since.
        assert!(!is_done(&wanted, began(9_001, 7)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_interrupted_backfill_is_resumed_only_for_what_it_has_seen() {
        let began = |began_ms, cause| Backfilled { began_ms, cause };
        tokio::time::advance(Duration::from_secs(60)).await;
        // A start goes on with what another process began, but for causes of since then.
        assert!(Since::start().allows_resuming(began(1_000, 3), 9_000));
        assert!(Since::start().and(Since::cause(3)).allows_resuming(began(1_000, 3), 9_000));
        assert!(!Since::start().and(Since::cause(4)).allows_resuming(began(1_000, 3), 9_000));
        // A schedule wants what is there now.
        assert!(!Since::now().allows_resuming(began(1_000, 3), 9_000));
        assert!(!Since::start().and(Since::now()).allows_resuming(began(1_000, 3), 9_000));
        assert!(Since::now().allows_resuming(began(9_000, 3), 9_000));
    }

    #[test]
    fn what_runs_is_not_wanted_unless_it_is_wanted_again_or_put_back() {
        let wanted = WantedBackfills::default();
        wanted.want("product", Since::cause(2));
        assert_eq!(wanted.begin("product"), Some(Since::cause(2)));
        assert_eq!(wanted.datasets(|_| false), Vec::<String>::new());
        // The one that runs does for an earlier request, not for a later one.
        wanted.want("product", Since::cause(1));
        assert_eq!(wanted.datasets(|_| false), Vec::<String>::new());
        wanted.want("product", Since::cause(3));
        wanted.done();
        assert_eq!(wanted.begin("product"), Some(Since::cause(3)));
        wanted.put_back();
        assert_eq!(wanted.datasets(|_| false), ["product"]);
        // A paused dataset waits only with what nothing depends on.
        assert_eq!(wanted.datasets(|_| true), ["product"]);
        wanted.want("shop", Since::start());
        assert_eq!(
            (wanted.datasets(|_| true), wanted.datasets(|_| false).len()),
            (vec!["product".to_owned()], 2)
        );
        assert_eq!(wanted.begin("product"), Some(Since::cause(3)));
        wanted.done();
        wanted.put_back();
        assert_eq!(wanted.begin("product"), None);
    }
}
