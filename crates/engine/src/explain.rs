//! Why a key has the value that it has: what stands in Redis, what Postgres says now, what is known of the dataset, and what happened to
//! the entry; and the sentence that follows from it.
//!
//! An entry that differs from its row is accused only where that is proved ([`crate::audit::sure`]). All of it takes 5 s at most.

mod asked;
mod difference;
mod doubts;
mod facts;
mod judge;
mod look;
mod verdict;

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

pub use asked::NotAsked;
pub use difference::Difference;
pub use facts::{EntryFacts, Explanation, RowFacts, SlotFacts, WatermarkFacts};
pub use verdict::{State, Verdict};

use self::asked::asked;
use self::doubts::Doubts;
use self::judge::judge;
use self::look::look;
use super::catalog::Dataset;
use super::context::Context;
use super::coverage;
use super::decoded::FOREIGN_MAX;
use super::epoch;
use super::error::EngineError;
use super::events::leave_out;
use crate::stores::postgres::KeyValues;
use crate::stores::redis::{CacheError, Metadata, Refusal, SeenEntry};
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;

/// Touches that are told.
const TOUCHES_MAX: usize = 20;
/// How long Postgres is waited for, and Redis and all the rest.
const POSTGRES_WITHIN: Duration = Duration::from_secs(4);
const WITHIN: Duration = Duration::from_secs(5);

/// Why a watermark does not hold for a key of its shard.
const NOT_ADOPTED: &str =
    "its cluster slot is moving, or has come from elsewhere and is still to be loaded again";

/// Explains a key. Nothing is changed.
///
/// # Errors
/// [`EngineError`] where Redis does not answer. What Postgres does not tell stands in the answer.
pub async fn explain(context: &Context, key: &str) -> Result<Explanation, EngineError> {
    let until = Instant::now() + POSTGRES_WITHIN;
    // Whatever else is waited for ends before.
    let explaining = timeout(WITHIN, explain_until(context, key, until));
    explaining.await.unwrap_or_else(|_elapsed| Err(CacheError::timed_out("explain a key").into()))
}

async fn explain_until(context: &Context, key: &str, until: Instant) -> Result<Explanation, EngineError> {
    let history = context.history.as_ref();
    let mut explained = Explanation {
        key: key.to_owned(),
        touches: history.map(|history| history.of_key(None, key, TOUCHES_MAX)),
        touches_since_ms: history.map(|history| history.since_ms()),
        ..Explanation::default()
    };
    let form_of = describe(context, key, until).await?;
    let Some((dataset, values)) = context.catalog.of_key(key) else {
        return explain_foreign(context, explained, form_of).await;
    };
    explained.touches = history.map(|history| history.of_key(Some(dataset.name()), key, TOUCHES_MAX));
    let metadata = context.redis.metadata("").await?;
    let columns = dataset.settings.key.columns().map(str::to_owned);
    explained.placeholders = columns.zip(values.iter().cloned()).collect();
    explained.dataset = Some(dataset.name().to_owned());
    explained.is_superseded = epoch::is_superseded(context, dataset).await;
    explained.pending = pending(context, &metadata, dataset, key).await?;
    fill(context, &mut explained, dataset, &values, until).await?;
    Ok(explained)
}

/// What both servers say, and what follows.
async fn fill(
    context: &Context,
    explained: &mut Explanation,
    dataset: &Dataset,
    values: &KeyValues,
    until: Instant,
) -> Result<(), EngineError> {
    let key = explained.key.clone();
    let looked = look(context, dataset, &key, values, until).await?;
    explained.watermark = looked.watermark.as_ref().map(|watermark| WatermarkFacts::new(watermark, dataset));
    explained.slot = SlotFacts::new(&key, &looked.entry, looked.floor);
    explained.not_covered = not_covered(context, dataset, looked.row.is_ok(), until).await?;
    if !looked.entry.is_covered && explained.not_covered.is_none() {
        explained.not_covered = Some(NOT_ADOPTED.to_owned());
    }
    if looked.entry.is_there() {
        explained.entry = Some(EntryFacts::shown(&looked.entry, Some(&dataset.settings.format)).await);
    }
    explained.row = looked.row(&key, dataset).await;
    let doubts = Doubts::of(context, explained, dataset, (&looked, values), until).await?;
    explained.row.hidden = doubts.hidden.clone();
    explained.row.impossible = doubts.impossible.clone();
    if explained.row.impossible.is_some() {
        (explained.row.refused, explained.row.exists) = (None, Some(false));
    }
    explained.verdict = judge(explained, dataset, &looked, &doubts);
    let is_told = explained.row.not_asked.is_none() && explained.row.refused.is_none();
    let is_shown = explained.row.not_shown.is_none()
        && explained.entry.as_ref().is_none_or(|entry| entry.undecodable.is_none());
    if !looked.agrees && explained.verdict.state != State::Right && is_told && is_shown {
        let stored = explained.entry.as_ref().and_then(|entry| entry.value.as_ref());
        let is_there = stored.is_some();
        let differences = difference::between(stored, explained.row.value.as_ref());
        explained.differences = if is_there { differences } else { Vec::new() };
    }
    Ok(())
}

