//! `get_or_load`: a value from the cache, or from its loader, which runs once for all who want it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::{Instrument, debug, warn};

use super::core::{Core, check_key};
use super::error::ClientError;
use super::flight::{Boarding, Bytes, Departure, Landing, Seat};
use super::observe::{Class, Found};
use super::policy::{Age, Policy};
use super::ring::Ring;
use cachekeeper_engine::metrics::ByDatasetOutcome;
use cachekeeper_protocol::counters::InvalidationCounters;

/// Loads, and stores what was loaded where a fence is given; without one it is only returned.
pub(super) type Work = Box<
    dyn FnOnce(Option<InvalidationCounters>) -> BoxFuture<'static, Result<Option<Bytes>, ClientError>> + Send,
>;

/// A remaining lifetime that nobody asked for.
const NO_END: i64 = -1;

/// One value that somebody wants.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub key: Arc<str>,
    pub policy: Arc<Policy>,
    /// Its key is a dataset's: stamps order it.
    pub is_stamped: bool,
    /// What stands in the cache does not decode: load it anew.
    pub is_forced: bool,
}

/// What a look into the cache found.
enum Look {
    /// To be served.
    Found(Bytes, Age),
    Missing,
    Unavailable,
}

impl Core {
    /// The value of a wish, from the cache or by `work`, which stays where it was not needed.
    pub async fn obtain(
        self: &Arc<Self>,
        wish: &Wish,
        work: &mut Option<Work>,
    ) -> Result<Option<Bytes>, ClientError> {
        check_key(&wish.key)?;
        let class = self.class_of(&wish.key);
        let (span, began) = (self.span("cache.get", &wish.key, class), Instant::now());
        let (found, result) = self.obtain_now(wish, class, work).instrument(span.clone()).await;
        span.record("cache.hit", matches!(found, Found::Hit | Found::Negative));
        if result.is_err() {
            span.record("otel.status_code", "ERROR");
        }
        self.observe_read(&wish.key, class, began.elapsed(), found);
        result
    }

    async fn obtain_now(
        self: &Arc<Self>,
        wish: &Wish,
        class: &Class,
        work: &mut Option<Work>,
    ) -> (Found, Result<Option<Bytes>, ClientError>) {
        let mut stale = None;
        match self.look(wish, class).await {
            Look::Found(value, Age::Fresh) => return served(class, value),
            Look::Found(value, Age::Due) => {
                self.refresh_in_background(wish, work.take());
                return served(class, value);
            }
            Look::Found(value, Age::Stale) => stale = Some(value),
            Look::Missing | Look::Unavailable => {}
        }
        let outcome = |found: Found, is_stale: bool| if is_stale { Found::Stale } else { found };
        loop {
            if stale.is_some() && self.flights.is_cooling(&wish.key) {
                return (Found::Stale, Ok(stale));
            }
            let (look, fence) = self.look_fenced(wish, class).await;
            let missed = match look {
                Look::Found(value, Age::Fresh | Age::Due) => return served(class, value),
                Look::Found(value, Age::Stale) => {
                    stale = Some(value);
                    Found::Miss
                }
                Look::Missing => Found::Miss,
                Look::Unavailable => Found::Unavailable,
            };
            let (mut seat, leads) = match self.flights.board(&wish.key, fence) {
                Boarding::Joined(seat) => (seat, false),
                Boarding::Leads(seat, departure) => {
                    // A leader's work is taken once; the loop goes on only for those who joined.
                    let Some(work) = work.take() else { return (missed, Err(ClientError::LoaderPanicked)) };
                    self.depart(wish, departure, work, false);
                    (seat, true)
                }
            };
            match self.wait(wish, &mut seat, stale.is_some()).await {
                Some(Landing::Value(value)) => return (missed, Ok(value)),
                Some(Landing::Failed(error)) => match stale {
                    Some(value) => return (Found::Stale, Ok(Some(value))),
                    None => return (missed, Err(error)),
                },
                Some(Landing::Panicked | Landing::Abandoned) if !leads => {}
                Some(Landing::Panicked | Landing::Abandoned) => {
                    return (
                        outcome(missed, stale.is_some()),
                        stale.map(Some).ok_or(ClientError::LoaderPanicked),
                    );
                }
                None => {
                    // It goes on, so that its value serves the next.
                    seat.keep();
                    let limit = wish.policy.hard.or(wish.policy.soft).unwrap_or_default();
                    self.count_load(class, "timeout");
                    return (
                        outcome(missed, stale.is_some()),
                        stale.map(Some).ok_or(ClientError::Timeout(limit)),
                    );
                }
            }
        }
    }

    /// Waits for a load as long as the policy allows; none: too long.
    async fn wait(&self, wish: &Wish, seat: &mut Seat, has_stale: bool) -> Option<Landing> {
        let policy = &wish.policy;
        let soft = policy.soft.filter(|_| has_stale);
        match soft.into_iter().chain(policy.hard).min() {
            None => Some(seat.landing().await),
            Some(limit) => tokio::time::timeout(limit, seat.landing()).await.ok(),
        }
    }

