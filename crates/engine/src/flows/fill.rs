//! Given keys of a dataset: load them once for a reader, and store what may be stored.

use std::collections::HashMap;

use tracing::debug;

use super::catalog::Dataset;
use super::context::Context;
use super::encode::Encoder;
use super::error::{FlowError, chain};
use super::reload::{Cause, current_epoch, gone_error, null_of};
use crate::metrics::ByDatasetCause;
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::{Answer, CounterRule, Precondition, StoreMode};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::EntryBatch;

/// The values that were loaded, by key; none: the key has no row.
pub type Values = HashMap<String, Option<Vec<u8>>>;

/// What was loaded.
#[derive(Debug)]
pub struct Filled {
    /// The values.
    pub values: Values,
    /// When they were read.
    pub poll: Poll,
}

/// Loads these keys in one statement and answers their values, whether or not they could be stored: a reader gets what
/// was read at its own time, and a store that something newer forbids is left out (R5). Rows that cannot be encoded
/// have no value here.
///
/// # Errors
/// [`FlowError`] where they could not be loaded.
pub async fn fill(
    context: &Context,
    dataset: &Dataset,
    keys: &[(String, KeyValues)],
    may_store: bool,
) -> Result<Filled, FlowError> {
    let source = dataset.source(&context.postgres).await?;
    let wanted: Vec<KeyValues> = keys.iter().map(|(_, values)| values.clone()).collect();
    let loaded = context.postgres.load(&source, &wanted).await?;
    let mut batch = EntryBatch::default();
    let mut encoder = Encoder::new(dataset, &source);
    for row in &loaded.rows {
        encoder.add(row, &mut batch);
    }
    encoder.finish(&mut batch);
    let mut values: Values = batch
        .iter()
        .map(|entry| (entry.key.to_owned(), (entry.life_ms != 0).then(|| entry.value.to_vec())))
        .collect();
    let failed: Vec<&str> = encoder.failures.iter().filter_map(|failure| failure.key.as_deref()).collect();
    for (key, _) in keys {
        if values.contains_key(key) || failed.contains(&key.as_str()) {
            continue;
        }
        match (dataset.settings.negative_ttl, null_of(&dataset.settings.format)) {
            (Some(life), Some(null)) => {
                batch.push(key, null, u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
            }
            _ => {
                batch.push_gone(key);
            }
        }
        values.insert(key.clone(), None);
    }
    if may_store && !dataset.is_displaced() {
        // The reader has its value already; what could not be stored is the feed's, or the next reader's.
        if let Err(error) = store(context, dataset, &loaded.poll, &batch).await {
            debug!(dataset = dataset.name(), error = %chain(&error), "a fill was not stored");
        }
    }
    Ok(Filled { values, poll: loaded.poll })
}

async fn store(
    context: &Context,
    dataset: &Dataset,
    poll: &Poll,
    batch: &EntryBatch,
) -> Result<(), FlowError> {
    let epoch = current_epoch(context).await?;
    let standing = dataset.precondition(&epoch, &poll.incarnation);
    let longest = dataset.lifetimes.longest();
    let answer =
        context.redis.store(&standing, poll.snapshot.stamp(), batch, longest, StoreMode::Slots).await?;
    match answer {
        Answer::Done(refused) => {
            let labels = ByDatasetCause::new(dataset.name(), Cause::Miss.label());
            context.metrics.refused.get_or_create(&labels).inc_by(refused.len() as u64);
            context.metrics.stored.get_or_create(&labels).inc_by((batch.len() - refused.len()) as u64);
            Ok(())
        }
        Answer::Failed(gone) => Err(gone_error(context, dataset, gone)),
    }
}

/// Stores entries of no dataset that were loaded after a snapshot of Postgres was taken: the stamp rule orders them,
/// and the counters as well (DESIGN 2.2). Answers the positions that were refused.
///
/// # Errors
/// [`FlowError`].
pub async fn store_own(
    context: &Context,
    batch: &EntryBatch,
    fence: &InvalidationCounters,
    poll: &Poll,
) -> Result<Vec<usize>, FlowError> {
    let epoch = current_epoch(context).await?;
    let standing = Precondition { epoch: &epoch, incarnation: &poll.incarnation, dataset: "", revision: "" };
    let stamp = Some((standing, poll.snapshot.stamp()));
    match context.redis.fill(batch, CounterRule::Unchanged(fence), stamp).await? {
        Answer::Done(refused) => Ok(refused),
        Answer::Failed(gone) => {
            context.set_epoch(None);
            Err(FlowError::Gone(gone))
        }
    }
}
