//! Why a key has the value that it has: what stands in Redis, what Postgres says now, what is known of the dataset, and what happened to
//! the entry; and the sentence that follows from it.
//!
//! An entry that differs from its row is accused only where the watermark has passed the snapshot at which the row was read, as an audit
//! does it.

mod difference;
mod facts;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

pub use difference::Difference;
pub use facts::{EntryFacts, Explanation, RowFacts, SlotFacts, WatermarkFacts};
pub use verdict::{State, Verdict};

use super::audit::{Expected, expect, is_covered, is_null};
use super::catalog::Dataset;
use super::context::Context;
use super::coverage;
use super::decoded::decoded;
use super::epoch;
use super::error::EngineError;
use super::tokens::{self, WaitError};
use crate::stores::postgres::{ErrorKind, KeyValues};
use crate::stores::redis::{Metadata, Watermark};
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::token::Token;

/// Touches that are told.
const TOUCHES_MAX: usize = 20;
/// How long the watermark is waited for where the entry differs.
const WATERMARK_WITHIN: Duration = Duration::from_secs(2);

/// Explains a key. Nothing is changed.
///
/// # Errors
/// [`EngineError`] where Redis does not answer. What Postgres does not tell stands in the answer.
pub async fn explain(context: &Context, key: &str) -> Result<Explanation, EngineError> {
    let metadata = context.redis.metadata("").await?;
    let stamp = context.redis.slot_stamp(key).await?;
    let mut explained = Explanation {
        key: key.to_owned(),
        slot: SlotFacts {
            number: slot(key.as_bytes()),
            stamp: stamp.map(|stamp| stamp.to_string()),
            floor: metadata.floor.map(|floor| floor.to_string()),
        },
        touches: context.history.as_ref().map(|history| history.of_key(key, TOUCHES_MAX)),
        ..Explanation::default()
    };
    let Some((dataset, values)) = context.catalog.of_key(key) else {
        let value = value_of(context, key).await?;
        explained.entry = value.as_ref().map(|(value, left)| EntryFacts::new(value, *left, None));
        explained.verdict = Verdict::of_no_dataset(explained.entry.is_some());
        return Ok(explained);
    };
    let columns = dataset.settings.key.columns().map(str::to_owned);
    explained.placeholders = columns.zip(values.iter().cloned()).collect();
    explained.dataset = Some(dataset.name().to_owned());
    explained.is_superseded = epoch::is_superseded(context, dataset).await;
    explained.pending = pending(context, &metadata, dataset, key).await?;
    explained.not_covered = not_covered(context, dataset).await;
    let looked = look(context, dataset, key, &values).await?;
    explained.watermark = looked.watermark.as_ref().map(|watermark| WatermarkFacts::new(watermark, dataset));
    let format = &dataset.settings.format;
    explained.entry = looked.value.as_ref().map(|(value, left)| EntryFacts::new(value, *left, Some(format)));
    explained.verdict = Verdict::of(&explained, dataset, &looked);
    explained.row = looked.row(key, dataset);
    if explained.verdict.is_difference() {
        let stored = explained.entry.as_ref().and_then(|entry| entry.value.clone());
        explained.differences = difference::between(stored.as_ref(), explained.row.value.as_ref());
    }
    Ok(explained)
}

/// What both servers say of an entry.
struct Looked {
    value: Option<(Vec<u8>, i64)>,
    /// Why Postgres could not be asked.
    row: Result<Expected, String>,
    agrees: bool,
    /// The row was another one when it was read again.
    is_changing: bool,
    /// The watermark has passed the snapshot of the row.
    is_past: bool,
    watermark: Option<Watermark>,
}

impl Looked {
    fn row(&self, key: &str, dataset: &Dataset) -> RowFacts {
        let expected = match &self.row {
            Ok(expected) => expected,
            Err(reason) => return RowFacts { not_asked: Some(reason.clone()), ..RowFacts::default() },
        };
        let value = expected.values.get(key);
        RowFacts {
            exists: Some(value.is_some() || expected.unreadable.contains_key(key)),
            value: value.and_then(|value| decoded(value, Some(&dataset.settings.format)).ok()),
            tags: expected.tags.get(key).cloned().unwrap_or_default(),
            refused: expected.unreadable.get(key).cloned(),
            not_asked: None,
        }
    }
}

