//! Obeys events, and notices when some may have been lost.
//!
//! A task holds the subscription, reads into a bounded queue and opens the subscription again when it ends; each
//! time, and at the start, everything may have been missed: then all datasets become owed, after the new
//! subscription stands. Events that cannot be obeyed, because Postgres is down, are kept and tried again; their keys
//! are deleted meanwhile. If the actor dies, its start is a gap like any other.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::address::AddressBook;
use super::clock::now_ms;
use super::epoch_keeper::EpochKeeperMessage;
use super::health::Health;
use super::refresher::RefresherMessage;
use super::task::Task;
use super::warmer::WarmerMessage;
use crate::config::OnMiss;
use crate::domain::event::{Event, Op};
use crate::flows::context::Context;
use crate::flows::epoch;
use crate::flows::error::{FlowError, chain};
use crate::flows::invalidate;
use crate::flows::reload::{RETRY_DELAY_MAX, with_current_order};
use crate::metrics::{ByReason, BySource, BySourceKind};
use crate::stores::redis::{Answer, CacheError, Debt, Notice};

const HEARTBEAT: Duration = Duration::from_secs(5);
const REPLY_LIMIT: Duration = Duration::from_secs(5);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
/// Events obeyed together: one snapshot serves them all.
const AT_ONCE: usize = 256;
/// Ids remembered for deduplication.
const IDS_MAX: usize = 10_000;
/// Pause between two log lines about invalid events.
const QUIET_MS: u64 = 1_000;
const SOURCE: &str = "pubsub";

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
}

/// What the actor knows.
#[derive(Debug)]
pub struct InvalidationListenerState {
    arguments: InvalidationListenerArguments,
    queue: mpsc::Receiver<Event>,
    _reader: Task,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<InvalidationListenerMessage>>>>,
    pending: VecDeque<Event>,
    has_gap: bool,
    gap_since_ms: Option<u64>,
    retry_delay: Duration,
    seen: HashSet<String>,
    seen_order: VecDeque<String>,
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
            timer: None,
            pending: VecDeque::new(),
            has_gap: false,
            gap_since_ms: None,
            retry_delay: RETRY_DELAY_MIN,
            seen: HashSet::new(),
            seen_order: VecDeque::new(),
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
        if self.has_gap {
            self.repair_gap().await;
        }
        let mut batch: Vec<Event> = Vec::new();
        // What waited longest comes first.
        while batch.len() < AT_ONCE {
            let Some(event) = self.pending.pop_front().or_else(|| self.queue.try_recv().ok()) else {
                break;
            };
            if self.is_new(&event) {
                batch.push(event);
            }
        }
        let is_full = batch.len() == AT_ONCE;
        if !batch.is_empty() {
            self.obey(batch).await;
        }
        self.arguments
            .context
            .metrics
            .events_pending
            .set(i64::try_from(self.pending.len()).unwrap_or(i64::MAX));
        if self.has_gap || !self.pending.is_empty() {
            self.arm(myself, self.retry_delay);
            self.retry_delay = (self.retry_delay * 2).min(RETRY_DELAY_MAX);
        } else {
            self.retry_delay = RETRY_DELAY_MIN;
            if is_full {
                self.arm(myself, Duration::ZERO);
            }
        }
    }

    /// An event with an id that was obeyed before is passed over.
    fn is_new(&self, event: &Event) -> bool {
        event.id.as_ref().is_none_or(|id| !self.seen.contains(id))
    }

    fn remember(&mut self, event: &Event) {
        let Some(id) = &event.id else { return };
        if self.seen.insert(id.clone()) {
            self.seen_order.push_back(id.clone());
        }
        if IDS_MAX < self.seen_order.len()
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }

    async fn obey(&mut self, batch: Vec<Event>) {
        let context = self.arguments.context.clone();
        let merged = Merged::of(&context, &batch);
        let result = merged.obey(&context, &self.arguments.peers).await;
        match result {
            Ok(()) => {
                let now = now_ms();
                for event in &batch {
                    self.remember(event);
                    if let Some(at) = event.at_ms {
                        #[expect(clippy::cast_precision_loss, reason = "seconds for a histogram")]
                        let lag = now.saturating_sub(at) as f64 / 1000.0;
                        context.metrics.event_lag_seconds.get_or_create(&BySource::new(SOURCE)).observe(lag);
                    }
                }
            }
            Err(error) => {
                if error.is_source_down() {
                    // Absence is always right; the event is kept, because an older load could still come.
                    if let Err(error) = invalidate::delete_now(&context, &merged.all_keys()).await {
                        debug!(error = %chain(&error), "keys could not be deleted yet");
                    }
                }
                if matches!(error, FlowError::WentBack) {
                    self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
                }
                warn!(error = %chain(&error), events = batch.len(), "events wait, they are obeyed later");
                self.keep(batch);
            }
        }
    }

    fn keep(&mut self, batch: Vec<Event>) {
        for event in batch.into_iter().rev() {
            self.pending.push_front(event);
        }
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
        let names: Vec<String> = context.catalog.iter().map(|dataset| dataset.name().to_owned()).collect();
        let since_ms = self.gap_since_ms;
        let result = with_current_order(context, || async {
            let order = epoch::ensure(context, "").await?;
            let debt = Debt::new("events lost", since_ms.unwrap_or(order.head.now_ms));
            match context.redis.owe(&order.epoch, &order.poll.incarnation, &debt, &names).await? {
                Answer::Done(_) => Ok(()),
                Answer::Gone(gone) => Err(FlowError::Gone(gone)),
            }
        })
        .await;
        match result {
            Ok(()) => {
                self.has_gap = false;
                info!("events may have been missed, every entry is looked at again");
                self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
            }
            Err(error) => debug!(error = %chain(&error), "the gap is repaired later"),
        }
    }
}

