//! Write commands of a stream: carried out once, in order for each key, by one worker at a time.
//!
//! Exactly once in effect: a command's record is written in the transaction of its effect. In order: one worker leads, every
//! transaction checks that it still does, and the commands of one key wait in one queue, which is in one transaction at a
//! time. Fast: a transaction takes commands of many queues. A command blocked by a lock or conflict is retried, and only its
//! own queue waits with it.
//!
//! Whatever waits for a server is a task of its own: a transaction that nobody polls would keep its row locks. All tasks end
//! with the consumer.

pub mod command;
mod housekeeping;
mod transaction;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::backoff::Backoff;
use super::catalog::Dataset;
use super::context::Context;
use super::error::chain;
use super::log_limit;
use super::write::{PreparedWrite, WriteError, known_statement, statement_of};
use crate::stores::postgres::write::{CommandStream, WriteStatement};
use crate::stores::redis::{CacheError, StreamEntry, StreamReader};
use cachekeeper_protocol::queues::KeyQueues;
pub use command::CommandError;
use command::{Command, CommandOutcome, RETRY_DELAY_MAX, RETRY_DELAY_MIN, Waiting};
use housekeeping::keep_house;
use transaction::{BatchMode, Ending, Leadership, finish_surely, work_off};

/// The group in which workers read.
#[must_use]
pub fn group_of(namespace: &str) -> String {
    format!("cachekeeper:{namespace}")
}

/// All leaders are one consumer: there is one at a time.
const CONSUMER: &str = "writer";
/// Commands of one shared transaction.
const BATCH_MAX: usize = 64;
/// Shared transactions at the same time, each with a connection.
const SHARED_MAX: usize = 4;
/// Transactions of single commands that were blocked before.
const SINGLE_MAX: usize = 2;
/// So many batches use savepoints after one in which a command failed: failures come in groups.
const SAVEPOINT_BATCHES: usize = 16;
/// Commands that are held, and their bytes, so that memory is bounded; the others wait in the stream.
const HELD_MAX: usize = 1_024;
const HELD_BYTES: usize = 16 << 20;
/// How long a read waits for new entries.
const WAITS: Duration = Duration::from_millis(500);
/// When a leader ends because of a server, its transactions have so long to end too.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

/// Consumes the stream of write commands, as its leader.
pub struct CommandConsumer {
    context: Context,
    leadership: Leadership,
    queues: KeyQueues<Waiting, Instant>,
    /// Commands of datasets whose statement Postgres has not described yet, as they came.
    undescribed: HashMap<String, Vec<(StreamEntry, Command)>>,
    /// The reader, and from where it claims, while it does not read.
    resting: Option<(StreamReader, Option<String>)>,
    held: usize,
    held_bytes: usize,
    tasks: JoinSet<Event>,
    /// Transactions under way.
    shared: usize,
    single: usize,
    /// So many of the next batches get savepoints.
    with_savepoints: usize,
    /// While a server is down, until when nothing is tried.
    pause_until: Option<Instant>,
    pause: Backoff,
}

impl std::fmt::Debug for CommandConsumer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("CommandConsumer");
        shown.field("leadership", &self.leadership).field("held", &self.held).finish_non_exhaustive()
    }
}

/// What was read of the stream: the cursor of the next claim, if there is one, and the entries.
type Taken = (Option<String>, Vec<StreamEntry>);

/// How a task of the consumer ended.
enum Event {
    /// Entries, and the cursor of the next claim (none: nothing left to claim). No entries at all: somebody else leads.
    Read(Box<StreamReader>, Result<Option<Taken>, CacheError>),
    /// Postgres has described a dataset's statement, or refuses it.
    Described(Arc<Dataset>, Result<Arc<WriteStatement>, WriteError>),
    /// A transaction is over, and finished in Redis.
    Worked(Worked),
    /// Commands that cannot be carried out were finished in Redis: how many, and their bytes.
    Rejected(usize, usize),
}

struct Worked {
    is_single: bool,
    work: Vec<(String, Waiting)>,
    result: Result<Vec<Ending>, Box<CommandError>>,
}