/// Looks at an entry and its row; where they differ, once more after the watermark has passed the row's snapshot.
async fn look(
    context: &Context,
    dataset: &Dataset,
    key: &str,
    values: &KeyValues,
) -> Result<Looked, EngineError> {
    let first = expected(context, dataset, key, values).await?;
    let value = value_of(context, key).await?;
    let watermark = context.redis.watermark().await?;
    let row = match first {
        Ok(row) => row,
        Err(reason) => {
            let unknown = Looked {
                value,
                row: Err(reason),
                agrees: false,
                is_changing: false,
                is_past: false,
                watermark,
            };
            return Ok(unknown);
        }
    };
    if agree(value.as_ref().map(|(value, _)| value), row.values.get(key)) {
        return Ok(Looked {
            value,
            row: Ok(row),
            agrees: true,
            is_changing: false,
            is_past: false,
            watermark,
        });
    }
    let mut is_past = false;
    if is_covered(context, dataset).await? {
        let poll = row.poll.clone();
        let token = Token { incarnation: poll.incarnation, snapshot: poll.snapshot };
        is_past = match tokens::wait(context, &token, Some(dataset.name()), WATERMARK_WITHIN).await {
            Ok((_, is_fresh)) => is_fresh,
            Err(WaitError::TooMany) => false,
            Err(WaitError::Flow(error)) => return Err(error),
        };
    }
    let value = value_of(context, key).await?;
    let again = expected(context, dataset, key, values).await?;
    let watermark = context.redis.watermark().await?;
    let is_changing = again.as_ref().is_ok_and(|again| again.values.get(key) != row.values.get(key));
    let row = again.unwrap_or(row);
    let agrees = agree(value.as_ref().map(|(value, _)| value), row.values.get(key));
    Ok(Looked { value, row: Ok(row), agrees, is_changing, is_past, watermark })
}

/// What the row says, or why Postgres could not be asked.
async fn expected(
    context: &Context,
    dataset: &Dataset,
    key: &str,
    values: &KeyValues,
) -> Result<Result<Expected, String>, EngineError> {
    let wanted = [(key.to_owned(), values.clone())];
    let read = async {
        let source = dataset.source(&context.postgres).await?;
        let read = expect(context, dataset, &source, &wanted).await;
        if matches!(&read, Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed) {
            dataset.forget_source();
        }
        read
    };
    match read.await {
        Ok(expected) => Ok(Ok(expected)),
        Err(error @ EngineError::Cache(_)) => Err(error),
        Err(error) => Ok(Err(error.told())),
    }
}

async fn value_of(context: &Context, key: &str) -> Result<Option<(Vec<u8>, i64)>, EngineError> {
    let looked = context.redis.look_at(&[key]).await?.pop();
    Ok(looked.and_then(|(value, left)| value.map(|value| (value, left))))
}

/// Whether an entry is what its row says. Absence is looked at elsewhere: it is not wrong.
fn agree(value: Option<&Vec<u8>>, row: Option<&Vec<u8>>) -> bool {
    match (value, row) {
        (None, None) => true,
        (Some(value), Some(row)) => value == row,
        (Some(value), None) => is_null(value),
        (None, Some(_)) => false,
    }
}

/// The pending revalidations that concern a key.
async fn pending(
    context: &Context,
    metadata: &Metadata,
    dataset: &Dataset,
    key: &str,
) -> Result<Vec<String>, EngineError> {
    let name = dataset.name();
    let mut pending: Vec<String> =
        metadata.pending.get(name).map(|all| all.reason().to_owned()).into_iter().collect();
    if let Some(slots) = metadata.slots.get(name)
        && let (Some(current), Some(incarnation)) = (&metadata.epoch, &metadata.incarnation)
    {
        let precondition = dataset.precondition(current, incarnation);
        let seen = context.redis.pending_slots(&precondition, "").await?;
        if context.checked(None, seen).is_ok_and(|seen| seen.slots.contains(key)) {
            pending.push(slots.reason().to_owned());
        }
    }
    if metadata.unfilled.contains_key(name) {
        pending.push("rows may be missing; a backfill follows".to_owned());
    }
    Ok(pending)
}

/// Why changes of the dataset may be missed; as this worker knows it, or as the servers tell.
async fn not_covered(context: &Context, dataset: &Dataset) -> Option<String> {
    if !context.feed.is_on {
        return Some("the feed is off: only events, schedules and lifetimes renew entries".to_owned());
    }
    let mark = |datasets: &BTreeMap<String, Result<_, String>>| {
        datasets.get(dataset.name()).and_then(|mark| mark.as_ref().err().cloned())
    };
    match context.coverage() {
        Some(known) => mark(&known.datasets),
        None => coverage::look(context, false).await.ok().and_then(|looked| mark(&looked.datasets)),
    }
}