/// The query's types decide to which dataset a key belongs. One that cannot work has no keys. Answers the last dataset whose keys have the
/// form of this one.
async fn describe(context: &Context, key: &str, until: Instant) -> Result<Option<String>, EngineError> {
    let mut form_of = None;
    let mut is_silent = false;
    for dataset in context.catalog.iter().filter(|dataset| dataset.read_key(key).is_some()) {
        form_of = Some(dataset.name().to_owned());
        if dataset.known_source().is_none() && !is_silent {
            let source = asked(context, until, dataset.source(&context.postgres)).await?;
            is_silent = source.is_err() && dataset.known_source().is_none();
        }
    }
    Ok(form_of)
}

/// A key of no dataset: its value is shown where somebody has said that such keys are to do with this cache.
async fn explain_foreign(
    context: &Context,
    mut explained: Explanation,
    form_of: Option<String>,
) -> Result<Explanation, EngineError> {
    let key = explained.key.as_str();
    let is_named = leave_out(context, &mut vec![key.to_owned()]).await?.is_empty();
    let seen = match context.redis.see_in_order(&[key], if is_named { FOREIGN_MAX } else { 0 }).await {
        // With exactly the rights that it needs, a worker looks at entries of its datasets only.
        Err(error) if error.refusal == Refusal::Forbidden => {
            explained.verdict =
                form_of.map_or_else(Verdict::of_foreign_unseen, |dataset| Verdict::of_no_value(&dataset));
            return Ok(explained);
        }
        seen => seen?,
    };
    let entry = seen.entries.into_iter().next().unwrap_or_else(SeenEntry::absent);
    explained.slot = SlotFacts::new(key, &entry, seen.floor);
    explained.verdict = match form_of.filter(|_| !entry.is_there()) {
        _ if key.starts_with(RESERVED_PREFIX) => Verdict::of_own_key(),
        Some(dataset) => Verdict::of_no_value(&dataset),
        None => Verdict::of_no_dataset(entry.is_there()),
    };
    if entry.is_there() {
        let not_shown =
            "it belongs to no dataset, and neither [invalidation] keys nor a registered prefix names its key";
        explained.entry = Some(match is_named {
            true => EntryFacts::shown(&entry, None).await,
            false => EntryFacts::hidden(&entry, not_shown.to_owned()),
        });
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

/// Why changes of the dataset may be missed; as this worker knows it, or as the servers tell where they do.
async fn not_covered(
    context: &Context,
    dataset: &Dataset,
    has_answered: bool,
    until: Instant,
) -> Result<Option<String>, EngineError> {
    if !context.feed.is_on {
        return Ok(Some("the feed is off: only events, schedules and lifetimes renew entries".to_owned()));
    }
    let mark = |datasets: &BTreeMap<String, Result<_, String>>| {
        datasets.get(dataset.name()).and_then(|mark| mark.as_ref().err().cloned())
    };
    if let Some(known) = context.coverage() {
        return Ok(mark(&known.datasets));
    }
    if !has_answered {
        return Ok(None);
    }
    let looked = asked(context, until, coverage::look(context, false)).await?;
    Ok(match looked {
        Ok(looked) => mark(&looked.datasets),
        Err(reason) => Some(format!("it is not known whether changes are captured: {reason}")),
    })
}
