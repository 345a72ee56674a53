//! Applies the events of the channels, and notices when some may have been lost.
//!
//! A [`Reader`] holds the subscription, reads into a bounded queue and opens the subscription again when it ends; each time,
//! and at the start, everything may have been missed. Then all datasets that the feed does not cover become pending, after
//! the new subscription is active. Events that cannot be applied, because Postgres is down, are kept and tried again; their
//! keys are deleted meanwhile.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::background::Background;
use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::metrics::ByReason;
use cachekeeper_engine::stores::redis::{CacheError, Notice};
use cachekeeper_engine::{events, log_limit, miss_events};
use cachekeeper_protocol::event::Event;

/// How often the server is asked whether it is still the one: a subscription to a replica hears no misses.
const HEARTBEAT: Duration = Duration::from_secs(1);
const REPLY_LIMIT: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Until the coverage is known. Short, because only local memory is looked at.
const WAIT_FOR_COVERAGE: Duration = Duration::from_millis(20);
/// Events applied together: one snapshot serves them all.
const AT_ONCE: usize = 256;

/// Listens for events.
#[derive(Debug)]
pub struct InvalidationListener;

impl Task for InvalidationListener {
    const NAME: &'static str = "invalidation_listener";

    async fn run(context: TaskContext, _wake: Wake) {
        let (sender, queue) = mpsc::channel(context.config.invalidation.max_pending.max(1));
        let gap = Gap::default();
        let mut reader = Reader { context: &context, queue: sender, gap: &gap };
        let mut applier = Applier {
            context: &context,
            queue,
            gap: &gap,
            pending: VecDeque::new(),
            retry: Backoff::new(RETRY_MIN, RETRY_MAX),
            is_failing: false,
        };
        tokio::select! {
            never = reader.run() => match never {},
            never = applier.run() => match never {},
        }
    }
}

/// Events may have been lost before this moment of Redis's clock; none: it is not known when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost {
    cause: Option<u64>,
}

/// Whether events may have been lost.
#[derive(Debug, Default)]
struct Gap {
    lost: Mutex<Option<Lost>>,
    noticed: Wake,
}

impl Gap {
    fn note(&self, cause: Option<u64>) {
        *self.lock() = Some(Lost { cause });
        self.noticed.now();
    }

    fn get(&self) -> Option<Lost> {
        *self.lock()
    }

