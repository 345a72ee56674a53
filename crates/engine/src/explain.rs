//! Why a key has the value that it has: what stands in Redis, what Postgres says now, what is known of the dataset, and what happened to
//! the entry; and the sentence that follows from it.
//!
//! An entry that differs from its row is accused only where the watermark has passed the snapshot at which the row was read, as an audit
//! does it.

mod difference;
mod facts;
mod judge;
mod look;
mod verdict;

use std::collections::BTreeMap;

pub use difference::Difference;
pub use facts::{EntryFacts, Explanation, RowFacts, SlotFacts, WatermarkFacts};
pub use verdict::{State, Verdict};

use self::judge::judge;
use self::look::{look, value_of};
use super::catalog::Dataset;
use super::context::Context;
use super::coverage;
use super::epoch;
use super::error::EngineError;
use crate::stores::redis::Metadata;
use cachekeeper_protocol::keyspace::slot;

/// Touches that are told.
const TOUCHES_MAX: usize = 20;

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
    explained.verdict = judge(&explained, dataset, &looked);
    explained.row = looked.row(key, dataset);
    if explained.verdict.is_difference() {
        let stored = explained.entry.as_ref().and_then(|entry| entry.value.clone());
        explained.differences = difference::between(stored.as_ref(), explained.row.value.as_ref());
    }
    Ok(explained)
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
