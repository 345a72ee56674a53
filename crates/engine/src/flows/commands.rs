//! Write commands of a stream: carried out once, in order for each key, by one worker at a time (DESIGN 3.1).
//!
//! Exactly once in effect: a command's record is written in the transaction of its effect. In order: one worker leads, every
//! transaction checks that it still does, and the commands of one key wait in one queue, which is in one transaction at a
//! time. Fast: a transaction takes commands of many queues. A command that others are in the way of waits, and only its own
//! queue with it.

pub mod command;
mod transaction;

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use tracing::{info, warn};

use super::context::Context;
use super::error::{EngineError, chain};
use super::failpoint;
use super::write::{CacheState, Prepared, WriteError, settle};
use crate::metrics::ByReason;
use crate::stores::redis::{CacheError, Finished, StreamEntry, StreamReader};
use cachekeeper_protocol::queues::Queues;
use command::{Command, Outcome};
use transaction::{Care, Ending, Right, carry_out, reject};

/// The group in which workers read.
#[must_use]
pub fn group_of(namespace: &str) -> String {
    format!("cachekeeper:{namespace}")
}

/// A command that waits for its turn.
#[derive(Debug)]
struct Waiting {
    entry: StreamEntry,
    command: Command,
    prepared: Prepared,
    tries: u32,
}

/// Why a leader ends.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Another worker has taken over.
    #[error("another worker applies write commands now")]
    Displaced,
    /// A server was not reached; what is not finished comes again.
    #[error(transparent)]
    Flow(#[from] EngineError),
}

impl<E: Into<EngineError>> From<E> for Box<CommandError> {
    fn from(error: E) -> Self {
        Box::new(CommandError::Flow(error.into()))
    }
}

/// All leaders are one consumer: there is one at a time.
const CONSUMER: &str = "writer";
/// Commands of one transaction.
const GROUP: usize = 64;
/// Transactions of groups at the same time, each with a connection.
const GROUPS: usize = 4;
/// Groups that are taken with care after one in which a command failed.
const CAREFUL: usize = 16;
/// Transactions of single commands that failed before.
const ALONE: usize = 2;
/// Commands that are held, and their bytes, so that memory is bounded; the others wait in the stream.
const HELD_MAX: usize = 1_024;
const HELD_BYTES: usize = 16 << 20;
/// How long a read waits for new entries.
const WAITS: Duration = Duration::from_millis(500);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// After so many attempts a command is given up, so that it does not hold up its queue for ever.
const TRIES_MAX: u32 = 100;
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// The leader's hand on the stream.
pub struct Commands {
    context: Context,
    right: Right,
    group: String,
    queues: Queues<Waiting, Instant>,
    held: usize,
    held_bytes: usize,
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    groups: usize,
    alone: usize,
    /// Groups that are taken with care, because one of the last ones had a command that failed.
    careful: usize,
    /// While a server is down, until when nothing is tried.
    pause_until: Option<Instant>,
    pause: Duration,
}

impl std::fmt::Debug for Commands {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Commands").field("right", &self.right).field("held", &self.held).finish()
    }
}

/// A transaction that is over, and finished in Redis.
struct Ended {
    is_alone: bool,
    work: Vec<(String, Waiting)>,
    result: Result<Vec<Ending>, Box<CommandError>>,
}

/// What a read brings: the reader back, and entries with the cursor of the next claim (none: nothing left to claim).
type Read = (StreamReader, Result<Option<(Option<String>, Vec<StreamEntry>)>, CacheError>);

impl Commands {
    /// Takes the stream over from whoever led before, and carries out what comes, until somebody else takes it over or a
    /// server breaks off. Then what is not finished is still in the stream, and the next leader, or this one, begins with
    /// it.
    pub async fn lead(context: &Context, stream: &str, on_ready: impl FnOnce()) -> Box<CommandError> {
        match Self::take_over(context, stream).await {
            Ok((mut commands, reader)) => {
                on_ready();
                commands.run(reader).await
            }
            Err(error) => error,
        }
    }

    async fn take_over(context: &Context, stream: &str) -> Result<(Self, StreamReader), Box<CommandError>> {
        let group = group_of(context.redis.keys().namespace());
        // From the first on no earlier leader commits any more, from the second on none takes entries.
        let token = context.postgres.take_over_writes(stream).await?;
        let reader = context.redis.open_stream(stream, &group, CONSUMER, WAITS, Some(token)).await?;
        info!(stream, token, "this worker applies write commands");
        let commands = Self {
            context: context.clone(),
            right: Right { stream: stream.to_owned(), token },
            group,
            queues: Queues::default(),
            held: 0,
            held_bytes: 0,
            running: FuturesUnordered::new(),
            groups: 0,
            alone: 0,
            careful: 0,
            pause_until: None,
            pause: RETRY_DELAY_MIN,
        };
        Ok((commands, reader))
    }

