//! Values of keys from the cache, or from their loader, which runs once for all who want them: one engine for one key and
//! for many.
//!
//! What is fresh is served. What is old or missing joins the load that is under way for its key; keys that nobody loads are
//! loaded by one call. The rest of a policy is decided per key: how long to wait, whether an old value is served instead.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::{Instrument, debug, warn};

use super::backend::Backend;
use super::breaker::BreakerState;
use super::core::{Core, check_key};
use super::error::ClientError;
use super::flight::{Bytes, FlightLeader, FlightResult, FlightWaiter, Join, LoadLock, LoadRequest, Loader};
use super::key_class::{KeyClass, LoadOutcome, ReadOutcome};
use super::policy::{Age, Policy};
use super::read::{Look, Obtained};
use cachekeeper_engine::log_limit;
use cachekeeper_protocol::counters::InvalidationCounters;

/// Waits by position, each with whether it leads.
type Waiters = Vec<(usize, FlightWaiter, bool)>;
/// Loads to be carried out, by position.
type Leaders = Vec<(usize, FlightLeader)>;

impl Core {
    /// The value of one key. `request` makes the request and its loader where the cache alone does not do.
    pub async fn obtain_one(
        self: &Arc<Self>,
        (key, class): (&str, &KeyClass),
        policy: &Policy,
        request: impl FnOnce() -> (LoadRequest, Loader),
    ) -> Result<Obtained, ClientError> {
        check_key(key)?;
        let (span, began) = (self.span("cache.get", key, class), Instant::now());
        let obtain = async {
            let look = match self.look_one(key, class, policy).await {
                Look::Found(value, Age::Fresh) => return Obtained::served(class, value),
                look => look,
            };
            let (request, loader) = request();
            let mut obtained = self.obtain(&request, &loader, vec![look]).await;
            obtained.pop().unwrap_or_else(Obtained::nothing)
        };
        let obtained = obtain.instrument(span.clone()).await;
        span.record("cache.hit", matches!(obtained.found, ReadOutcome::Hit | ReadOutcome::Negative));
        if obtained.value.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        let took = began.elapsed();
        class.count_timed(obtained.found, took);
        self.report_slow("get", key, class, took);
        Ok(obtained)
    }

    /// The values of many keys, in their order.
    pub async fn obtain_many(self: &Arc<Self>, request: &LoadRequest, loader: &Loader) -> Vec<Obtained> {
        let began = Instant::now();
        let looks = if request.is_forced {
            request.keys.iter().map(|_| Look::Missing).collect()
        } else {
            self.look_many(&request.keys, request.of_dataset.as_deref(), &request.policy).await
        };
        let obtained = self.obtain(request, loader, looks).await;
        for (key, one) in request.keys.iter().zip(&obtained) {
            self.class_in(request, key).count(one.found);
        }
        if let Some(first) = request.keys.first() {
            self.report_slow("get_or_load_many", first, &self.class_in(request, first), began.elapsed());
        }
        obtained
    }

    fn class_in(&self, request: &LoadRequest, key: &str) -> Arc<KeyClass> {
        request.of_dataset.clone().unwrap_or_else(|| self.class_of(key))
    }

    /// The same as [`Core::look_with_counters`] for the keys at these positions.
    async fn look_again(
        &self,
        request: &LoadRequest,
        positions: &[usize],
    ) -> (Vec<Look>, Option<InvalidationCounters>) {
        let keys: Vec<&Arc<str>> = positions.iter().filter_map(|at| request.keys.get(*at)).collect();
        let of_dataset = request.of_dataset.as_deref();
        let (mut looks, counters) = self.look_with_counters(&keys, of_dataset, &request.policy).await;
        if request.is_forced {
            looks.iter_mut().for_each(|look| *look = Look::Missing);
        }
        (looks, counters)
    }

