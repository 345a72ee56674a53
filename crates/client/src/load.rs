//! Values of keys from the cache, or from their loader, which runs once for all who want them: one engine for one key and
//! for many.
//!
//! What is fresh is served. What is old or missing joins the load that is under way for its key; keys that nobody loads are
//! loaded by one call. The rest of a policy is decided per key: how long to wait, whether an old value is served instead.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::Instrument;

use super::core::{Core, check_key};
use super::error::ClientError;
use super::flight::{Bytes, FlightResult, FlightWaiter, Join, LoadRequest, Loader};
use super::key_class::{KeyClass, LoadOutcome, ReadOutcome};
use super::load_task::{Leaders, LoadTask};
use super::policy::{Age, Policy};
use super::read::{Look, Obtained};
use super::waits::Waiting;
use cachekeeper_protocol::counters::InvalidationCounters;

/// Waits by position, each with whether it leads.
type Waiters = Vec<(usize, FlightWaiter, bool)>;

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
            let look = match self.look_one(key, class, policy, began).await {
                Look::Found(value, Age::Fresh) => return Obtained::served(class, value),
                look => look,
            };
            let (request, loader) = request();
            let mut obtained = self.obtain(&request, &loader, vec![look], began).await;
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
            self.look_many(&request.keys, request.of_dataset.as_deref(), &request.policy, began).await
        };
        let obtained = self.obtain(request, loader, looks, began).await;
        for (key, one) in request.keys.iter().zip(&obtained) {
            self.class_in(request, key).count(one.found);
        }
        if let Some(first) = request.keys.first() {
            self.report_slow("get_or_load_many", first, &self.class_in(request, first), began.elapsed());
        }
        obtained
    }

    pub fn class_in(&self, request: &LoadRequest, key: &str) -> Arc<KeyClass> {
        request.of_dataset.clone().unwrap_or_else(|| self.class_of(key))
    }

    /// The same as [`Core::look_with_counters`] for the keys at these positions.
    pub async fn look_again(
        &self,
        request: &LoadRequest,
        positions: &[usize],
        began: Instant,
    ) -> (Vec<Look>, Option<InvalidationCounters>) {
        let keys: Vec<&Arc<str>> = positions.iter().filter_map(|at| request.keys.get(*at)).collect();
        let of_dataset = request.of_dataset.as_deref();
        let (mut looks, counters) = self.look_with_counters(&keys, of_dataset, &request.policy, began).await;
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
        began: Instant,
    ) -> Vec<Obtained> {
        let count = request.keys.len();
        let mut caller = Caller {
            core: self,
            request,
            began,
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
            let (looks, counters) = self.look_again(request, &missing, began).await;
            let missed = if counters.is_some() { ReadOutcome::Miss } else { ReadOutcome::Unavailable };
            // Another process has loaded it meanwhile: that it is due again is for the next reader to see.
            (missing, _) = caller.take(missing, looks);
            let waiting = caller.begin_to_wait(&mut missing);
            let (waiters, leaders) = self.join(request, &missing, counters.as_ref());
            if !leaders.is_empty() {
                self.depart(request, loader, leaders, counters, false);
            }
            missing = caller.wait(waiters, missed).await;
            drop(waiting);
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
            let (looks, counters) = core.look_again(&request, &due, Instant::now()).await;
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
    /// When it came.
    began: Instant,
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

    /// Begins to wait for these keys. Those that would wait for themselves are not waited for.
    fn begin_to_wait(&mut self, missing: &mut Vec<usize>) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        missing.retain(|at| {
            let Some(key) = self.request.keys.get(*at) else { return false };
            match self.core.waits.begin(key) {
                Some(one) => {
                    waiting.push(one);
                    true
                }
                None => {
                    let value = Err(ClientError::Recursion { key: key.to_string() });
                    let one = self.old_value(*at).map(Obtained::stale);
                    self.put(*at, one.unwrap_or(Obtained { found: ReadOutcome::Miss, is_own: false, value }));
                    false
                }
            }
        });
        waiting
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
            // What was spent on Redis counts.
            let hard = policy.hard.map(|hard| hard.saturating_sub(self.began.elapsed()));
            let result = match soft.into_iter().chain(hard).min() {
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