    async fn run(&mut self, reader: StreamReader) -> Box<CommandError> {
        // What earlier leaders had comes first, so that the order stays.
        let mut reading = Some(read(reader, Some("0-0".to_owned()), HELD_MAX));
        let mut resting: Option<(StreamReader, Option<String>)> = None;
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if reading.is_none() && self.held < HELD_MAX && self.held_bytes < HELD_BYTES {
                reading = resting.take().map(|(reader, claims)| read(reader, claims, HELD_MAX - self.held));
            }
            self.begin_work();
            // Where no hand is free for one that is parked, the end of another one wakes this up.
            let parked = self.queues.next_parked().filter(|_| self.alone < ALONE);
            let wakes = self.pause_until.or(parked);
            let step = tokio::select! {
                (reader, entries) = async { match &mut reading { Some(read) => read.await, None => std::future::pending().await } } => {
                    reading = None;
                    match entries {
                        Ok(Some((claims, entries))) => {
                            resting = Some((reader, claims));
                            self.receive(entries).await
                        }
                        Ok(None) => Err(Box::new(CommandError::Displaced)),
                        // Entries may have been taken and not have come: begin again with them.
                        Err(error) => Err(error.into()),
                    }
                }
                Some(ended) = self.running.next() => self.end_work(ended),
                () = async { match wakes { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                    self.pause_until = self.pause_until.filter(|until| Instant::now() < *until);
                    Ok(())
                }
                _ = tidy.tick() => self.tidy().await,
            };
            if let Err(error) = step {
                return error;
            }
        }
    }

    /// Puts entries into their queues. Those that cannot be read, or bound to a statement, are rejected at once.
    async fn receive(&mut self, entries: Vec<StreamEntry>) -> Result<(), Box<CommandError>> {
        let mut rejected = Vec::new();
        for entry in entries {
            let command = match Command::read(&self.context, &self.right.stream, &entry) {
                Ok(command) => command,
                Err(reason) => {
                    rejected.push((entry, Outcome::rejected(reason)));
                    continue;
                }
            };
            match Prepared::new(&self.context, &command.dataset, &command.parameters).await {
                Ok(prepared) => {
                    self.held += 1;
                    self.held_bytes += entry.size();
                    let queue = prepared.queue().to_owned();
                    self.queues.push(&queue, Waiting { entry, command, prepared, tries: 0 });
                }
                Err(WriteError::Unavailable(error) | WriteError::Unknown(error)) => return Err(error.into()),
                Err(refused) => rejected.push((entry, Outcome::rejected(refused.to_string()))),
            }
        }
        if rejected.is_empty() {
            return Ok(());
        }
        Ok(finish(&self.context, &self.right.stream, &self.group, rejected, None, CacheState::Stored).await?)
    }

    /// Begins as much as may run at the same time.
    fn begin_work(&mut self) {
        if self.pause_until.is_some() {
            return;
        }
        let now = Instant::now();
        while self.alone < ALONE
            && let Some(one) = self.queues.take_parked(now)
        {
            self.alone += 1;
            self.begin(vec![one], Care::Alone);
        }
        while self.groups < GROUPS {
            let work = self.queues.take(GROUP);
            if work.is_empty() {
                break;
            }
            self.groups += 1;
            let care = if self.careful == 0 { Care::Together } else { Care::Each };
            self.careful = self.careful.saturating_sub(1);
            self.begin(work, care);
        }
        let held_up = i64::try_from(self.queues.parked() + self.alone).unwrap_or(i64::MAX);
        self.context.metrics.commands_held_up.set(held_up);
    }

    fn begin(&mut self, mut work: Vec<(String, Waiting)>, care: Care) {
        // As they came, also across queues, as far as one transaction reaches.
        work.sort_by_key(|(_, waiting)| waiting.entry.position());
        let (context, right, group) = (self.context.clone(), self.right.clone(), self.group.clone());
        self.running.push(Box::pin(async move {
            let result = work_off(&context, &right, &group, &work, care).await;
            Ended { is_alone: care == Care::Alone, work, result }
        }));
    }

    /// A transaction is over: what is not done goes back to the front of its queue.
    fn end_work(&mut self, ended: Ended) -> Result<(), Box<CommandError>> {
        if ended.is_alone {
            self.alone -= 1;
        } else {
            self.groups -= 1;
        }
        let now = Instant::now();
        let endings = match ended.result {
            Ok(endings) => {
                self.pause = RETRY_DELAY_MIN;
                let is_smooth =
                    |ending: &Ending| matches!(ending, Ending::Done(outcome) if outcome.error.is_none());
                if !ended.is_alone && !endings.iter().all(is_smooth) {
                    self.careful = CAREFUL;
                }
                endings
            }
            Err(error) if matches!(*error, CommandError::Displaced) => return Err(error),
            Err(error) => {
                if self.pause_until.is_none() {
                    warn!(error = %chain(&*error), "write commands wait, they are carried out later");
                    self.pause_until = Some(now + self.pause);
                    self.pause = (self.pause * 2).min(RETRY_DELAY_MAX);
                }
                ended.work.iter().map(|_| Ending::Behind).collect()
            }
        };
        let mut queues: HashMap<String, (Vec<Waiting>, Option<Instant>)> = HashMap::new();
        for ((queue, mut waiting), ending) in ended.work.into_iter().zip(endings) {
            let (undone, until) = queues.entry(queue).or_default();
            match ending {
                Ending::Done(_) => {
                    self.held -= 1;
                    self.held_bytes -= waiting.entry.size();
                    continue;
                }
                Ending::Later { reason, weight } => {
                    waiting.tries += weight;
                    if waiting.tries.is_power_of_two() {
                        info!(id = %waiting.command.id, tries = waiting.tries, reason, "a write command waits for others");
                    }
                    let delay = RETRY_DELAY_MIN * (1 << waiting.tries.min(6));
                    *until = Some(now + delay.min(RETRY_DELAY_MAX));
                }
                Ending::Behind => {
                    // One that goes alone because it failed before goes alone again.
                    if ended.is_alone {
                        *until = Some(now);
                    }
                }
            }
            undone.push(waiting);
        }
        for (queue, (undone, until)) in queues {
            self.queues.give_back(&queue, undone, until);
        }
        Ok(())
    }