    /// Serves what was found, and loads the rest.
    async fn obtain(
        self: &Arc<Self>,
        request: &LoadRequest,
        loader: &Loader,
        first: Vec<Look>,
    ) -> Vec<Obtained> {
        let count = request.keys.len();
        let mut caller = Caller {
            core: self,
            request,
            obtained: vec![Obtained::nothing(); count],
            stale: vec![None; count],
        };
        let (mut missing, due) = caller.take((0..count).collect(), first);
        if !due.is_empty() {
            self.refresh_in_background(request, loader, due);
        }
        // Again only for those whose load somebody else had begun and given up.
        loop {
            missing.retain(|at| !caller.is_served_while_cooling(*at));
            if missing.is_empty() {
                break;
            }
            let (looks, counters) = self.look_again(request, &missing).await;
            let missed = if counters.is_some() { ReadOutcome::Miss } else { ReadOutcome::Unavailable };
            // Another process has loaded it meanwhile: that it is due again is for the next reader to see.
            (missing, _) = caller.take(missing, looks);
            let (waiters, leaders) = self.join(request, &missing, counters.as_ref());
            if !leaders.is_empty() {
                self.depart(request, loader, leaders, counters, false);
            }
            missing = caller.wait(waiters, missed).await;
        }
        caller.obtained
    }

    /// Joins the loads of these keys that are under way, and begins to lead the others.
    fn join(
        &self,
        request: &LoadRequest,
        positions: &[usize],
        counters: Option<&InvalidationCounters>,
    ) -> (Waiters, Leaders) {
        let (mut waiters, mut leaders) = (Vec::with_capacity(positions.len()), Vec::new());
        for at in positions.iter().copied() {
            let Some(key) = request.keys.get(at) else { continue };
            let own = counters.map(|counters| counters.part(key, &request.policy.tags));
            match self.flights.join(key, own) {
                Join::Joined(waiter) => waiters.push((at, waiter, false)),
                Join::Leads(waiter, leader) => {
                    waiters.push((at, waiter, true));
                    leaders.push((at, leader));
                }
            }
        }
        (waiters, leaders)
    }

    /// Loads values that will soon be old, once, without anybody waiting.
    fn refresh_in_background(self: &Arc<Self>, request: &LoadRequest, loader: &Loader, mut due: Vec<usize>) {
        let is_idle = |key: &Arc<str>| {
            !self.flights.is_under_way(key)
                && !self.flights.failed.holds(key)
                && !self.flights.not_due.holds(key)
        };
        due.retain(|at| request.keys.get(*at).is_some_and(is_idle));
        if due.is_empty() {
            return;
        }
        let (core, request, loader) = (Arc::clone(self), request.clone(), Arc::clone(loader));
        drop(tokio::spawn(async move {
            let (looks, counters) = core.look_again(&request, &due).await;
            if counters.is_none() {
                return;
            }
            let is_due = |look: &Look| !matches!(look, Look::Found(_, Age::Fresh));
            let due: Vec<usize> =
                due.into_iter().zip(looks).filter(|(_, look)| is_due(look)).map(|(at, _)| at).collect();
            let (waiters, leaders) = core.join(&request, &due, counters.as_ref());
            waiters.iter().filter(|(_, _, leads)| *leads).for_each(|(_, waiter, _)| waiter.keep());
            if !leaders.is_empty() {
                core.depart(&request, &loader, leaders, counters, true);
            }
        }));
    }

    /// Begins a load in a task of its own.
    fn depart(
        self: &Arc<Self>,
        request: &LoadRequest,
        loader: &Loader,
        leaders: Leaders,
        counters: Option<InvalidationCounters>,
        is_refresh: bool,
    ) {
        let (core, request, loader) = (Arc::clone(self), request.clone(), Arc::clone(loader));
        let Some(first) = leaders.first().map(|(_, leader)| Arc::clone(leader.key())) else { return };
        let span = self.span("cache.load", &first, &self.class_in(&request, &first));
        let load = LoadTask { core, request, loader, leaders, is_refresh };
        drop(tokio::spawn(load.run(counters).instrument(span)));
    }
}

