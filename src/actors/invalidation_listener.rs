//! Obeys events, and notices when some may have been lost.
//!
//! A task holds the subscription, reads into a bounded queue and opens the subscription again when it ends; each
//! time, and at the start, everything may have been missed: then all datasets become owed, after the new
//! subscription stands. Events that cannot be obeyed, because Postgres is down, are kept and tried again; their keys
//! are deleted meanwhile. If the actor dies, its start is a gap like any other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::address::AddressBook;
use super::clock::now_ms;
use super::epoch_keeper::EpochKeeperMessage;
use super::health::Health;
use super::refresher::RefresherMessage;
use super::seen::Seen;
use super::task::Task;
use super::warmer::WarmerMessage;
use cachekeeper_config::OnMiss;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::flows::events;
use cachekeeper_engine::flows::reload::RETRY_DELAY_MAX;
use cachekeeper_engine::metrics::{ByReason, BySource};
use cachekeeper_engine::stores::redis::{CacheError, Notice};
use cachekeeper_protocol::event::Event;

const HEARTBEAT: Duration = Duration::from_secs(5);
const REPLY_LIMIT: Duration = Duration::from_secs(5);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
/// Events obeyed together: one snapshot serves them all.
const AT_ONCE: usize = 256;
/// Pause between two log lines about invalid events.
const QUIET_MS: u64 = 1_000;

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct InvalidationListenerArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Where facts go.
    pub health: Health,
    /// Channels.
    pub channels: Vec<String>,
    /// Most events that are held.
    pub max_pending: usize,
    /// What was obeyed, by either way.
    pub seen: Seen,
}

/// Messages.
#[derive(Debug)]
pub enum InvalidationListenerMessage {
    /// Events wait in the queue. Sent by the reading task and the actor's own timer.
    Obey,
    /// A subscription stands since this moment of Redis's clock; before it, events may have been lost.
    Subscribed {
        /// Unix milliseconds, if Redis said.
        at_ms: Option<u64>,
    },
    /// The task that obeyed a batch is over.
    Obeyed {
        /// The batch.
        batch: Vec<Event>,
        /// How; none if it panicked.
        result: Option<Result<Vec<String>, FlowError>>,
    },
}

/// What the actor knows.
#[derive(Debug)]
pub struct InvalidationListenerState {
    arguments: InvalidationListenerArguments,
    queue: mpsc::Receiver<Event>,
    _reader: Task,
    /// A tag may have a million members, so events are obeyed in a task.
    working: Option<Task>,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<InvalidationListenerMessage>>>>,
    pending: VecDeque<Event>,
    has_gap: bool,
    gap_since_ms: Option<u64>,
    retry_delay: Duration,
    is_failing: bool,
    not_before: Instant,
}

/// The actor.
#[derive(Debug)]
pub struct InvalidationListener;

