//! The cache's handle and what is behind it: every command goes through the breaker and the faults on purpose, and what
//! could not be invalidated is noted and made up for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tracing::{Span, info, warn};

use super::backend::{Backend, PROBE_LIMIT};
use super::breaker::{Breaker, BreakerState, PAUSE_MAX};
use super::chaos::Chaos;
use super::error::ClientError;
use super::flight::Flights;
use super::key_class::{KeyClass, KeyClasses, beginning};
use super::locks::Locks;
use super::near::NearHub;
use super::prefixes::Prefixes;
use super::source::Source;
use super::waits::Waits;
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_engine::stores::chain;
use cachekeeper_engine::stores::redis::CacheError;
use cachekeeper_protocol::event::Event;
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;

/// Keys of one script.
const PAGE: usize = 256;

/// A handle to the cache. Cheap to clone; all clones share connections, loads under way and the circuit breaker.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) core: Arc<Core>,
}

impl Cache {
    /// The circuit breaker's state.
    #[must_use]
    pub fn breaker_state(&self) -> BreakerState {
        self.core.breaker.state()
    }

    /// Locks in the same Redis; of a cache in memory, those of its clones.
    #[must_use]
    pub fn locks(&self) -> &Locks {
        &self.core.locks
    }

    /// The metrics of this cache in the text format of Prometheus.
    ///
    /// # Errors
    /// Only if formatting fails.
    pub fn render_metrics(&self) -> Result<String, std::fmt::Error> {
        self.core.metrics.render()
    }

    /// Adds the metrics of this cache to a registry of the application's, under the prefix `cachekeeper_`; once for a registry.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.core.metrics.register_client(registry.sub_registry_with_prefix("cachekeeper"));
    }
}

/// The cache behind its handles.
#[derive(Debug)]
pub(super) struct Core {
    pub backend: Backend,
    pub source: Source,
    pub classes: KeyClasses,
    pub metrics: Arc<Metrics>,
    pub breaker: Breaker,
    pub chaos: Option<Chaos>,
    pub flights: Flights,
    pub waits: Arc<Waits>,
    /// A task drops old windows of tags.
    pub drops_windows: AtomicBool,
    /// A task looks whether Redis answers.
    pub is_doubted: AtomicBool,
    pub locks: Locks,
    /// Loads at the same time while Redis is down, so that the database survives it.
    pub loads: Semaphore,
    pub channel: String,
    /// The stream of events, where it is known.
    pub stream: Option<String>,
    /// What the application's own keys begin with.
    pub prefixes: Prefixes,
    pub near: Arc<NearHub>,
    pub shows_keys: bool,
    /// From which duration on an operation is reported as slow.
    pub slow: Duration,
    /// The same core, for tasks that must not keep it alive.
    pub own: Weak<Self>,
}

