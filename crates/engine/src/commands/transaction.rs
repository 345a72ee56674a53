//! One transaction: commands of several queues and their records; then Redis is told of them.

use std::collections::{HashMap, HashSet};

use tracing::warn;

use super::command::{CommandError, CommandOutcome, RETRY_DELAY_MAX, RETRY_DELAY_MIN, TRIES_MAX, Waiting};
use crate::backoff::Backoff;
use crate::context::Context;
use crate::error::chain;
use crate::failpoint;
use crate::log_limit;
use crate::metrics::ByReason;
use crate::stores::postgres::records::{IdempotencyRecord, add_records, records_of};
use crate::stores::postgres::write::{CommandStream, is_leader, keep_last, undo_last};
use crate::stores::postgres::{Blame, Session, SourceError};
use crate::stores::redis::{CacheError, Finished, StreamEntry};
use crate::write::{CacheState, WriteEffects, WriteError, Written, settle};

/// A statement that takes too long takes its time again with every attempt: five are enough.
const SLOW_WEIGHT: u32 = TRIES_MAX / 5;

/// The right to carry out the commands of a stream.
#[derive(Debug, Clone)]
pub(super) struct Leadership {
    pub namespace: String,
    pub stream: String,
    /// The consumer group of the stream.
    pub group: String,
    /// Grows with each leader.
    pub token: i64,
}

impl Leadership {
    /// The stream as the records have it.
    pub fn commands(&self) -> CommandStream<'_> {
        CommandStream { namespace: &self.namespace, name: &self.stream }
    }
}

/// What became of a command in a transaction.
#[derive(Debug)]
pub(super) enum Ending {
    /// It is carried out, or rejected for good.
    Done(CommandOutcome),
    /// It is blocked by a lock or conflict.
    Retry {
        reason: String,
        /// How many attempts this one counts for.
        weight: u32,
    },
    /// One before it in its queue is to be retried.
    Behind,
}

/// How the commands of a transaction depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchMode {
    /// All or none: the fastest, as long as none fails.
    Shared,
    /// Each behind a savepoint, so that one that fails is rolled back alone.
    Savepoints,
    /// A single one, which may wait longer for locks.
    Single,
}

/// Carries commands out, stores in Redis what they changed, and finishes them there. An error: nothing is known of any of
/// them.
pub(super) async fn work_off(
    context: &Context,
    leadership: &Leadership,
    work: &[(String, Waiting)],
    mut mode: BatchMode,
) -> Result<Vec<Ending>, Box<CommandError>> {
    let (mut endings, effects) = loop {
        match carry_out(context, leadership, work, mode).await? {
            Some(done) => break done,
            None => mode = BatchMode::Savepoints,
        }
    };
    failpoint::reach("write.applied");
    for (ending, (_, waiting)) in endings.iter_mut().zip(work) {
        if let Ending::Retry { reason, weight } = ending
            && TRIES_MAX <= waiting.tries + *weight
        {
            let reason = format!("given up after many attempts: {reason}");
            *ending = Ending::Done(reject(context, leadership, waiting, reason).await?);
        }
    }
    let written = if effects.is_empty() { None } else { Some(settle(context, effects).await) };
    failpoint::reach("write.loaded");
    let done = endings.iter().zip(work).filter_map(|(ending, (_, waiting))| match ending {
        Ending::Done(outcome) => Some((waiting.entry.clone(), outcome.clone())),
        Ending::Retry { .. } | Ending::Behind => None,
    });
    let done: Vec<(StreamEntry, CommandOutcome)> = done.collect();
    finish_surely(context, leadership, &done, written.as_ref()).await;
    failpoint::reach("write.finished");
    Ok(endings)
}