    /// It was repaired, unless another one was noticed meanwhile.
    fn repaired(&self, lost: Lost) {
        let mut state = self.lock();
        if *state == Some(lost) {
            *state = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lost>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Applier<'a> {
    context: &'a TaskContext,
    queue: mpsc::Receiver<Event>,
    gap: &'a Gap,
    /// Events that could not be applied, the longest waiting first.
    pending: VecDeque<Event>,
    retry: Backoff,
    /// The last attempt failed.
    is_failing: bool,
}

impl Applier<'_> {
    async fn run(&mut self) -> Infallible {
        loop {
            if let Some(lost) = self.gap.get() {
                self.repair(lost).await;
            }
            let has_gap = self.gap.get().is_some();
            self.context.health.update(|facts| facts.has_gap = has_gap);
            let batch = self.next_batch();
            self.is_failing = !(batch.is_empty() || self.apply(batch).await);
            let waiting = i64::try_from(self.pending.len()).unwrap_or(i64::MAX);
            self.context.engine.metrics.events_pending.set(waiting);
            if self.is_failing {
                self.pause().await;
            } else if has_gap {
                // Events that come meanwhile can be applied: they do not wait for the gap.
                let pause = if self.knows_coverage() { self.retry.pause() } else { WAIT_FOR_COVERAGE };
                drop(tokio::time::timeout(pause, self.wait()).await);
            } else {
                self.retry.reset();
                self.wait().await;
            }
        }
    }

    /// Waits for an event or a gap.
    async fn wait(&mut self) {
        if self.pending.is_empty() {
            tokio::select! {
                () = self.gap.noticed.requested() => {}
                Some(event) = self.queue.recv() => self.pending.push_back(event),
            }
        }
    }

    fn next_batch(&mut self) -> Vec<Event> {
        let mut batch: Vec<Event> = Vec::new();
        while batch.len() < AT_ONCE {
            let Some(event) = self.pending.pop_front().or_else(|| self.queue.try_recv().ok()) else { break };
            if self.context.seen.is_new(&event) {
                batch.push(event);
            }
        }
        batch
    }

    /// Applies a batch; false: it must be tried again. It may take long: a tag may have a million members.
    async fn apply(&mut self, batch: Vec<Event>) -> bool {
        let (engine, sent) = (self.context.engine.clone(), batch.clone());
        let mut work = Background::spawn(async move { events::apply(&engine, events::PUBSUB, &sent).await });
        let is_failing = self.is_failing;
        let result = loop {
            tokio::select! {
                result = work.result() => break result,
                Some(event) = self.queue.recv(), if is_failing => self.delete_early(event).await,
            }
        };
        match result {
            Some(Ok(datasets)) => {
                self.context.note_applied(events::PUBSUB, &batch, &datasets);
                return true;
            }
            Some(Err(error)) => {
                if matches!(error, EngineError::RedisRolledBack) {
                    self.context.epoch_keeper.now();
                }
                let what = "events wait, they are applied later";
                if let Some(attempts) = log_limit::due(what, "", 1) {
                    warn!(error = error.told(), events = batch.len(), attempts, "{what}");
                }
            }
            None => warn!(events = batch.len(), "applying events panicked, they are applied later"),
        }
        batch.into_iter().rev().for_each(|event| self.pending.push_front(event));
        self.drop_overflow();
        false
    }

    /// Waits until the next attempt.
    async fn pause(&mut self) {
        let until = Instant::now() + self.retry.pause();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                Some(event) = self.queue.recv() => self.delete_early(event).await,
            }
        }
    }

    /// Events that come while none can be applied: their keys are deleted at once.
    async fn delete_early(&mut self, first: Event) {
        let mut events = vec![first];
        while let Ok(event) = self.queue.try_recv() {
            events.push(event);
        }
        events::delete_named(&self.context.engine, &events).await;
        self.pending.extend(events);
        self.drop_overflow();
    }

    fn drop_overflow(&mut self) {
        let most = self.context.config.invalidation.max_pending;
        if most < self.pending.len() {
            self.pending.truncate(most);
            if self.gap.get().is_none() {
                warn!("more events wait than are kept, all entries are revalidated");
                self.context.engine.metrics.gaps.get_or_create(&ByReason::new("overflow")).inc();
            }
            self.gap.note(None);
        }
    }

    /// Whether it is known what the feed follows, where it is on.
    fn knows_coverage(&self) -> bool {
        !self.context.engine.feed.is_on || self.context.engine.coverage().is_some()
    }

    /// Every entry may be out of date: that becomes pending, in Redis.
    async fn repair(&self, lost: Lost) {
        if !self.knows_coverage() {
            return;
        }
        let engine = &self.context.engine;
        let coverage = engine.coverage();
        // What the feed follows misses nothing.
        let is_covered = |name: &str| {
            coverage.as_ref().is_some_and(|coverage| coverage.datasets.get(name).is_some_and(Result::is_ok))
        };
        let names = engine.catalog.iter().map(|dataset| dataset.name().to_owned());
        let names: Vec<String> = names.filter(|name| !is_covered(name)).collect();
        if !names.is_empty() {
            if let Err(error) = events::mark_pending(engine, &names, "events lost", lost.cause).await {
                debug!(error = %chain(&error), "the gap is repaired later");
                return;
            }
            let datasets = names.join(", ");
            info!(datasets, "events may have been missed, all entries are revalidated");
            self.context.epoch_keeper.now();
        }
        self.gap.repaired(lost);
    }
}