/// One caller, and what it has got so far.
struct Caller<'a> {
    core: &'a Core,
    request: &'a LoadRequest,
    obtained: Vec<Obtained>,
    /// Old values, for where the load fails or is slow.
    stale: Vec<Option<Bytes>>,
}

impl Caller<'_> {
    /// Takes what was found at these positions; answers which are still missing, and which of those served are due.
    fn take(&mut self, positions: Vec<usize>, looks: Vec<Look>) -> (Vec<usize>, Vec<usize>) {
        let (mut missing, mut due) = (Vec::new(), Vec::new());
        for (at, look) in positions.into_iter().zip(looks) {
            let (Some(key), Some(obtained), Some(stale)) =
                (self.request.keys.get(at), self.obtained.get_mut(at), self.stale.get_mut(at))
            else {
                continue;
            };
            match look {
                Look::Found(value, Age::Stale) => {
                    *stale = Some(value);
                    missing.push(at);
                }
                Look::Found(value, age) => {
                    *obtained = Obtained::served(&self.core.class_in(self.request, key), value);
                    if age == Age::Due {
                        due.push(at);
                    }
                }
                Look::Missing | Look::Unavailable => missing.push(at),
            }
        }
        (missing, due)
    }

    fn old_value(&self, at: usize) -> Option<Bytes> {
        self.stale.get(at).cloned().flatten()
    }

    fn put(&mut self, at: usize, one: Obtained) {
        if let Some(place) = self.obtained.get_mut(at) {
            *place = one;
        }
    }

    /// Serves an old value where the last load has just failed.
    fn is_served_while_cooling(&mut self, at: usize) -> bool {
        let Some(value) = self.old_value(at) else { return false };
        let is_cooling = self.request.keys.get(at).is_some_and(|key| self.core.flights.failed.holds(key));
        if is_cooling {
            self.put(at, Obtained::stale(value));
        }
        is_cooling
    }

    /// Waits for loads, each as long as the policy allows; answers which must be tried again.
    async fn wait(&mut self, waiters: Waiters, missed: ReadOutcome) -> Vec<usize> {
        let policy = Arc::clone(&self.request.policy);
        let ended = join_all(waiters.into_iter().map(async |(at, mut waiter, leads)| {
            // An old value can be had at once: for it nobody waits longer than this.
            let soft = policy.soft.filter(|_| self.stale.get(at).is_some_and(Option::is_some));
            let result = match soft.into_iter().chain(policy.hard).min() {
                None => Some(waiter.result().await),
                Some(limit) => tokio::time::timeout(limit, waiter.result()).await.ok(),
            };
            if result.is_none() {
                // It goes on, so that its value serves the next.
                waiter.keep();
            }
            (at, leads, result)
        }))
        .await;
        let mut again = Vec::new();
        for (at, leads, result) in ended {
            let error = match result {
                Some(FlightResult::Value(value)) => {
                    self.put(at, Obtained { found: missed, is_own: leads, value: Ok(value) });
                    continue;
                }
                Some(FlightResult::Panicked | FlightResult::Abandoned) if !leads => {
                    again.push(at);
                    continue;
                }
                Some(FlightResult::Failed(error)) => error,
                Some(FlightResult::Panicked | FlightResult::Abandoned) => ClientError::LoaderPanicked,
                None => {
                    if let Some(key) = self.request.keys.get(at) {
                        self.core.class_in(self.request, key).count_load(LoadOutcome::Timeout);
                    }
                    ClientError::Timeout(policy.hard.or(policy.soft).unwrap_or_default())
                }
            };
            let one = match self.old_value(at) {
                Some(value) => Obtained::stale(value),
                None => Obtained { found: missed, is_own: leads, value: Err(error) },
            };
            self.put(at, one);
        }
        again
    }
}

