//! One load: by one process among several, of all keys that one caller leads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::backend::Backend;
use super::breaker::BreakerState;
use super::core::Core;
use super::flight::{FlightLeader, FlightResult, LoadLock, LoadRequest, Loader};
use super::key_class::LoadOutcome;
use super::moments::after;
use super::policy::Age;
use super::read::{Look, Obtained};
use super::waits::Loading;
use cachekeeper_engine::log_limit;
use cachekeeper_protocol::counters::InvalidationCounters;

/// Loads to be carried out, by position.
pub(super) type Leaders = Vec<(usize, FlightLeader)>;

/// A lock's life is not shorter, so that it can be renewed, and not longer, so that a holder that was killed is not waited for.
const LOCK_LIFE_MIN: Duration = Duration::from_millis(100);
const LOCK_LIFE_MAX: Duration = Duration::from_secs(3_600);

/// The load of all keys that one caller leads.
pub(super) struct LoadTask {
    pub core: Arc<Core>,
    pub request: LoadRequest,
    pub loader: Loader,
    pub leaders: Leaders,
    pub is_refresh: bool,
}

impl LoadTask {
    pub async fn run(self, counters: Option<InvalidationCounters>) {
        let nobody_waits = join_all(self.leaders.iter().map(|(_, leader)| leader.is_left_alone()));
        tokio::select! {
            () = self.load(counters) => {}
            _ = nobody_waits => {}
        }
        for (_, leader) in self.leaders.iter().filter(|(_, leader)| !leader.has_ended()) {
            self.core.class_in(&self.request, leader.key()).count_load(LoadOutcome::Cancelled);
        }
    }

    /// Takes the load locks, looks again, and loads. Keys that another process loads hold up none of the others; where it is gone
    /// without a value, killed or refused, its lock is taken over.
    async fn load(&self, counters: Option<InvalidationCounters>) {
        let mut leaders: Vec<&(usize, FlightLeader)> = self.leaders.iter().collect();
        if counters.is_none() {
            // Redis could not be asked, so neither can it for locks.
            return self.call(leaders, None).await;
        }
        let deadline = after(self.request.policy.lock.map_or(Duration::ZERO, |lock| lock.wait));
        loop {
            let Some(lock) = self.take_lock(&leaders).await else {
                return self.call(leaders, counters).await;
            };
            let mut others = lock.others.iter().copied().peekable();
            let (theirs, mine): (Vec<_>, Vec<_>) =
                leaders.into_iter().enumerate().partition(|(at, _)| others.next_if_eq(at).is_some());
            let mine: Vec<_> = mine.into_iter().map(|(_, leader)| leader).collect();
            let theirs: Vec<_> = theirs.into_iter().map(|(_, leader)| leader).collect();
            let load_mine = async {
                let (mine, counters) = self.drop_found(mine).await;
                self.call(mine, counters).await;
                // Released in the background: nobody waits for that.
                drop(lock);
            };
            ((), leaders) = tokio::join!(load_mine, self.wait_for_others(theirs, deadline));
            if leaders.is_empty() {
                return;
            }
            if deadline <= Instant::now() {
                // Whoever holds the lock stores; a second value beside it would be refused or wasted.
                return self.call(leaders, None).await;
            }
        }
    }

    async fn take_lock(&self, leaders: &[&(usize, FlightLeader)]) -> Option<LoadLock> {
        let lock = self.request.policy.lock?;
        let Backend::Redis(redis) = &self.core.backend else { return None };
        if self.core.breaker.state() != BreakerState::Closed {
            return None;
        }
        let keys: Vec<&str> = leaders.iter().map(|(_, leader)| &**leader.key()).collect();
        LoadLock::take(redis, &keys, lock.life.clamp(LOCK_LIFE_MIN, LOCK_LIFE_MAX)).await
    }