    /// Drops records that no command can need any more; notes how long the stream is.
    async fn tidy(&mut self) -> Result<(), Box<CommandError>> {
        let state = self.context.redis.stream_state(&self.right.stream, &self.group).await?;
        self.context.metrics.commands_waiting.set(i64::try_from(state.length).unwrap_or(i64::MAX));
        let oldest = state.oldest_position().map(|(ms, _)| ms);
        let retention = self.context.feed.retention;
        self.context.postgres.prune_applied(&self.right.stream, oldest, retention).await?;
        Ok(())
    }
}

/// The next entries: claimed from a cursor on, or new ones.
fn read(mut reader: StreamReader, claims: Option<String>, most: usize) -> BoxFuture<'static, Read> {
    Box::pin(async move {
        let entries = match claims {
            Some(cursor) => {
                let claimed = reader.claim(Duration::ZERO, &cursor, most).await;
                claimed
                    .map(|claimed| claimed.map(|(next, entries)| ((next != "0-0").then_some(next), entries)))
            }
            None => reader.read(most, WAITS).await.map(|read| read.map(|entries| (None, entries))),
        };
        (reader, entries)
    })
}

/// Carries commands out, stores what they touched, and finishes them in Redis.
async fn work_off(
    context: &Context,
    right: &Right,
    group: &str,
    work: &[(String, Waiting)],
    mut care: Care,
) -> Result<Vec<Ending>, Box<CommandError>> {
    let (mut endings, touched) = loop {
        match carry_out(context, right, work, care).await? {
            Some(done) => break done,
            None => care = Care::Each,
        }
    };
    failpoint::reach("write.applied");
    for (ending, (_, waiting)) in endings.iter_mut().zip(work) {
        if let Ending::Later { reason, weight } = ending
            && TRIES_MAX <= waiting.tries + *weight
        {
            let reason = format!("given up after many attempts: {reason}");
            *ending = Ending::Done(reject(context, right, waiting, reason).await?);
        }
    }
    let written = if touched.is_empty() { None } else { Some(settle(context, touched).await) };
    failpoint::reach("write.loaded");
    let cache = written.as_ref().map_or(CacheState::Stored, |written| written.cache);
    let token = written.and_then(|written| written.token).map(|token| token.to_string());
    let done = endings.iter().zip(work).filter_map(|(ending, (_, waiting))| match ending {
        Ending::Done(outcome) => Some((waiting.entry.clone(), outcome.clone())),
        Ending::Later { .. } | Ending::Behind => None,
    });
    let done: Vec<(StreamEntry, Outcome)> = done.collect();
    // They are committed: until Redis has heard of it, nothing else is done with these keys.
    let mut delay = RETRY_DELAY_MIN;
    while let Err(error) = finish(context, &right.stream, group, done.clone(), token.as_deref(), cache).await
    {
        warn!(error = %chain(&error), commands = done.len(), "applied write commands are not finished yet");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
    failpoint::reach("write.finished");
    Ok(endings)
}

/// Acknowledges, replies, and keeps apart what was rejected.
async fn finish(
    context: &Context,
    stream: &str,
    group: &str,
    done: Vec<(StreamEntry, Outcome)>,
    token: Option<&str>,
    cache: CacheState,
) -> Result<(), CacheError> {
    if done.is_empty() {
        return Ok(());
    }
    let labels: Vec<&str> = done.iter().map(|(_, outcome)| outcome.label()).collect();
    let finished: Vec<Finished> =
        done.into_iter().map(|(entry, outcome)| outcome.finish(&entry, token, cache)).collect();
    let undelivered = context.redis.finish_entries(stream, group, &finished).await?;
    for label in labels {
        context.metrics.commands.get_or_create(&ByReason::new(label)).inc();
    }
    for one in finished.iter().filter(|one| one.rejected.is_some()) {
        warn!(entry = %one.id, reason = one.rejected.as_deref(), "a write command was rejected");
    }
    for entry in undelivered {
        warn!(%entry, "a reply could not be delivered: its list holds another type");
    }
    Ok(())
}