impl CommandConsumer {
    /// Takes the stream over from whoever led before, and carries out what comes, until somebody else takes it over or a
    /// server breaks off. Then what is not finished is still in the stream, and the next leader, or this one, begins with
    /// it.
    pub async fn lead(context: &Context, stream: &str, on_ready: impl FnOnce()) -> Box<CommandError> {
        match Self::take_over(context, stream).await {
            Ok(mut consumer) => {
                on_ready();
                consumer.run().await
            }
            Err(error) => error,
        }
    }

    async fn take_over(context: &Context, stream: &str) -> Result<Self, Box<CommandError>> {
        let namespace = context.redis.keys().namespace().to_owned();
        let group = group_of(&namespace);
        // From the first on no earlier leader commits any more, from the second on none takes entries.
        let commands = CommandStream { namespace: &namespace, name: stream };
        let token = context.postgres.take_over_writes(commands).await?;
        let reader = context.redis.open_stream(stream, &group, CONSUMER, WAITS, Some(token)).await?;
        info!(stream, token, "this worker applies write commands");
        Ok(Self {
            context: context.clone(),
            leadership: Leadership { namespace, stream: stream.to_owned(), group, token },
            queues: KeyQueues::default(),
            undescribed: HashMap::new(),
            // What earlier leaders had comes first, so that the order stays.
            resting: Some((reader, Some("0-0".to_owned()))),
            held: 0,
            held_bytes: 0,
            tasks: JoinSet::new(),
            shared: 0,
            single: 0,
            with_savepoints: 0,
            pause_until: None,
            pause: Backoff::new(RETRY_DELAY_MIN, RETRY_DELAY_MAX),
        })
    }

