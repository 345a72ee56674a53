//! Applies the events of the durable stream: those too that were published while no worker ran.
//!
//! Every worker takes some of them, in one group; an event is removed when it was applied, and taken over from a worker that
//! has had it for too long.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::commands::group_of;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::metrics::ByReason;
use cachekeeper_engine::stores::redis::{Finished, StreamEntry, StreamReader};
use cachekeeper_engine::{events, log_limit};
use cachekeeper_protocol::event::{Event, InvalidEvent};

/// Events applied together.
const AT_ONCE: usize = 256;
const WAITS: Duration = Duration::from_secs(1);
/// A worker that has had an event for so long is taken for dead; applying it twice is harmless.
const TAKEN_FOR_DEAD: Duration = Duration::from_secs(30);
/// A consumer that has nothing and was not seen for so long is removed from the group.
const REMOVED_AFTER: Duration = Duration::from_secs(3600);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What readiness calls the stream.
const STREAM: &str = "events";

/// Consumes the stream of events.
#[derive(Debug)]
pub struct DurableEventConsumer;

impl Task for DurableEventConsumer {
    const NAME: &'static str = "durable_event_consumer";

    fn is_wanted(context: &TaskContext) -> bool {
        context.config.invalidation.stream.is_some()
    }

    async fn run(context: TaskContext, _wake: Wake) {
        let Some(stream) = context.config.invalidation.stream.as_deref() else { return };
        let group = group_of(context.engine.redis.keys().namespace());
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let opened = context.engine.redis.open_stream(stream, &group, &context.owner, WAITS, None).await;
            let (error, reader) = match opened {
                Ok(reader) => {
                    let mut consumer = Consumer { context: &context, stream, group: &group, reader };
                    match consumer.consume(&mut retry).await {
                        Ok(never) => match never {},
                        Err(error) => (error, Some(consumer)),
                    }
                }
                Err(error) => (error.into(), None),
            };
            let text = error.told();
            let what = "events of the stream wait, they are applied later";
            if let Some(attempts) = log_limit::due(what, "", 1) {
                warn!(error = text, attempts, "{what}");
            }
            context.health.note_stream(STREAM, Err(text));
            let until = Instant::now() + retry.pause();
            let pause = async {
                if let Some(mut consumer) = reader {
                    consumer.delete_early(until).await;
                }
                tokio::time::sleep_until(until).await;
            };
            tokio::select! {
                () = pause => {}
                () = context.engine.redis.connected_again() => {}
            }
        }
    }
}

struct Consumer<'a> {
    context: &'a TaskContext,
    stream: &'a str,
    group: &'a str,
    reader: StreamReader,
}

impl Consumer<'_> {
    async fn consume(&mut self, retry: &mut Backoff) -> Result<Infallible, EngineError> {
        // What was left before an error first; what another worker has just taken too, which is harmless.
        self.claim(Duration::ZERO).await?;
        let (mut claimed, mut oldest) = (Instant::now(), None);
        loop {
            let entries = self.reader.read(AT_ONCE, WAITS).await?.unwrap_or_default();
            self.apply(entries).await?;
            self.context.health.note_stream(STREAM, Ok(()));
            retry.reset();
            if TAKEN_FOR_DEAD <= claimed.elapsed() {
                // How long somebody has had an entry Redis tells by its clock. Where that was set back, it tells of no entry of
                // before; but one that was the oldest at two looks has been had for as long as the time between them.
                let taken = self.reader.oldest_taken().await?;
                let is_left = taken.is_some() && taken == oldest;
                self.claim(if is_left { Duration::ZERO } else { TAKEN_FOR_DEAD }).await?;
                oldest = taken;
                self.reader.forget_consumers(REMOVED_AFTER).await?;
                claimed = Instant::now();
            }
        }
    }

    /// Events that come while none can be applied, because Postgres is down: their keys are deleted at once. They stay in
    /// the stream.
    async fn delete_early(&mut self, until: Instant) {
        while Instant::now() < until {
            let Ok(Some(entries)) = self.reader.read(AT_ONCE, RETRY_MIN).await else { return };
            let events: Vec<Event> = entries.iter().filter_map(|entry| read_event(entry).ok()).collect();
            events::delete_named(&self.context.engine, &events).await;
        }
    }

    async fn claim(&mut self, idle: Duration) -> Result<(), EngineError> {
        let mut cursor = "0-0".to_owned();
        loop {
            let claimed = self.reader.claim(idle, &cursor, AT_ONCE).await?;
            let Some((next, entries)) = claimed else { return Ok(()) };
            let what = "events left by another worker are applied";
            if !entries.is_empty()
                && let Some(events) = log_limit::due(what, "", entries.len() as u64)
            {
                info!(events, "{what}");
            }
            self.apply(entries).await?;
            if next == "0-0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn apply(&self, entries: Vec<StreamEntry>) -> Result<(), EngineError> {
        if entries.is_empty() {
            return Ok(());
        }
        let engine = &self.context.engine;
        let mut batch: Vec<Event> = Vec::with_capacity(entries.len());
        let mut invalid: Vec<(&str, InvalidEvent)> = Vec::new();
        for entry in &entries {
            match read_event(entry) {
                Ok(event) if self.context.seen.is_new(&event) => batch.push(event),
                Ok(_applied_already) => {}
                Err(problem) => invalid.push((&entry.id, problem)),
            }
        }
        if !batch.is_empty() {
            let datasets = events::apply(engine, events::STREAM, &batch).await?;
            self.context.note_applied(events::STREAM, &batch, &datasets);
        }
        // Counted once, however often the batch is tried.
        for (entry, problem) in invalid {
            engine.metrics.events_invalid.get_or_create(&ByReason::new(problem.reason())).inc();
            let what = "events of the stream cannot be read";
            if let Some(count) = log_limit::due(what, problem.reason(), 1) {
                warn!(entry, %problem, count, "{what}");
            }
        }
        let finished: Vec<Finished> =
            entries.into_iter().map(|entry| Finished { id: entry.id, ..Finished::default() }).collect();
        engine.redis.finish_entries(self.stream, self.group, &finished).await?;
        Ok(())
    }
}

fn read_event(entry: &StreamEntry) -> Result<Event, InvalidEvent> {
    if entry.is_too_large() {
        return Err(InvalidEvent::TooLarge { bytes: entry.size() });
    }
    Event::from_fields(entry.fields.iter().map(|(name, value)| (name, value.as_slice())))
}
