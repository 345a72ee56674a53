//! One transaction: commands of several queues, and their records.

use std::collections::{HashMap, HashSet};

use tracing::warn;

use super::{CommandError, Waiting};
use crate::flows::commands::command::Outcome;
use crate::flows::context::Context;
use crate::flows::error::chain;
use crate::flows::failpoint;
use crate::flows::write::{Touched, WriteError};
use crate::stores::postgres::commands::{Applied, applied, keep_last, may_write, record_applied, undo_last};
use crate::stores::postgres::{Blame, SourceError};

/// A statement that takes too long takes its time again with every attempt: five are enough.
const SLOW_WEIGHT: u32 = super::TRIES_MAX / 5;

/// Whose commands these are.
#[derive(Debug, Clone)]
pub(super) struct Right {
    pub stream: String,
    pub token: i64,
}

/// What became of a command in a transaction.
#[derive(Debug)]
pub(super) enum Ending {
    /// It is settled.
    Done(Outcome),
    /// Others were in the way: it is to be tried again.
    Later {
        /// Why.
        reason: String,
        /// How many attempts this one counts for.
        weight: u32,
    },
    /// One before it in its queue is to be tried again.
    Behind,
}

/// How the commands of a transaction stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// All or none: the fastest, as long as none fails.
    Together,
    /// Each behind a savepoint, so that one that fails takes back itself only.
    Each,
    /// A single one, which may wait longer for what others hold.
    Alone,
}

/// Carries commands out and commits. The endings stand in the order of the commands; none: one of those that stand together
/// failed, and nothing was done.
///
/// # Errors
/// [`CommandError`]: nothing is known of any of them.
pub(super) async fn carry_out(
    context: &Context,
    right: &Right,
    work: &[(String, Waiting)],
    care: Care,
) -> Result<Option<(Vec<Ending>, Touched)>, Box<CommandError>> {
    let mut transaction = context.postgres.begin_commands(care == Care::Alone).await?;
    if !may_write(&mut transaction, &right.stream, right.token).await? {
        return Err(Box::new(CommandError::Displaced));
    }
    let ids: Vec<String> = work.iter().map(|(_, waiting)| waiting.command.id.clone()).collect();
    let known = applied(&mut transaction, &right.stream, &ids).await?;
    let mut known: HashMap<String, Applied> =
        known.into_iter().map(|record| (record.id.clone(), record)).collect();
    let (mut endings, mut records, mut touched) =
        (Vec::with_capacity(work.len()), Vec::new(), Touched::default());
    let mut held_up: HashSet<&str> = HashSet::new();
    let mut is_first = true;
    for (queue, waiting) in work {
        if held_up.contains(queue.as_str()) {
            endings.push(Ending::Behind);
            continue;
        }
        if let Some(record) = known.get(&waiting.command.id) {
            let outcome = repeated(record, waiting);
            if outcome.error.is_none() {
                // Whoever carried it out may not have come to Redis.
                touched.add(waiting.prepared.touched_before());
            }
            endings.push(Ending::Done(outcome));
            continue;
        }
        if care != Care::Together {
            keep_last(&mut transaction, is_first).await?;
            is_first = false;
        }
        let outcome = match waiting.prepared.execute(&mut transaction).await {
            Ok(own) => {
                let rows = i64::try_from(own.rows).unwrap_or(i64::MAX);
                touched.add(own);
                Outcome { rows, ..Outcome::default() }
            }
            Err(error) if care == Care::Together && !is_server(&error) => {
                // At once, not when the connection is used again: the next attempt needs the same rows.
                transaction.rollback().await.map_err(SourceError::of_commit)?;
                return Ok(None);
            }
            Err(WriteError::Unavailable(error)) if error.blame() == Blame::Others => {
                undo_last(&mut transaction).await?;
                held_up.insert(queue);
                let weight = if error.is_slow() { SLOW_WEIGHT } else { 1 };
                endings.push(Ending::Later { reason: chain(&error), weight });
                continue;
            }
            Err(WriteError::Unavailable(error) | WriteError::Unknown(error)) => return Err(error.into()),
            Err(refused) => {
                undo_last(&mut transaction).await?;
                Outcome::rejected(refused.to_string())
            }
        };
        let record = record_of(waiting, &outcome);
        known.insert(record.id.clone(), record.clone());
        records.push(record);
        endings.push(Ending::Done(outcome));
    }
    if !records.is_empty() {
        if 0 < touched.rows {
            touched.seal(context, &mut transaction).await?;
        }
        record_applied(&mut transaction, &right.stream, &records).await?;
        failpoint::reach("write.executed");
        transaction.commit().await.map_err(SourceError::of_commit)?;
    }
    Ok(Some((endings, touched)))
}

fn is_server(error: &WriteError) -> bool {
    match error {
        WriteError::Unavailable(error) | WriteError::Unknown(error) => error.blame() == Blame::Server,
        _ => false,
    }
}

/// Records that a command is given up, so that it is not tried again when it comes again.
///
/// # Errors
/// [`CommandError`].
pub(super) async fn reject(
    context: &Context,
    right: &Right,
    waiting: &Waiting,
    reason: String,
) -> Result<Outcome, Box<CommandError>> {
    let outcome = Outcome::rejected(reason);
    let mut transaction = context.postgres.begin_commands(true).await?;
    if !may_write(&mut transaction, &right.stream, right.token).await? {
        return Err(Box::new(CommandError::Displaced));
    }
    let ids = [waiting.command.id.clone()];
    if let Some(record) = applied(&mut transaction, &right.stream, &ids).await?.first() {
        // A commit of which nothing was heard has come through after all.
        return Ok(repeated(record, waiting));
    }
    record_applied(&mut transaction, &right.stream, &[record_of(waiting, &outcome)]).await?;
    transaction.commit().await.map_err(SourceError::of_commit)?;
    Ok(outcome)
}

fn record_of(waiting: &Waiting, outcome: &Outcome) -> Applied {
    Applied {
        id: waiting.command.id.clone(),
        digest: waiting.command.digest.clone(),
        entry: waiting.entry.position(),
        rows: outcome.rows,
        error: outcome.error.clone(),
    }
}

fn repeated(record: &Applied, waiting: &Waiting) -> Outcome {
    let command = &waiting.command;
    if record.digest != command.digest {
        warn!(id = %command.id, entry = %waiting.entry.id, "an id came again with other contents");
        return Outcome::rejected(format!("id {} was used before for other contents", command.id));
    }
    Outcome { rows: record.rows, error: record.error.clone(), is_repeated: true }
}