/// Holds the subscription.
struct Reader<'a> {
    context: &'a TaskContext,
    queue: mpsc::Sender<Event>,
    gap: &'a Gap,
}

impl Reader<'_> {
    async fn run(&mut self) -> Infallible {
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let began = Instant::now();
            let error = match self.listen().await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let text = error.told();
            if self.context.health.note("subscription", Err(text.clone())) {
                warn!(error = text, "the subscription ended, opening it again");
            }
            self.context.engine.metrics.gaps.get_or_create(&ByReason::new("subscription")).inc();
            retry.reset_after(began.elapsed());
            retry.wait_or(self.context.engine.redis.connected_again()).await;
        }
    }

    async fn listen(&mut self) -> Result<Infallible, CacheError> {
        let engine = &self.context.engine;
        let with_misses = miss_events::wanted_by(&engine.catalog).is_some();
        let enabled = if with_misses { self.enable_misses().await? } else { Ok(()) };
        let channels = &self.context.config.invalidation.channels;
        let mut subscription = engine.redis.subscribe(channels, with_misses, HEARTBEAT, REPLY_LIMIT).await?;
        // Before the subscription is reported: backfills at the start wait for it, so that they cover the gap.
        let cause = engine.redis.next_cause().await.ok();
        self.gap.note(cause);
        // The worker is not ready until the possible loss is recorded.
        self.context.health.update(|facts| facts.has_gap = true);
        self.context.health.note("subscription", Ok(()));
        info!(channels = %channels.join(", "), misses = with_misses, "listening for events");
        // Somebody else may have turned key-miss events on: a miss of our own tells.
        let mut is_in_doubt = enabled.is_err();
        self.note_misses(enabled.err());
        if is_in_doubt {
            engine.redis.miss().await?;
        }
        loop {
            match subscription.next().await? {
                Notice::Quiet if is_in_doubt => {
                    if self.enable_misses().await?.is_ok() {
                        is_in_doubt = false;
                        self.note_misses(None);
                    } else {
                        engine.redis.miss().await?;
                    }
                }
                Notice::Quiet => {}
                Notice::Miss { key } => {
                    // Whichever it is, they come.
                    if std::mem::take(&mut is_in_doubt) {
                        self.note_misses(None);
                    }
                    if engine.catalog.of_key(&key).is_some() {
                        self.context.fill_soon([key]);
                    }
                }
                Notice::Event { channel, body } => self.take(&channel, &body),
            }
        }
    }

    /// Has the server tell of misses. Inside: it answered, and refused. Outside: it was not reached, which says nothing.
    async fn enable_misses(&self) -> Result<Result<(), CacheError>, CacheError> {
        match self.context.engine.redis.enable_miss_events().await {
            Err(error) if error.is_unreachable() => Err(error),
            answer => Ok(answer),
        }
    }

    /// Notes why misses do not come, where they do not.
    fn note_misses(&self, error: Option<CacheError>) {
        let reason = error.as_ref().map(miss_events::told);
        let known = self.context.health.facts().misses;
        if let Some(reason) = reason.as_ref().filter(|_| known != reason) {
            warn!(reason, "misses are not filled, unless the server tells of them");
        }
        self.context.health.update(|facts| facts.misses = reason);
    }

    fn take(&mut self, channel: &str, body: &[u8]) {
        let metrics = &self.context.engine.metrics;
        match Event::decode(body) {
            Ok(event) => {
                if self.queue.try_send(event).is_err() {
                    metrics.gaps.get_or_create(&ByReason::new("overflow")).inc();
                    self.gap.note(None);
                }
            }
            Err(invalid) => {
                metrics.events_invalid.get_or_create(&ByReason::new(invalid.reason())).inc();
                let what = "events cannot be read";
                if let Some(count) = log_limit::due(what, invalid.reason(), 1) {
                    warn!(channel, reason = invalid.reason(), problem = %invalid, bytes = body.len(), count, "{what}");
                }
            }
        }
    }
}