    /// Waits for the processes that hold the locks of these keys; answers what they have not stored by then. A refresh that nobody
    /// waits for does not wait either.
    async fn wait_for_others<'a>(
        &self,
        leaders: Vec<&'a (usize, FlightLeader)>,
        deadline: Instant,
    ) -> Vec<&'a (usize, FlightLeader)> {
        if leaders.is_empty() {
            return leaders;
        }
        if self.is_refresh {
            leaders.into_iter().for_each(|leader| self.end(leader, FlightResult::Abandoned));
            return Vec::new();
        }
        let names: Vec<String> = leaders.iter().map(|(_, leader)| LoadLock::name(leader.key())).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let waits = names.iter().map(|name| self.core.locks.wait_for_unlock(name, left));
        if let Some(error) = join_all(waits).await.into_iter().find_map(Result::err) {
            debug!(%error, "load locks could not be waited for");
        }
        self.drop_found(leaders).await.0
    }

    /// Ends those that another process has loaded meanwhile; answers the others, and the counters as they are now.
    async fn drop_found<'a>(
        &self,
        leaders: Vec<&'a (usize, FlightLeader)>,
    ) -> (Vec<&'a (usize, FlightLeader)>, Option<InvalidationCounters>) {
        if leaders.is_empty() {
            return (leaders, None);
        }
        let positions: Vec<usize> = leaders.iter().map(|(at, _)| *at).collect();
        let (looks, counters) = self.core.look_again(&self.request, &positions, Instant::now()).await;
        let mut missing = Vec::with_capacity(leaders.len());
        for (leader, look) in leaders.into_iter().zip(looks) {
            match look {
                Look::Found(value, age) if age == Age::Fresh || (age == Age::Due && !self.is_refresh) => {
                    let class = self.core.class_in(&self.request, leader.1.key());
                    let value = Obtained::served(&class, value).value.ok().flatten();
                    self.end(leader, FlightResult::Value(value));
                }
                _ => missing.push(leader),
            }
        }
        (missing, counters)
    }

    /// Calls the loader for these keys, and ends their loads.
    async fn call(&self, leaders: Vec<&(usize, FlightLeader)>, counters: Option<InvalidationCounters>) {
        let Some((_, first)) = leaders.first() else { return };
        // One within another load would wait for what the outer one holds.
        let is_bounded = counters.is_none() && !self.request.is_within_load;
        let _permit = if is_bounded { self.core.loads.acquire().await.ok() } else { None };
        let began = Instant::now();
        let positions = leaders.iter().map(|(at, _)| *at).collect();
        // The call itself may panic as well as what it answers.
        let call = AssertUnwindSafe(async { (self.loader)(positions, counters).await }).catch_unwind();
        let keys = leaders.iter().map(|(_, leader)| Arc::clone(leader.key())).collect();
        let loading = Loading::new(keys, &self.core.waits);
        let called = loading.run(call).await;
        let late = leaders.iter().filter(|(_, leader)| loading.has_late_tags(leader.key()));
        late.for_each(|(_, leader)| leader.found_late_tags());
        let (class, took) = (self.core.class_in(&self.request, first.key()), began.elapsed());
        if self.request.of_dataset.is_none() {
            class.time_load(took);
        }
        self.core.report_slow("load", first.key(), &class, took);
        let mut results: Vec<FlightResult> = match called {
            Ok(Ok(loaded)) => loaded
                .into_iter()
                .map(|one| one.map_or_else(FlightResult::Failed, FlightResult::Value))
                .collect(),
            Ok(Err(error)) => vec![FlightResult::Failed(error); leaders.len()],
            Err(_panic) => vec![FlightResult::Panicked; leaders.len()],
        };
        let errors = || {
            results.iter().filter_map(|result| match result {
                FlightResult::Failed(error) => Some(error),
                _ => None,
            })
        };
        if let Some(error) = errors().next() {
            let what = "loads failed";
            if let Some(keys) = log_limit::due(what, &class.label, errors().count() as u64) {
                warn!(dataset = %class.label, keys, %error, "{what}");
            }
        }
        results.resize(leaders.len(), FlightResult::Abandoned);
        leaders.into_iter().zip(results).for_each(|(leader, result)| self.end(leader, result));
    }

    fn end(&self, (_, leader): &(usize, FlightLeader), result: FlightResult) {
        let outcome = match &result {
            FlightResult::Value(_) => LoadOutcome::Ok,
            FlightResult::Failed(_) => LoadOutcome::Failed,
            FlightResult::Panicked => LoadOutcome::Panicked,
            FlightResult::Abandoned => LoadOutcome::Cancelled,
        };
        self.core.class_in(&self.request, leader.key()).count_load(outcome);
        if matches!(outcome, LoadOutcome::Failed | LoadOutcome::Panicked) {
            self.core.flights.failed.put(leader.key(), after(self.request.policy.throttle));
        }
        leader.end(&self.core.flights, result);
    }
}