/// What a batch of events asks for, each thing once.
#[derive(Debug, Default)]
struct Merged {
    keys: Vec<(Option<Op>, Vec<String>)>,
    tags: Vec<(Option<Op>, Vec<String>)>,
    datasets: Vec<String>,
}

impl Merged {
    fn of(context: &Context, batch: &[Event]) -> Self {
        let mut merged = Self::default();
        for op in [None, Some(Op::Refresh), Some(Op::Delete)] {
            let (mut keys, mut tags) = (Vec::new(), Vec::new());
            for event in batch.iter().filter(|event| event.op == op) {
                keys.extend(event.keys.iter().cloned());
                tags.extend(event.tags.iter().cloned());
                let Some(name) = &event.dataset else { continue };
                let Some(dataset) = context.catalog.get(name) else {
                    context.metrics.events_invalid.get_or_create(&ByReason::new("unknown_dataset")).inc();
                    warn!(dataset = %name, "an event names a dataset that is not configured");
                    continue;
                };
                if event.ids.is_empty() {
                    merged.datasets.push(name.clone());
                }
                for id in &event.ids {
                    match dataset.key_of(id) {
                        Some(key) => keys.push(key),
                        None => {
                            context.metrics.events_invalid.get_or_create(&ByReason::new("wrong_id")).inc();
                            warn!(dataset = %name, "an event has an id with another number of parts than the key");
                        }
                    }
                }
            }
            for (kind, list, all) in
                [("key", &mut keys, &mut merged.keys), ("tag", &mut tags, &mut merged.tags)]
            {
                let labels = BySourceKind::new(SOURCE, kind);
                context.metrics.events.get_or_create(&labels).inc_by(list.len() as u64);
                list.sort_unstable();
                list.dedup();
                if !list.is_empty() {
                    all.push((op, std::mem::take(list)));
                }
            }
        }
        merged.datasets.sort_unstable();
        merged.datasets.dedup();
        merged
    }

    fn all_keys(&self) -> Vec<String> {
        self.keys.iter().flat_map(|(_, keys)| keys.iter().cloned()).collect()
    }

    async fn obey(&self, context: &Context, peers: &AddressBook) -> Result<(), FlowError> {
        for (op, keys) in &self.keys {
            with_current_order(context, || invalidate::keys(context, keys, *op)).await?;
        }
        for (op, tags) in &self.tags {
            with_current_order(context, || invalidate::tags(context, tags, *op)).await?;
        }
        if self.datasets.is_empty() {
            return Ok(());
        }
        // Written down first: a pass that nobody ran would otherwise be forgotten.
        with_current_order(context, || async {
            let order = epoch::ensure(context, "").await?;
            let debt = Debt::new("event", order.head.now_ms);
            match context.redis.owe(&order.epoch, &order.poll.incarnation, &debt, &self.datasets).await? {
                Answer::Done(_) => Ok(()),
                Answer::Gone(gone) => Err(FlowError::Gone(gone)),
            }
        })
        .await?;
        peers.epoch_keeper.hint(EpochKeeperMessage::Look);
        for dataset in &self.datasets {
            let labels = BySourceKind::new(SOURCE, "dataset");
            context.metrics.events.get_or_create(&labels).inc();
            peers.warmer.hint(WarmerMessage::PassWanted { dataset: dataset.clone(), since_ms: None });
        }
        Ok(())
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
            let began = tokio::time::Instant::now();
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
        let at_ms = context.redis.head("").await.ok().map(|head| head.now_ms);
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
                metrics.events_invalid.get_or_create(&ByReason::new(invalid.reason)).inc();
                let now = now_ms();
                if now < self.quiet_until_ms.load(Ordering::Relaxed) {
                    return;
                }
                self.quiet_until_ms.store(now + QUIET_MS, Ordering::Relaxed);
                warn!(channel, reason = invalid.reason, problem = %invalid, bytes = body.len(), "an event cannot be read");
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
