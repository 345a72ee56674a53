//! Obeys the events of the durable stream: those too that were published while no worker ran.
//!
//! Every worker takes some of them, in one group; an event is removed when it was obeyed, and taken over from a worker
//! that has had it for too long. If the actor dies, others, or its successor, take over.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tracing::{info, warn};

use super::address::AddressBook;
use super::clock::now_ms;
use super::epoch_keeper::EpochKeeperMessage;
use super::health::Health;
use super::seen::Seen;
use super::task::Task;
use super::warmer::WarmerMessage;
use cachekeeper_engine::flows::commands::group_of;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::flows::events;
use cachekeeper_engine::metrics::{ByReason, BySource};
use cachekeeper_engine::stores::redis::{Finished, StreamEntry, StreamReader};
use cachekeeper_protocol::event::{Event, InvalidEvent};

/// Events obeyed together.
const AT_ONCE: usize = 256;
const WAITS: Duration = Duration::from_secs(1);
/// A worker that has had an event for so long is taken for dead; obeying twice is harmless.
const TAKEN_FOR_DEAD: Duration = Duration::from_secs(30);
/// A consumer that has nothing and was not seen for so long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct EventLogArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Where facts go.
    pub health: Health,
    /// What was obeyed, by either way.
    pub seen: Seen,
    /// The stream; none: nothing is done.
    pub stream: Option<String>,
    /// This process.
    pub owner: String,
}

/// Messages.
#[derive(Debug)]
pub enum EventLogMessage {
    /// The loop has ended, which it never should: it panicked.
    Ended,
}

/// The actor.
#[derive(Debug)]
pub struct EventLog;

impl Actor for EventLog {
    type Msg = EventLogMessage;
    type State = Option<Task>;
    type Arguments = EventLogArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<EventLogMessage>,
        arguments: EventLogArguments,
    ) -> Result<Option<Task>, ActorProcessingErr> {
        let Some(stream) = arguments.stream.clone() else { return Ok(None) };
        let work = run(arguments, stream);
        Ok(Some(Task::spawn(&myself, work, |_ended: Option<()>| EventLogMessage::Ended)))
    }

    async fn handle(
        &self,
        _myself: ActorRef<EventLogMessage>,
        message: EventLogMessage,
        _task: &mut Option<Task>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            EventLogMessage::Ended => Err("the event log's loop has ended".into()),
        }
    }
}

async fn run(arguments: EventLogArguments, stream: String) {
    let group = group_of(arguments.context.redis.keys().namespace());
    let mut delay = RETRY_DELAY_MIN;
    loop {
        let opened =
            arguments.context.redis.open_stream(&stream, &group, &arguments.owner, WAITS, None).await;
        let error = match opened {
            Ok(reader) => {
                let mut log = Log { arguments: &arguments, stream: &stream, group: &group, reader };
                let error = match log.follow(&mut delay).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                };
                log.delete_what_waits(Instant::now() + delay).await;
                error
            }
            Err(error) => error.into(),
        };
        let text = chain(&error);
        warn!(error = text, "events of the stream wait, they are obeyed later");
        arguments.health.note_stream("events", Err(text));
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}

struct Log<'a> {
    arguments: &'a EventLogArguments,
    stream: &'a str,
    group: &'a str,
    reader: StreamReader,
}

impl Log<'_> {
    async fn follow(&mut self, delay: &mut Duration) -> Result<std::convert::Infallible, FlowError> {
        // What was left before an error first; what another worker has just taken too, which is harmless.
        self.claim(Duration::ZERO).await?;
        let mut claimed = Instant::now();
        loop {
            let entries = self.reader.read(AT_ONCE, WAITS).await?.unwrap_or_default();
            self.obey(entries).await?;
            self.arguments.health.note_stream("events", Ok(()));
            *delay = RETRY_DELAY_MIN;
            if TAKEN_FOR_DEAD <= claimed.elapsed() {
                self.claim(TAKEN_FOR_DEAD).await?;
                self.reader.forget_consumers(FORGOTTEN_AFTER).await?;
                claimed = Instant::now();
            }
        }
    }

    /// Events that come while none can be obeyed, because Postgres is down: their keys go at once. They stay in the stream.
    async fn delete_what_waits(&mut self, until: Instant) {
        while Instant::now() < until {
            let Ok(Some(entries)) = self.reader.read(AT_ONCE, RETRY_DELAY_MIN).await else { return };
            let events: Vec<Event> = entries.iter().filter_map(|entry| read_event(entry).ok()).collect();
            events::delete_named(&self.arguments.context, &events).await;
        }
    }

    async fn claim(&mut self, idle: Duration) -> Result<(), FlowError> {
        let mut cursor = "0-0".to_owned();
        loop {
            let claimed = self.reader.claim(idle, &cursor, AT_ONCE).await?;
            let Some((next, entries)) = claimed else { return Ok(()) };
            if !entries.is_empty() {
                info!(events = entries.len(), "events that a worker had left are obeyed");
            }
            self.obey(entries).await?;
            if next == "0-0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn obey(&self, entries: Vec<StreamEntry>) -> Result<(), FlowError> {
        if entries.is_empty() {
            return Ok(());
        }
        let context = &self.arguments.context;
        let mut batch: Vec<Event> = Vec::with_capacity(entries.len());
        for entry in &entries {
            match read_event(entry) {
                Ok(event) if self.arguments.seen.is_new(&event) => batch.push(event),
                Ok(_obeyed_already) => {}
                Err(invalid) => {
                    context.metrics.events_invalid.get_or_create(&ByReason::new(invalid.reason())).inc();
                    warn!(entry = %entry.id, problem = %invalid, "an event of the stream cannot be read");
                }
            }
        }
        if !batch.is_empty() {
            let datasets = events::obey(context, events::STREAM, &batch).await?;
            for event in &batch {
                self.arguments.seen.remember(event);
                if let Some(at) = event.at_ms {
                    #[expect(clippy::cast_precision_loss, reason = "seconds for a histogram")]
                    let lag = now_ms().saturating_sub(at) as f64 / 1000.0;
                    let lags = &context.metrics.event_lag_seconds;
                    lags.get_or_create(&BySource::new(events::STREAM)).observe(lag);
                }
            }
            if !datasets.is_empty() {
                self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
            }
            for dataset in datasets {
                self.arguments.peers.warmer.hint(WarmerMessage::PassWanted { dataset, since_ms: None });
            }
        }
        let finished: Vec<Finished> =
            entries.into_iter().map(|entry| Finished { id: entry.id, ..Finished::default() }).collect();
        context.redis.finish_entries(self.stream, self.group, &finished).await?;
        Ok(())
    }
}

fn read_event(entry: &StreamEntry) -> Result<Event, InvalidEvent> {
    Event::from_fields(entry.fields.iter().map(|(name, value)| (name, value.as_slice())))
}