impl Core {
    /// Sends a command, unless the breaker is open.
    pub async fn ask<T>(
        &self,
        what: &'static str,
        command: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, ClientError> {
        if self.breaker.state() != BreakerState::Closed {
            // Whoever tended it may have ended with the runtime of then.
            self.tend();
            return Err(ClientError::unavailable("the circuit breaker is open"));
        }
        match self.try_once(what, command).await {
            Ok(value) => {
                self.breaker.on_success();
                self.register_prefixes();
                Ok(value)
            }
            Err(error) => {
                if error.is_unreachable() {
                    if self.breaker.on_failure() {
                        warn!(error = %chain(&error), "redis does not answer, the circuit breaker opens");
                        self.metrics.client.breaker.set(1);
                    }
                    self.tend();
                } else {
                    self.breaker.on_success();
                }
                Err(error.into())
            }
        }
    }

    /// Looks whether Redis answers within the limit of a command, in the background and one at a time, until it has, or the breaker has
    /// opened: whoever has less time than that sees only that no answer came yet.
    pub fn doubt(&self) {
        if self.is_doubted.swap(true, Ordering::AcqRel) {
            return;
        }
        let doubt = Doubt(self.own.clone());
        drop(tokio::spawn(async move {
            while let Some(core) = doubt.0.upgrade() {
                let looked = core.ask("look whether redis answers", core.backend.exists("")).await;
                if looked.is_ok() || core.breaker.state() != BreakerState::Closed {
                    return;
                }
            }
        }));
    }

    /// Makes the prefixes of the application's keys known, if it is time; nobody waits for it.
    fn register_prefixes(&self) {
        if !self.prefixes.begin() {
            return;
        }
        let own = self.own.clone();
        drop(tokio::spawn(async move {
            if let Some(core) = own.upgrade() {
                core.prefixes.register(&core.backend).await;
            }
        }));
    }

    /// The same, and waits for it.
    pub async fn register_prefixes_now(&self) {
        if self.prefixes.begin() {
            self.prefixes.register(&self.backend).await;
        }
    }

    async fn try_once<T>(
        &self,
        what: &'static str,
        command: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        match &self.chaos {
            None => command.await,
            Some(chaos) => chaos.around_redis(what, command).await,
        }
    }

    /// Invalidates keys and tags. Where Redis cannot be asked, it is noted and done before reads go there again.
    pub async fn invalidate(&self, keys: &[String], tags: &[String]) -> Result<u64, ClientError> {
        let result = self.ask("invalidate", self.invalidate_now(keys, tags)).await;
        match result {
            Ok(deleted) => {
                self.breaker.settle(keys);
                Ok(deleted)
            }
            Err(error) if error.may_pass() => Err(self.note(error, keys, tags)),
            // It would fail each time, and keep the breaker from closing.
            Err(error) => Err(error),
        }
    }

    /// Notes what an operation that failed should have made obsolete.
    pub fn note(&self, error: ClientError, keys: &[impl AsRef<str>], tags: &[String]) -> ClientError {
        let is_noted = self.breaker.note(keys, tags);
        // A read that began before it may have put the old value there.
        self.near.remove(keys);
        self.tend();
        if is_noted { error.noted() } else { error }
    }

    async fn invalidate_now(&self, keys: &[String], tags: &[String]) -> Result<u64, CacheError> {
        let mut deleted = 0;
        for page in keys.chunks(PAGE) {
            deleted += self.backend.invalidate(page).await?;
        }
        if !tags.is_empty() {
            let keeps = |key: &str| {
                self.near.remove(&[key]);
                self.source.position_of(key).is_some()
            };
            let gone = |key: &str| self.near.remove(&[key]);
            deleted += self.backend.forget_tags(tags, keeps, gone).await?;
        }
        Ok(deleted)
    }

    /// Tells workers, and applications that listen. They know what is loaded from Postgres and see to it.
    pub async fn announce(&self, event: &Event) -> Result<u64, ClientError> {
        let body = event.to_json();
        let publish = async {
            // Before it, so that it finds them registered.
            self.register_prefixes_now().await;
            self.backend.publish(&self.channel, body.as_bytes()).await
        };
        self.ask("publish an event", publish).await
    }

    /// What is known of a key by the dataset that it belongs to.
    pub fn class_of(&self, key: &str) -> Arc<KeyClass> {
        let of_dataset = || {
            let position = self.source.position_of(key)?;
            self.classes.datasets.get(position).cloned()
        };
        let of_dataset = if self.classes.datasets.is_empty() { None } else { of_dataset() };
        of_dataset.unwrap_or_else(|| self.classes.of_own(key))
    }

    /// What this process changes: nobody joins a load of these keys that has begun, and nothing near is served.
    pub fn leave(&self, keys: &[impl AsRef<str>]) {
        self.flights.detach(keys);
        self.near.remove(keys);
    }

    /// Whether an application may store under this key, as far as it is known without asking anybody.
    pub fn check_own(&self, key: &str) -> Result<(), ClientError> {
        check_key(key)?;
        match self.source.dataset_of(key) {
            Some(dataset) => Err(ClientError::OfDataset { key: beginning(key), dataset: dataset.to_owned() }),
            None => Ok(()),
        }
    }

    /// The same where any entry of a dataset may have changed.
    pub fn leave_datasets(&self) {
        if self.source.is_some() {
            self.near.remove_beginning_with(&self.source.prefixes());
        }
    }

    /// The span of an operation on a key; the key itself only where that was asked for.
    pub fn span(&self, name: &'static str, key: &str, class: &KeyClass) -> Span {
        let span = match name {
            "cache.get" => {
                tracing::info_span!("cache.get", cache.dataset = %class.label, cache.key = tracing::field::Empty, cache.hit = tracing::field::Empty, otel.status_code = tracing::field::Empty)
            }
            "cache.load" => {
                tracing::info_span!("cache.load", cache.dataset = %class.label, cache.key = tracing::field::Empty, otel.status_code = tracing::field::Empty)
            }
            _ => {
                tracing::info_span!("cache.write", cache.dataset = %class.label, cache.key = tracing::field::Empty, otel.status_code = tracing::field::Empty)
            }
        };
        if self.shows_keys {
            span.record("cache.key", key);
        }
        span
    }

    /// Reports an operation on this key, if it took too long.
    pub fn report_slow(&self, operation: &'static str, key: &str, class: &KeyClass, took: Duration) {
        if self.slow <= took {
            class.report_slow(operation, key, took);
        }
    }

    /// Begins to probe and to make up for what was missed, unless somebody already does.
    fn tend(&self) {
        let is_wrong = self.breaker.state() != BreakerState::Closed || self.breaker.has_missed();
        if is_wrong && self.breaker.begin_tending() {
            // It ends by itself when the cache is gone.
            let tending = Tending(self.own.clone());
            drop(tokio::spawn(tend(tending, self.breaker.settings.pause)));
        }
    }
}

/// The right to look whether Redis answers, which ends with its task.
struct Doubt(Weak<Core>);

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.is_doubted.store(false, Ordering::Release);
        }
    }
}