    async fn run(&mut self) -> Box<CommandError> {
        let (context, leadership) = (self.context.clone(), self.leadership.clone());
        self.tasks.spawn(async move { match keep_house(&context, &leadership).await {} });
        loop {
            self.read_on();
            self.begin_work();
            // Where the single transactions are all under way, the end of one of them wakes this up.
            let retry = self.queues.next_retry().filter(|_| self.single < SINGLE_MAX);
            let wakes = self.pause_until.or(retry);
            let step = tokio::select! {
                Some(joined) = self.tasks.join_next() => self.on_joined(joined),
                () = async { match wakes { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                    self.pause_until = self.pause_until.filter(|until| Instant::now() < *until);
                    Ok(())
                }
            };
            if let Err(error) = step {
                if matches!(*error, CommandError::Flow(_)) {
                    self.drain().await;
                }
                return error;
            }
        }
    }

    fn on_joined(&mut self, joined: Result<Event, JoinError>) -> Result<(), Box<CommandError>> {
        match joined {
            Ok(Event::Read(reader, Ok(Some((claims, entries))))) => {
                self.resting = Some((*reader, claims));
                self.receive(entries);
                Ok(())
            }
            Ok(Event::Read(_, Ok(None))) => Err(Box::new(CommandError::NotLeader)),
            // Entries may have been taken and not have come: begin again with them.
            Ok(Event::Read(_, Err(error))) => Err(error.into()),
            Ok(Event::Described(dataset, statement)) => {
                self.on_described(&dataset, statement);
                Ok(())
            }
            Ok(Event::Worked(worked)) => self.on_worked(worked),
            Ok(Event::Rejected(count, bytes)) => {
                self.release(count, bytes);
                Ok(())
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends.
                Err(_cancelled) => Err(Box::new(CommandError::NotLeader)),
            },
        }
    }

    /// Reads on, as far as there is room.
    fn read_on(&mut self) {
        if HELD_MAX <= self.held || HELD_BYTES <= self.held_bytes {
            return;
        }
        if let Some((reader, claims)) = self.resting.take() {
            self.tasks.spawn(read(reader, claims, HELD_MAX - self.held));
        }
    }

    /// Puts entries into their queues. Those that cannot be read, or bound to a statement, are rejected at once.
    fn receive(&mut self, entries: Vec<StreamEntry>) {
        let mut rejected = Vec::new();
        for entry in entries {
            self.held += 1;
            self.held_bytes += entry.size();
            match Command::read(&self.context, &entry) {
                Ok(command) => rejected.extend(self.enqueue(entry, command)),
                Err(reason) => rejected.push((entry, CommandOutcome::rejected(reason))),
            }
        }
        self.reject(rejected);
    }

    /// Puts a command into its queue, or behind those that wait for the description of its statement, which decides about
    /// its queue. Answers it where it cannot be carried out.
    fn enqueue(&mut self, entry: StreamEntry, command: Command) -> Option<(StreamEntry, CommandOutcome)> {
        if let Some(waiting) = self.undescribed.get_mut(&command.dataset) {
            waiting.push((entry, command));
            return None;
        }
        let Some(dataset) = self.context.catalog.get(&command.dataset).cloned() else {
            let unknown = WriteError::Dataset(command.dataset);
            return Some((entry, CommandOutcome::rejected(unknown.to_string())));
        };
        let Some(statement) = known_statement(&dataset) else {
            self.undescribed.insert(command.dataset.clone(), vec![(entry, command)]);
            self.tasks.spawn(describe(self.context.clone(), dataset));
            return None;
        };
        match PreparedWrite::new(&dataset, statement, &command.parameters) {
            Ok(prepared) => {
                let queue = prepared.queue().to_owned();
                self.queues.push(&queue, Waiting { entry, command, prepared, tries: 0 });
                None
            }
            Err(refused) => Some((entry, CommandOutcome::rejected(refused.to_string()))),
        }
    }

    fn on_described(&mut self, dataset: &Dataset, statement: Result<Arc<WriteStatement>, WriteError>) {
        let waiting = self.undescribed.remove(dataset.name()).unwrap_or_default();
        let mut rejected = Vec::new();
        for (entry, command) in waiting {
            match &statement {
                Ok(_) => rejected.extend(self.enqueue(entry, command)),
                Err(refused) => rejected.push((entry, CommandOutcome::rejected(refused.to_string()))),
            }
        }
        self.reject(rejected);
    }

    fn reject(&mut self, rejected: Vec<(StreamEntry, CommandOutcome)>) {
        if rejected.is_empty() {
            return;
        }
        let (context, leadership) = (self.context.clone(), self.leadership.clone());
        let bytes = rejected.iter().map(|(entry, _)| entry.size()).sum();
        self.tasks.spawn(async move {
            finish_surely(&context, &leadership, &rejected, None).await;
            Event::Rejected(rejected.len(), bytes)
        });
    }

    /// Begins as much as may run at the same time.
    fn begin_work(&mut self) {
        if self.pause_until.is_some() {
            return;
        }
        let now = Instant::now();
        while self.single < SINGLE_MAX
            && let Some(one) = self.queues.take_blocked(now)
        {
            self.single += 1;
            self.begin(vec![one], BatchMode::Single);
        }
        while self.shared < SHARED_MAX {
            let work = self.queues.take(BATCH_MAX);
            if work.is_empty() {
                break;
            }
            self.shared += 1;
            let mode = if self.with_savepoints == 0 { BatchMode::Shared } else { BatchMode::Savepoints };
            self.with_savepoints = self.with_savepoints.saturating_sub(1);
            self.begin(work, mode);
        }
        let blocked = i64::try_from(self.queues.blocked() + self.single).unwrap_or(i64::MAX);
        self.context.metrics.commands_held_up.set(blocked);
    }

    fn begin(&mut self, mut work: Vec<(String, Waiting)>, mode: BatchMode) {
        // As they came, also across queues, as far as one transaction reaches.
        work.sort_by_key(|(_, waiting)| waiting.entry.position());
        let (context, leadership) = (self.context.clone(), self.leadership.clone());
        self.tasks.spawn(async move {
            let result = work_off(&context, &leadership, &work, mode).await;
            Event::Worked(Worked { is_single: mode == BatchMode::Single, work, result })
        });
    }

    /// A transaction is over: what is not done goes back to the front of its queue.
    fn on_worked(&mut self, worked: Worked) -> Result<(), Box<CommandError>> {
        if worked.is_single {
            self.single -= 1;
        } else {
            self.shared -= 1;
        }
        let endings = self.endings_of(worked.result, worked.is_single, worked.work.len())?;
        let now = Instant::now();
        let mut queues: HashMap<String, (Vec<Waiting>, Option<Instant>)> = HashMap::new();
        for ((queue, mut waiting), ending) in worked.work.into_iter().zip(endings) {
            let (undone, until) = queues.entry(queue).or_default();
            match ending {
                Ending::Done(_) => {
                    self.release(1, waiting.entry.size());
                    continue;
                }
                Ending::Retry { reason, weight } => {
                    waiting.tries += weight;
                    let what = "write commands are blocked, they are retried";
                    if waiting.tries.is_power_of_two()
                        && let Some(count) = log_limit::due(what, "", 1)
                    {
                        info!(id = %waiting.command.id, tries = waiting.tries, reason, count, "{what}");
                    }
                    let delay = RETRY_DELAY_MIN * (1 << waiting.tries.min(6));
                    *until = Some(now + delay.min(RETRY_DELAY_MAX));
                }
                // One that goes alone because it failed before goes alone again.
                Ending::Behind if worked.is_single => *until = Some(now),
                Ending::Behind => {}
            }
            undone.push(waiting);
        }
        for (queue, (undone, until)) in queues {
            self.queues.give_back(&queue, undone, until);
        }
        Ok(())
    }

    /// What a transaction made of its commands; nothing of any of them, where a server broke off.
    fn endings_of(
        &mut self,
        result: Result<Vec<Ending>, Box<CommandError>>,
        is_single: bool,
        commands: usize,
    ) -> Result<Vec<Ending>, Box<CommandError>> {
        match result {
            Ok(endings) => {
                self.pause.reset();
                let is_smooth =
                    |ending: &Ending| matches!(ending, Ending::Done(outcome) if outcome.error.is_none());
                if !is_single && !endings.iter().all(is_smooth) {
                    self.with_savepoints = SAVEPOINT_BATCHES;
                }
                Ok(endings)
            }
            Err(error) if matches!(*error, CommandError::NotLeader) => Err(error),
            Err(error) => {
                if self.pause_until.is_none() {
                    let what = "write commands wait, they are carried out later";
                    if let Some(attempts) = log_limit::due(what, "", 1) {
                        warn!(error = %chain(&*error), attempts, "{what}");
                    }
                    self.pause_until = Some(Instant::now() + self.pause.pause());
                }
                Ok((0..commands).map(|_| Ending::Behind).collect())
            }
        }
    }

    fn release(&mut self, commands: usize, bytes: usize) {
        self.held -= commands;
        self.held_bytes -= bytes;
    }

    /// Lets transactions that are under way end. Given up, they would go on waiting for locks in the server, and so would
    /// the next leader for them.
    async fn drain(&mut self) {
        let deadline = Instant::now() + DRAIN_WITHIN;
        while 0 < self.shared + self.single {
            match timeout_at(deadline, self.tasks.join_next()).await {
                Ok(Some(Ok(Event::Worked(worked)))) if worked.is_single => self.single -= 1,
                Ok(Some(Ok(Event::Worked(_)))) => self.shared -= 1,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// The next entries: claimed from a cursor on, or new ones.
async fn read(mut reader: StreamReader, claims: Option<String>, most: usize) -> Event {
    let entries = match claims {
        Some(cursor) => {
            let claimed = reader.claim(Duration::ZERO, &cursor, most).await;
            claimed.map(|claimed| claimed.map(|(next, entries)| ((next != "0-0").then_some(next), entries)))
        }
        None => reader.read(most, WAITS).await.map(|read| read.map(|entries| (None, entries))),
    };
    Event::Read(Box::new(reader), entries)
}

/// Has a dataset's statement described. While somebody holds its table, the commands of other datasets go on.
async fn describe(context: Context, dataset: Arc<Dataset>) -> Event {
    let (mut backoff, mut tries) = (Backoff::new(RETRY_DELAY_MIN, RETRY_DELAY_MAX), 0_u32);
    loop {
        let error = match statement_of(&context, &dataset).await {
            Err(WriteError::Unavailable(error) | WriteError::Unknown(error)) => error,
            described => return Event::Described(dataset, described),
        };
        tries += 1;
        if tries.is_power_of_two() {
            warn!(dataset = dataset.name(), tries, error = %chain(&error), "write commands of a dataset wait for its tables");
        }
        backoff.wait().await;
    }
}