/// Carries commands out and commits. The endings are in the order of the commands; none: one of a shared transaction failed,
/// and nothing was done. An error: nothing is known of any of them.
async fn carry_out(
    context: &Context,
    leadership: &Leadership,
    work: &[(String, Waiting)],
    mode: BatchMode,
) -> Result<Option<(Vec<Ending>, WriteEffects)>, Box<CommandError>> {
    let mut transaction = context.postgres.begin_commands(mode == BatchMode::Single).await?;
    if !is_leader(&mut transaction, leadership.commands(), leadership.token).await? {
        return Err(Box::new(CommandError::NotLeader));
    }
    let ids: Vec<String> = work.iter().map(|(_, waiting)| waiting.command.id.clone()).collect();
    let known = records_of(&mut transaction, leadership.commands(), &ids).await?;
    let mut known: HashMap<String, IdempotencyRecord> =
        known.into_iter().map(|record| (record.id.clone(), record)).collect();
    let (mut endings, mut records, mut effects) =
        (Vec::with_capacity(work.len()), Vec::new(), WriteEffects::default());
    let mut blocked: HashSet<&str> = HashSet::new();
    let mut is_first = true;
    for (queue, waiting) in work {
        if blocked.contains(queue.as_str()) {
            endings.push(Ending::Behind);
            continue;
        }
        if let Some(record) = known.get(&waiting.command.id) {
            let outcome = repeated(record, waiting);
            if outcome.error.is_none() {
                // The worker that carried it out may have crashed before it updated Redis.
                effects.add(waiting.prepared.repeated_effects());
            }
            endings.push(Ending::Done(outcome));
            continue;
        }
        if mode != BatchMode::Shared {
            keep_last(&mut transaction, is_first).await?;
            is_first = false;
        }
        let Some(ending) = attempt(&mut transaction, waiting, mode, &mut effects).await? else {
            // At once, not when the connection is used again: the next attempt needs the same rows.
            transaction.rollback().await.map_err(SourceError::of_commit)?;
            return Ok(None);
        };
        if let Ending::Done(outcome) = &ending {
            let record = record_of(waiting, outcome);
            known.insert(record.id.clone(), record.clone());
            records.push(record);
        } else {
            blocked.insert(queue);
        }
        endings.push(ending);
    }
    if !records.is_empty() {
        if 0 < effects.rows {
            let sealed =
                transaction.plainly("note a write", async |plain| effects.seal(context, plain).await);
            sealed.await?;
        }
        add_records(&mut transaction, leadership.commands(), &records).await?;
        failpoint::reach("write.executed");
        transaction.commit().await.map_err(SourceError::of_commit)?;
    }
    Ok(Some((endings, effects)))
}

/// Carries out one command; none: it failed, and with it the shared transaction.
async fn attempt(
    connection: &mut Session,
    waiting: &Waiting,
    mode: BatchMode,
    effects: &mut WriteEffects,
) -> Result<Option<Ending>, Box<CommandError>> {
    let executed =
        connection.plainly("carry out a write", async |plain| waiting.prepared.execute(plain).await);
    let ending = match executed.await {
        Ok(own) => {
            let rows = i64::try_from(own.rows).unwrap_or(i64::MAX);
            effects.add(own);
            Ending::Done(CommandOutcome { rows, ..CommandOutcome::default() })
        }
        Err(error) if mode == BatchMode::Shared && !is_server(&error) => return Ok(None),
        Err(WriteError::Unavailable(error)) if error.blame() == Blame::Others => {
            undo_last(connection).await?;
            let weight = if error.is_slow() { SLOW_WEIGHT } else { 1 };
            Ending::Retry { reason: chain(&error), weight }
        }
        Err(WriteError::Unavailable(error) | WriteError::Unknown(error)) => return Err(error.into()),
        Err(refused) => {
            undo_last(connection).await?;
            Ending::Done(CommandOutcome::rejected(refused.to_string()))
        }
    };
    Ok(Some(ending))
}

fn is_server(error: &WriteError) -> bool {
    match error {
        WriteError::Unavailable(error) | WriteError::Unknown(error) => error.blame() == Blame::Server,
        _ => false,
    }
}