/// The right to tend the breaker. Where its task is dropped with its runtime, the next command begins anew.
struct Tending(Weak<Core>);

impl Drop for Tending {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.breaker.abandon_tending();
        }
    }
}

async fn tend(mut tending: Tending, first_pause: Duration) {
    let mut pause = first_pause;
    loop {
        tokio::time::sleep(pause).await;
        let Some(core) = tending.0.upgrade() else { return };
        match core.probe().await {
            Ok(()) => {
                pause = first_pause;
                if core.breaker.end_tending() {
                    // From here on it may be another's.
                    tending.0 = Weak::new();
                    return;
                }
            }
            Err(error) => {
                pause = (pause * 2).min(PAUSE_MAX);
                tracing::debug!(error = %chain(&error), ?pause, "redis is probed again later");
            }
        }
    }
}

impl Core {
    /// The only command of a half-open breaker; when it succeeds, what was missed is made up for, and the breaker closes.
    async fn probe(&self) -> Result<(), CacheError> {
        let was_open = self.breaker.state() != BreakerState::Closed;
        if was_open {
            self.breaker.set(BreakerState::HalfOpen);
            self.metrics.client.breaker.set(2);
        }
        match self.make_up().await {
            Ok(missed) => {
                if was_open {
                    info!(missed, "redis answers again, the circuit breaker closes");
                    self.metrics.client.breaker.set(0);
                }
                Ok(())
            }
            Err(error) => {
                if was_open {
                    self.breaker.set(BreakerState::Open);
                    self.metrics.client.breaker.set(1);
                }
                Err(error)
            }
        }
    }

    async fn make_up(&self) -> Result<usize, CacheError> {
        let ping = async {
            match tokio::time::timeout(PROBE_LIMIT, self.backend.ping()).await {
                Ok(answer) => answer,
                Err(_elapsed) => Err(CacheError::timed_out("probe")),
            }
        };
        self.try_once("probe", ping).await?;
        let mut count = 0;
        // What is noted while this runs is done in the next round; the last look and the closing are one step.
        while !self.breaker.close_if_nothing_is_missed() {
            let missed = self.breaker.missed();
            let keys: Vec<String> = missed.keys.iter().cloned().collect();
            let tags: Vec<String> = missed.tags.iter().cloned().collect();
            self.try_once("make up for what was missed", self.invalidate_now(&keys, &tags)).await?;
            self.near.remove(&keys);
            if !tags.is_empty() || self.source.is_some() {
                // Workers make up for the rest: entries that come from Postgres.
                let event = Event { keys, tags, ..Event::default() };
                self.backend.publish(&self.channel, event.to_json().as_bytes()).await?;
            }
            count += missed.keys.len() + missed.tags.len();
            self.breaker.done(&missed);
        }
        Ok(count)
    }
}

/// Refuses keys that nobody can mean.
pub(super) fn check_key(key: &str) -> Result<(), ClientError> {
    if key.is_empty() {
        return Err(ClientError::Key { key: String::new(), problem: "is empty" });
    }
    if key.starts_with(RESERVED_PREFIX) {
        let problem = "belongs to Cachekeeper itself: keys that begin with `ck:` are reserved";
        return Err(ClientError::Key { key: beginning(key), problem });
    }
    Ok(())
}