    async fn look(&self, wish: &Wish, class: &Class) -> Look {
        let looked = if wish.policy.needs_age() {
            let looked = self.ask("read an entry", self.backend.look(&[&*wish.key])).await;
            looked.map(|mut looked| looked.pop())
        } else {
            let value = self.ask("read an entry", self.backend.get(&wish.key)).await;
            value.map(|value| Some((value, NO_END)))
        };
        match looked {
            Ok(looked) => judge(wish, class, looked),
            Err(error) => {
                debug!(%error, "the cache could not be read, the loader is asked");
                Look::Unavailable
            }
        }
    }

    async fn look_fenced(&self, wish: &Wish, class: &Class) -> (Look, Option<InvalidationCounters>) {
        let keys = [&*wish.key];
        let look = self.backend.look_fenced(&keys, &wish.policy.tags, wish.is_stamped);
        match self.ask("read an entry", look).await {
            Ok((mut looked, fence)) => (judge(wish, class, looked.pop()), Some(fence)),
            Err(_unavailable) => (Look::Unavailable, None),
        }
    }

    /// Loads a value that will soon be old, once, without anybody waiting.
    fn refresh_in_background(self: &Arc<Self>, wish: &Wish, work: Option<Work>) {
        let Some(work) = work else { return };
        if self.flights.is_under_way(&wish.key) || self.flights.is_cooling(&wish.key) {
            return;
        }
        let (core, wish) = (Arc::clone(self), wish.clone());
        drop(tokio::spawn(async move {
            let class = core.class_of(&wish.key);
            let (Look::Found(_, Age::Due | Age::Stale) | Look::Missing, fence) =
                core.look_fenced(&wish, class).await
            else {
                return;
            };
            if let Boarding::Leads(seat, departure) = core.flights.board(&wish.key, fence) {
                seat.keep();
                core.depart(&wish, departure, work, true);
            }
        }));
    }

    /// Begins a load in a task of its own.
    fn depart(self: &Arc<Self>, wish: &Wish, departure: Departure, work: Work, is_refresh: bool) {
        let (core, wish) = (Arc::clone(self), wish.clone());
        let span = self.span("cache.load", &wish.key, self.class_of(&wish.key));
        let task = async move {
            let cancelled = departure.cancelled();
            let flight = AssertUnwindSafe(core.fly(&wish, work, is_refresh)).catch_unwind();
            let landing = tokio::select! {
                flown = flight => flown.unwrap_or(Landing::Panicked),
                () = cancelled.cancelled() => Landing::Abandoned,
            };
            let class = core.class_of(&wish.key);
            let outcome = match &landing {
                Landing::Value(_) => "ok",
                Landing::Failed(error) => {
                    warn!(dataset = %class.label, %error, "a load failed");
                    "failed"
                }
                Landing::Panicked => "panicked",
                Landing::Abandoned => "cancelled",
            };
            core.count_load(class, outcome);
            if matches!(landing, Landing::Failed(_) | Landing::Panicked) {
                core.flights.cool(&wish.key, Instant::now() + wish.policy.throttle);
            }
            departure.land(&core.flights, landing);
        };
        drop(tokio::spawn(task.instrument(span)));
    }

    /// Takes the load lock, looks again, and loads.
    async fn fly(self: &Arc<Self>, wish: &Wish, work: Work, is_refresh: bool) -> Landing {
        let class = self.class_of(&wish.key);
        let ring = self.enter_ring(wish, is_refresh).await;
        if is_refresh && matches!(ring, Ring::Others) {
            return Landing::Abandoned;
        }
        let (look, mut fence) = self.look_fenced(wish, class).await;
        if let Look::Found(value, age) = look
            && (age == Age::Fresh || (age == Age::Due && !is_refresh))
        {
            return Landing::Value(served(class, value).1.ok().flatten());
        }
        if matches!(ring, Ring::Others) {
            // Whoever holds the lock stores; a second value beside it would be refused or wasted.
            fence = None;
        }
        let _permit = match &fence {
            None => self.loads.acquire().await.ok(),
            Some(_) => None,
        };
        let began = Instant::now();
        let loaded = work(fence).await;
        let labels = cachekeeper_engine::metrics::ByDataset::new(&class.label);
        self.metrics.load_seconds.get_or_create(&labels).observe(began.elapsed().as_secs_f64());
        self.report_slow("load", &wish.key, class, began.elapsed());
        if let Ring::Mine(guard) = ring {
            // Released in the background: nobody waits for that.
            drop(guard);
        }

        match loaded {
            Ok(value) => Landing::Value(value),
            Err(error) => Landing::Failed(error),
        }
    }

    pub fn count_load(&self, class: &Class, outcome: &str) {
        self.metrics.client.loads.get_or_create(&ByDatasetOutcome::new(&class.label, outcome)).inc();
    }
}

fn judge(
    wish: &Wish,
    class: &Class,
    looked: Option<cachekeeper_engine::stores::redis::ValueAndLife>,
) -> Look {
    match looked {
        Some((Some(value), left)) if !wish.is_forced => match wish.policy.judge(&wish.key, left) {
            // There is nothing to refresh ahead in knowing that there is nothing.
            Age::Due if value == class.codec.null() => Look::Found(value.into(), Age::Fresh),
            age => Look::Found(value.into(), age),
        },
        Some(_) | None => Look::Missing,
    }
}

/// A value that is there; an explicit null is none.
fn served(class: &Class, value: Bytes) -> (Found, Result<Option<Bytes>, ClientError>) {
    if *value == *class.codec.null() {
        return (Found::Negative, Ok(None));
    }
    (Found::Hit, Ok(Some(value)))
}