impl Actor for InvalidationListener {
    type Msg = InvalidationListenerMessage;
    type State = InvalidationListenerState;
    type Arguments = InvalidationListenerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<InvalidationListenerMessage>,
        arguments: InvalidationListenerArguments,
    ) -> Result<InvalidationListenerState, ActorProcessingErr> {
        let (sender, queue) = mpsc::channel(arguments.max_pending.max(1));
        let reader = Reader {
            arguments: arguments.clone(),
            listener: myself,
            queue: sender,
            quiet_until_ms: AtomicU64::new(0),
        };
        Ok(InvalidationListenerState {
            arguments,
            queue,
            _reader: Task::run(reader.run()),
            working: None,
            timer: None,
            pending: VecDeque::new(),
            has_gap: false,
            gap_since_ms: None,
            retry_delay: RETRY_DELAY_MIN,
            is_failing: false,
            not_before: Instant::now(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<InvalidationListenerMessage>,
        message: InvalidationListenerMessage,
        state: &mut InvalidationListenerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            InvalidationListenerMessage::Obey => {}
            InvalidationListenerMessage::Subscribed { at_ms } => {
                state.has_gap = true;
                state.gap_since_ms = at_ms;
            }
            InvalidationListenerMessage::Obeyed { batch, result } => state.on_obeyed(&myself, batch, result),
        }
        state.on_obey(&myself).await;
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<InvalidationListenerMessage>,
        state: &mut InvalidationListenerState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        Ok(())
    }
}

impl InvalidationListenerState {
    fn arm(&mut self, myself: &ActorRef<InvalidationListenerMessage>, delay: Duration) {
        if let Some(timer) =
            self.timer.replace(myself.send_after(delay, || InvalidationListenerMessage::Obey))
        {
            timer.abort();
        }
    }

    async fn on_obey(&mut self, myself: &ActorRef<InvalidationListenerMessage>) {
        if self.working.is_some() || Instant::now() < self.not_before {
            if self.is_failing {
                self.delete_waiting().await;
            }
            return;
        }
        if self.has_gap {
            self.repair_gap().await;
        }
        let mut batch: Vec<Event> = Vec::new();
        // What waited longest comes first.
        while batch.len() < AT_ONCE {
            let Some(event) = self.pending.pop_front().or_else(|| self.queue.try_recv().ok()) else { break };
            if self.arguments.seen.is_new(&event) {
                batch.push(event);
            }
        }
        if !batch.is_empty() {
            let (context, sent) = (self.arguments.context.clone(), batch.clone());
            let work = async move { events::obey(&context, events::PUBSUB, &sent).await };
            let tell = move |result| InvalidationListenerMessage::Obeyed { batch, result };
            self.working = Some(Task::spawn(myself, work, tell));
        } else if self.has_gap {
            self.retry_later(myself);
        }
    }

    fn on_obeyed(
        &mut self,
        myself: &ActorRef<InvalidationListenerMessage>,
        batch: Vec<Event>,
        result: Option<Result<Vec<String>, FlowError>>,
    ) {
        self.working = None;
        match result {
            Some(Ok(passes)) => {
                self.want_passes(passes);
                let now = now_ms();
                for event in &batch {
                    self.arguments.seen.remember(event);
                    if let Some(at) = event.at_ms {
                        #[expect(clippy::cast_precision_loss, reason = "seconds for a histogram")]
                        let lag = now.saturating_sub(at) as f64 / 1000.0;
                        let lags = &self.arguments.context.metrics.event_lag_seconds;
                        lags.get_or_create(&BySource::new(events::PUBSUB)).observe(lag);
                    }
                }
                self.retry_delay = RETRY_DELAY_MIN;
                self.is_failing = false;
                self.arm(myself, Duration::ZERO);
            }
            Some(Err(error)) => {
                if matches!(error, FlowError::WentBack) {
                    self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
                }
                warn!(error = %chain(&error), events = batch.len(), "events wait, they are obeyed later");
                self.keep(batch);
                self.retry_later(myself);
            }
            None => {
                warn!(events = batch.len(), "obeying events panicked, they are obeyed later");
                self.keep(batch);
                self.retry_later(myself);
            }
        }
        let waiting = i64::try_from(self.pending.len()).unwrap_or(i64::MAX);
        self.arguments.context.metrics.events_pending.set(waiting);
    }

    /// Events that come while none can be obeyed: their keys go at once.
    async fn delete_waiting(&mut self) {
        let mut events = Vec::new();
        while let Ok(event) = self.queue.try_recv() {
            events.push(event);
        }
        events::delete_named(&self.arguments.context, &events).await;
        self.pending.extend(events);
        self.drop_overflow();
    }

    /// A pass of a dataset was asked for. The debt is written down, so a lost hint costs time only.
    fn want_passes(&self, datasets: Vec<String>) {
        let peers = &self.arguments.peers;
        if !datasets.is_empty() {
            peers.epoch_keeper.hint(EpochKeeperMessage::Look);
        }
        for dataset in datasets {
            peers.warmer.hint(WarmerMessage::PassWanted { dataset, since_ms: None });
        }
    }

    fn retry_later(&mut self, myself: &ActorRef<InvalidationListenerMessage>) {
        self.is_failing = true;
        self.not_before = Instant::now() + self.retry_delay;
        self.arm(myself, self.retry_delay);
        self.retry_delay = (self.retry_delay * 2).min(RETRY_DELAY_MAX);
    }

    fn keep(&mut self, batch: Vec<Event>) {
        for event in batch.into_iter().rev() {
            self.pending.push_front(event);
        }
        self.drop_overflow();
    }

    fn drop_overflow(&mut self) {
        while self.arguments.max_pending < self.pending.len() {
            self.pending.pop_back();
            if !self.has_gap {
                warn!("more events wait than are kept, everything is looked at again");
                self.arguments.context.metrics.gaps.get_or_create(&ByReason::new("overflow")).inc();
            }
            self.has_gap = true;
            self.gap_since_ms = None;
        }
    }

    /// Every entry may be out of date: that is a debt, written down in Redis.
    async fn repair_gap(&mut self) {
        let context = &self.arguments.context;
        let coverage = context.coverage();
        if context.feed.is_on && coverage.is_none() {
            // Not known yet what the feed covers.
            return;
        }
        // What the feed follows misses nothing (DESIGN 3.2).
        let is_covered = |name: &str| {
            coverage.as_ref().is_some_and(|coverage| coverage.datasets.get(name).is_some_and(Result::is_ok))
        };
        let names: Vec<String> = context.catalog.iter().map(|dataset| dataset.name().to_owned()).collect();
        let names: Vec<String> = names.into_iter().filter(|name| !is_covered(name)).collect();
        if names.is_empty() {
            self.has_gap = false;
            return;
        }
        let result = events::owe(context, &names, "events lost", self.gap_since_ms).await;
        match result {
            Ok(()) => {
                self.has_gap = false;
                info!(
                    datasets = names.join(", "),
                    "events may have been missed, every entry is looked at again"
                );
                self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
            }
            Err(error) => debug!(error = %chain(&error), "the gap is repaired later"),
        }
    }
}

/// Holds the subscription.
struct Reader {
    arguments: InvalidationListenerArguments,
    listener: ActorRef<InvalidationListenerMessage>,
    queue: mpsc::Sender<Event>,
    /// Until when invalid events are counted only: garbage may come in floods.
    quiet_until_ms: AtomicU64,
}

impl Reader {
    async fn run(self) {
        let mut delay = RETRY_DELAY_MIN;
        loop {
            let began = Instant::now();
            let error = match self.listen().await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let text = chain(&error);
            if self.arguments.health.note("subscription", Err(text.clone())) {
                warn!(error = text, "the subscription ended, opening it again");
            }
            self.arguments.context.metrics.gaps.get_or_create(&ByReason::new("subscription")).inc();
            if RETRY_DELAY_MAX < began.elapsed() {
                delay = RETRY_DELAY_MIN;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
    }

    async fn listen(&self) -> Result<std::convert::Infallible, CacheError> {
        let context = &self.arguments.context;
        let with_misses = context.catalog.iter().any(|dataset| dataset.settings.on_miss == OnMiss::Load);
        if with_misses && let Err(error) = context.redis.enable_miss_events().await {
            warn!(error = %chain(&error), "misses are not filled: set notify-keyspace-events to include \"Em\"");
        }
        let channels = &self.arguments.channels;
        let mut subscription = context.redis.subscribe(channels, with_misses, HEARTBEAT, REPLY_LIMIT).await?;
        // Before the subscription is said to stand: passes at the start wait for it, so that they cover the gap.
        let at_ms = context.redis.metadata("").await.ok().map(|head| head.now_ms);
        self.arguments.health.note("subscription", Ok(()));
        info!(channels = %channels.join(", "), misses = with_misses, "listening for events");
        drop(self.listener.cast(InvalidationListenerMessage::Subscribed { at_ms }));
        loop {
            match subscription.next().await? {
                Notice::Quiet => {}
                Notice::Miss { key } => {
                    if context.catalog.of_key(&key).is_some() {
                        self.arguments.peers.refresher.hint(RefresherMessage::Missed { keys: vec![key] });
                    }
                }
                Notice::Event { channel, body } => self.take(&channel, &body),
            }
        }
    }

    fn take(&self, channel: &str, body: &[u8]) {
        let metrics = &self.arguments.context.metrics;
        let event = match Event::decode(body) {
            Ok(event) => event,
            Err(invalid) => {
                metrics.events_invalid.get_or_create(&ByReason::new(invalid.reason())).inc();
                let now = now_ms();
                if now < self.quiet_until_ms.load(Ordering::Relaxed) {
                    return;
                }
                self.quiet_until_ms.store(now + QUIET_MS, Ordering::Relaxed);
                warn!(channel, reason = invalid.reason(), problem = %invalid, bytes = body.len(), "an event cannot be read");
                return;
            }
        };
        let was_idle = self.queue.capacity() == self.queue.max_capacity();
        if self.queue.try_send(event).is_err() {
            metrics.gaps.get_or_create(&ByReason::new("overflow")).inc();
            drop(self.listener.cast(InvalidationListenerMessage::Subscribed { at_ms: None }));
        } else if was_idle {
            drop(self.listener.cast(InvalidationListenerMessage::Obey));
        }
    }
}
