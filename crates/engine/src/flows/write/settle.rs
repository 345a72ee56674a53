//! After the commit: what was written is loaded on another connection and stored.

use std::collections::HashMap;
use std::sync::Arc;

use tracing::debug;

use super::Touched;
use crate::flows::catalog::Dataset;
use crate::flows::context::Context;
use crate::flows::epoch::with_current_epoch;
use crate::flows::error::{EngineError, chain};
use crate::flows::followed::Coverage;
use crate::flows::load::{Cause, Job, LoadOptions, load};
use crate::flows::{coverage, follow, fresh};
use crate::stores::postgres::{Change, KeyValues};
use cachekeeper_protocol::token::Token;

/// Whether Redis has what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheState {
    /// It has, or the entry is deleted and the next reader loads it.
    Stored,
    /// Not yet: the feed, or the end of the entry's life, sees to it. The write is durable.
    Pending,
}

/// A write that is committed.
#[derive(Debug)]
pub struct Written {
    /// Rows that were touched.
    pub rows: u64,
    /// The entries of the written datasets, by key, as they are now; none: deleted.
    pub values: HashMap<String, Option<Vec<u8>>>,
    /// Whoever reads with it sees the write (R18); none where it could not be taken.
    pub token: Option<Token>,
    /// Whether Redis has it.
    pub cache: CacheState,
}

/// Keys of one dataset.
type Keys = HashMap<String, KeyValues>;

/// Loads and stores what was touched, after the commit. What cannot be done now is the feed's.
pub async fn settle(context: &Context, touched: Touched) -> Written {
    let mut written =
        Written { rows: touched.rows, values: HashMap::new(), token: None, cache: CacheState::Stored };
    let mut keys: HashMap<String, Keys> = HashMap::new();
    if !touched.changes.is_empty()
        && let Err(error) = apply_others(context, &touched, &mut keys).await
    {
        debug!(error = %chain(&error), "what a write touched is left to the feed");
        written.cache = CacheState::Pending;
    }
    // Entries that nobody has named are left to the feed.
    if touched.unnamed.iter().any(|dataset| !touched.is_followed(context, dataset)) {
        written.cache = CacheState::Pending;
    }
    for (dataset, key, values) in touched.named {
        keys.entry(dataset).or_default().insert(key, values);
    }
    for (name, keys) in keys {
        let Some(dataset) = context.catalog.get(&name) else { continue };
        let keys: Vec<(String, KeyValues)> = keys.into_iter().collect();
        for part in keys.chunks(dataset.settings.batch) {
            store(context, dataset, part, &mut written).await;
        }
    }
    if written.token.is_none() {
        written.token = fresh::token(context).await.ok();
    }
    written
}

/// Applies what other datasets, tags and whole tables are touched; finds the keys of the written ones.
async fn apply_others(
    context: &Context,
    touched: &Touched,
    keys: &mut HashMap<String, Keys>,
) -> Result<(), EngineError> {
    let coverage = coverage_for(context, &touched.changes).await?;
    let mut all = follow::touched_by(context, &coverage, &touched.changes);
    for dataset in &touched.datasets {
        keys.insert(dataset.clone(), all.take_keys(dataset));
    }
    if all.is_empty() {
        return Ok(());
    }
    with_current_epoch(context, || follow::apply_own(context, all.clone())).await
}

/// What the feed follows, known well enough to read these changes.
async fn coverage_for(context: &Context, changes: &[Change]) -> Result<Arc<Coverage>, EngineError> {
    if let Some(coverage) = context.coverage().filter(|coverage| coverage.can_read(changes)) {
        return Ok(coverage);
    }
    let coverage = coverage::look(context, false).await?;
    context.set_coverage(coverage);
    Ok(context.coverage().unwrap_or_default())
}

async fn store(context: &Context, dataset: &Dataset, part: &[(String, KeyValues)], written: &mut Written) {
    let options = LoadOptions { keeps_values: true, ..LoadOptions::because(Cause::Change) };
    let store = || async { load(context, dataset, part.to_vec(), options, &mut Job::uncounted()).await };
    let loaded = match with_current_epoch(context, store).await {
        Ok(report) => report.loaded,
        Err(error) => {
            debug!(dataset = dataset.name(), error = %chain(&error), "what was written is stored by the feed");
            written.cache = CacheState::Pending;
            // The caller gets the new value all the same.
            let only_read = LoadOptions::for_reader(false);
            let read = load(context, dataset, part.to_vec(), only_read, &mut Job::uncounted()).await;
            read.map(|report| report.loaded).unwrap_or_default()
        }
    };
    written.values.extend(loaded.by_key);
    if let Some(poll) = loaded.poll {
        written.token.get_or_insert(Token { incarnation: poll.incarnation, snapshot: poll.snapshot });
    }
}