/// Records that a command is given up, so that it is not tried again when it comes again.
async fn reject(
    context: &Context,
    leadership: &Leadership,
    waiting: &Waiting,
    reason: String,
) -> Result<CommandOutcome, Box<CommandError>> {
    let outcome = CommandOutcome::rejected(reason);
    let mut transaction = context.postgres.begin_commands(true).await?;
    if !is_leader(&mut transaction, leadership.commands(), leadership.token).await? {
        return Err(Box::new(CommandError::NotLeader));
    }
    let ids = [waiting.command.id.clone()];
    if let Some(record) = records_of(&mut transaction, leadership.commands(), &ids).await?.first() {
        // A commit whose outcome was unknown did succeed.
        return Ok(repeated(record, waiting));
    }
    add_records(&mut transaction, leadership.commands(), &[record_of(waiting, &outcome)]).await?;
    transaction.commit().await.map_err(SourceError::of_commit)?;
    Ok(outcome)
}

fn record_of(waiting: &Waiting, outcome: &CommandOutcome) -> IdempotencyRecord {
    IdempotencyRecord {
        id: waiting.command.id.clone(),
        digest: waiting.command.digest.clone(),
        entry: waiting.entry.position(),
        rows: outcome.rows,
        error: outcome.error.clone(),
    }
}

fn repeated(record: &IdempotencyRecord, waiting: &Waiting) -> CommandOutcome {
    let command = &waiting.command;
    if record.digest != command.digest {
        let what = "ids of write commands came again with other contents";
        if let Some(count) = log_limit::due(what, "", 1) {
            warn!(id = %command.id, entry = %waiting.entry.id, count, "{what}");
        }
        return CommandOutcome::rejected(format!("id {} was used before for other contents", command.id));
    }
    CommandOutcome { rows: record.rows, error: record.error.clone(), is_repeated: true }
}

/// Finishes commands in Redis, however long Redis is down: until it has heard of them, nothing else may be done with their
/// keys.
pub(super) async fn finish_surely(
    context: &Context,
    leadership: &Leadership,
    done: &[(StreamEntry, CommandOutcome)],
    written: Option<&Written>,
) {
    let mut backoff = Backoff::new(RETRY_DELAY_MIN, RETRY_DELAY_MAX);
    while let Err(error) = finish(context, leadership, done, written).await {
        let what = "write commands are committed, but Redis has not acknowledged them yet";
        if let Some(attempts) = log_limit::due(what, "", 1) {
            warn!(error = %chain(&error), commands = done.len(), attempts, "{what}");
        }
        backoff.wait().await;
    }
}

/// Acknowledges, replies, and keeps apart what was rejected.
async fn finish(
    context: &Context,
    leadership: &Leadership,
    done: &[(StreamEntry, CommandOutcome)],
    written: Option<&Written>,
) -> Result<(), CacheError> {
    if done.is_empty() {
        return Ok(());
    }
    let cache = written.map_or(CacheState::Stored, |written| written.cache);
    let token = written.and_then(|written| written.token.as_ref()).map(ToString::to_string);
    let finished: Vec<Finished> =
        done.iter().map(|(entry, outcome)| outcome.finish(context, entry, token.as_deref(), cache)).collect();
    let undelivered = context.redis.finish_entries(&leadership.stream, &leadership.group, &finished).await?;
    for (entry, outcome) in done {
        context.metrics.commands.get_or_create(&ByReason::new(outcome.label())).inc();
        if let Some(reason) = &outcome.error {
            let what = "write commands were rejected";
            if let Some(count) = log_limit::due(what, "", 1) {
                warn!(entry = %entry.id, reason, count, "{what}");
            }
        }
    }
    for entry in undelivered {
        let what = "replies could not be delivered: their lists hold another type";
        if let Some(count) = log_limit::due(what, "", 1) {
            warn!(%entry, count, "{what}");
        }
    }
    Ok(())
}