/// The load of all keys that one caller leads.
struct LoadTask {
    core: Arc<Core>,
    request: LoadRequest,
    loader: Loader,
    leaders: Leaders,
    is_refresh: bool,
}

impl LoadTask {
    async fn run(self, counters: Option<InvalidationCounters>) {
        let nobody_waits = join_all(self.leaders.iter().map(|(_, leader)| leader.is_left_alone()));
        tokio::select! {
            () = self.load(counters) => {}
            _ = nobody_waits => {}
        }
        for (_, leader) in self.leaders.iter().filter(|(_, leader)| !leader.has_ended()) {
            self.core.class_in(&self.request, leader.key()).count_load(LoadOutcome::Cancelled);
        }
    }

    /// Takes the load locks, looks again, and loads. Keys that another process loads hold up none of the others.
    async fn load(&self, counters: Option<InvalidationCounters>) {
        let leaders: Vec<&(usize, FlightLeader)> = self.leaders.iter().collect();
        let Some(lock) = self.take_lock().await else { return self.call(leaders, counters).await };
        let mut others = lock.others.iter().copied().peekable();
        let (theirs, mine): (Vec<_>, Vec<_>) =
            leaders.into_iter().enumerate().partition(|(position, _)| others.next_if_eq(position).is_some());
        let mine: Vec<_> = mine.into_iter().map(|(_, leader)| leader).collect();
        let theirs: Vec<_> = theirs.into_iter().map(|(_, leader)| leader).collect();
        let load_mine = async {
            let (mine, counters) = self.drop_found(mine).await;
            self.call(mine, counters).await;
            // Released in the background: nobody waits for that.
            drop(lock);
        };
        tokio::join!(load_mine, self.load_after_others(theirs));
    }

    async fn take_lock(&self) -> Option<LoadLock> {
        let lock = self.request.policy.lock?;
        let Backend::Redis(redis) = &self.core.backend else { return None };
        if self.core.breaker.state() != BreakerState::Closed {
            return None;
        }
        let keys: Vec<&str> = self.leaders.iter().map(|(_, leader)| &**leader.key()).collect();
        LoadLock::take(redis, &keys, lock.life).await
    }

    /// Waits for the processes that hold the locks of these keys; what they have not stored by then is loaded here as well. A
    /// refresh that nobody waits for does not wait either.
    async fn load_after_others(&self, leaders: Vec<&(usize, FlightLeader)>) {
        let (Some(locks), Some(lock)) = (&self.core.locks, self.request.policy.lock) else { return };
        if leaders.is_empty() || self.is_refresh {
            return leaders.into_iter().for_each(|leader| self.end(leader, FlightResult::Abandoned));
        }
        let names: Vec<String> = leaders.iter().map(|(_, leader)| LoadLock::name(leader.key())).collect();
        let waits = names.iter().map(|name| locks.wait_for_unlock(name, lock.wait));
        if let Some(error) = join_all(waits).await.into_iter().find_map(Result::err) {
            debug!(%error, "load locks could not be waited for");
        }
        let (leaders, _counters) = self.drop_found(leaders).await;
        // Whoever holds the lock stores; a second value beside it would be refused or wasted.
        self.call(leaders, None).await;
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
        let (looks, counters) = self.core.look_again(&self.request, &positions).await;
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
        let _permit = match &counters {
            None => self.core.loads.acquire().await.ok(),
            Some(_) => None,
        };
        let began = Instant::now();
        let positions = leaders.iter().map(|(at, _)| *at).collect();
        // The call itself may panic as well as what it answers.
        let call = AssertUnwindSafe(async { (self.loader)(positions, counters).await }).catch_unwind();
        let called = call.await;
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
            self.core.flights.failed.put(leader.key(), Instant::now() + self.request.policy.throttle);
        }
        leader.end(&self.core.flights, result);
    }
}
