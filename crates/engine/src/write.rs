//! Write-through: Postgres first, then Redis.
//!
//! What a transaction changed is what its triggers captured: its own rows of the outbox. After the commit those entries are
//! loaded on another connection and stored under that load's stamp. Whatever happens after the commit, the feed finishes
//! it, because the rows are in the outbox.

mod statement;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tracing::{Instrument, debug, instrument};

use super::catalog::Dataset;
use super::context::Context;
use super::coverage::{self, Coverage, TouchedKeys};
use super::epoch::with_current_epoch;
use super::error::{EngineError, chain};
use super::load::{Cause, Job, LoadOptions, load};
use super::{change_feed, tokens};
use crate::stores::postgres::write::{captured_here, has_outbox, note_keys};
use crate::stores::postgres::{Blame, Change, KeyValues, SourceError};
use cachekeeper_protocol::token::Token;
pub use statement::{
    Parameter, Parameters, PreparedWrite, WriteEffects, WriteError, bind, decode, known_statement,
    statement_of,
};

/// Attempts of a write that is blocked by locks or conflicts.
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(4);

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
    /// Rows that were written.
    pub rows: u64,
    /// The entries of the written datasets, by key, as they are now; none: deleted.
    pub values: HashMap<String, Option<Vec<u8>>>,
    /// Whoever reads with it sees the write (R18); none where it could not be taken.
    pub token: Option<Token>,
    /// Whether Redis has it.
    pub cache: CacheState,
}

/// Carries out a dataset's write statement and stores what it changed. A caller who leaves after the commit does not keep
/// it from being stored.
#[instrument(level = "debug", skip_all, fields(dataset))]
pub async fn write(context: &Context, dataset: &str, given: &Parameters) -> Result<Written, WriteError> {
    let mut attempt = 0;
    let effects = loop {
        attempt += 1;
        match commit(context, dataset, given).await {
            Err(WriteError::Unavailable(error)) if error.blame() == Blame::Others && attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * (1 << attempt)).await;
            }
            other => break other?,
        }
    };
    let rows = effects.rows;
    let own = context.clone();
    let settled = tokio::spawn(async move { settle(&own, effects).await }.in_current_span()).await;
    // It panicked: the write is durable, and the feed finishes it.
    Ok(settled.unwrap_or_else(|_panic| Written {
        rows,
        values: HashMap::new(),
        token: None,
        cache: CacheState::Pending,
    }))
}

async fn commit(context: &Context, dataset: &str, given: &Parameters) -> Result<WriteEffects, WriteError> {
    let prepared = PreparedWrite::of(context, dataset, given).await?;
    let mut transaction = context.postgres.begin_write().await?;
    let executed = transaction.plainly("carry out a write", async |plain| prepared.execute(plain).await);
    let mut effects = executed.await?;
    transaction.plainly("note a write", async |plain| effects.seal(context, plain).await).await?;
    match transaction.commit().await.map_err(SourceError::of_commit) {
        Ok(()) => Ok(effects),
        // A server that goes down, or is silent, says nothing about the commit; one that answers has refused it.
        Err(error) if error.blame() == Blame::Server => Err(WriteError::Unknown(error)),
        Err(error) => Err(error.into()),
    }
}

/// Carries out a dataset's write statement in the caller's transaction. Call [`settle()`] with the answer after the commit;
/// without that, the feed does it.
///
/// # Errors
/// [`WriteError`]; the transaction must be rolled back.
pub async fn write_in(
    context: &Context,
    connection: &mut PgConnection,
    dataset: &str,
    given: &Parameters,
) -> Result<WriteEffects, WriteError> {
    let prepared = PreparedWrite::of(context, dataset, given).await?;
    let mut effects = prepared.execute(connection).await?;
    effects.seal(context, connection).await?;
    Ok(effects)
}

impl WriteEffects {
    /// Adds what another write of the same transaction changed.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.datasets.extend(other.datasets);
        self.datasets.sort_unstable();
        self.datasets.dedup();
        self.named.extend(other.named);
        self.unnamed.extend(other.unnamed);
        self.unnamed.sort_unstable();
        self.unnamed.dedup();
        // Each look sees all of the transaction so far.
        if self.changes.len() <= other.changes.len() {
            self.changes = other.changes;
        }
    }

    /// Whether there is nothing to settle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.datasets.is_empty()
    }

    /// Whether what the triggers captured tells which entries of the dataset were written.
    fn is_covered(&self, context: &Context, dataset: &str) -> bool {
        let coverage = context.coverage();
        let fingerprint = coverage.as_ref().and_then(|coverage| coverage.datasets.get(dataset));
        !self.changes.is_empty() && fingerprint.is_some_and(Result::is_ok)
    }

    /// Reads, at the end of the transaction, what its triggers captured. Entries of which no trigger tells are noted in the
    /// outbox, so that the feed sees to them if this process does not. After an error the transaction must be rolled back.
    pub(super) async fn seal(
        &mut self,
        context: &Context,
        connection: &mut PgConnection,
    ) -> Result<(), SourceError> {
        if !context.has_outbox() {
            if !has_outbox(connection).await? {
                return Ok(());
            }
            context.set_has_outbox();
        }
        let captures = context.coverage().map(|coverage| coverage.captures.ids()).unwrap_or_default();
        self.changes = captured_here(connection, &captures).await?;
        if !context.feed.is_on {
            return Ok(());
        }
        let named = self.named.iter().map(|(dataset, key, _)| (dataset.as_str(), Some(key.as_str())));
        // Where nobody knows which entries, all of them are revalidated.
        let unnamed = self.unnamed.iter().map(|dataset| (dataset.as_str(), None));
        let unseen: Vec<(&str, Option<&str>)> =
            named.chain(unnamed).filter(|(dataset, _)| !self.is_covered(context, dataset)).collect();
        if !unseen.is_empty() {
            note_keys(connection, &unseen).await?;
        }
        Ok(())
    }
}

/// Loads and stores what was written, after the commit. What cannot be done now is left to the feed.
pub async fn settle(context: &Context, effects: WriteEffects) -> Written {
    let mut written =
        Written { rows: effects.rows, values: HashMap::new(), token: None, cache: CacheState::Stored };
    let mut keys: HashMap<String, TouchedKeys> = HashMap::new();
    if !effects.changes.is_empty() {
        match apply_others(context, &effects, &mut keys).await {
            Ok(Applied::ByKey) => {}
            Ok(Applied::Whole) => written.cache = CacheState::Pending,
            Err(error) => {
                debug!(error = %chain(&error), "what a write changed is left to the feed");
                written.cache = CacheState::Pending;
            }
        }
    }
    // Entries that nobody has named are left to the feed.
    if effects.unnamed.iter().any(|dataset| !effects.is_covered(context, dataset)) {
        written.cache = CacheState::Pending;
    }
    for (dataset, key, values) in effects.named {
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
        written.token = tokens::token(context).await.ok();
    }
    written
}

/// Applies what was changed of other datasets, tags and whole tables; finds the keys of the written ones.
async fn apply_others(
    context: &Context,
    effects: &WriteEffects,
    keys: &mut HashMap<String, TouchedKeys>,
) -> Result<Applied, EngineError> {
    let coverage = coverage_for(context, &effects.changes).await?;
    let mut all = coverage::affected_by(&context.catalog, &coverage, &effects.changes);
    for dataset in &effects.datasets {
        keys.insert(dataset.clone(), all.take_keys(dataset));
    }
    if all.is_empty() {
        return Ok(Applied::ByKey);
    }
    let is_whole = !all.whole.is_empty();
    with_current_epoch(context, || change_feed::apply_own(context, all.clone())).await?;
    Ok(if is_whole { Applied::Whole } else { Applied::ByKey })
}

/// How what a write changed was seen to.
enum Applied {
    /// Each entry.
    ByKey,
    /// Whole datasets are pending.
    Whole,
}

/// The coverage, known well enough to read these changes.
async fn coverage_for(context: &Context, changes: &[Change]) -> Result<Arc<Coverage>, EngineError> {
    if let Some(coverage) = context.coverage().filter(|coverage| coverage.captures.can_read(changes)) {
        return Ok(coverage);
    }
    let coverage = coverage::look(context, false).await?;
    context.set_coverage(coverage);
    Ok(context.coverage().unwrap_or_default())
}

async fn store(context: &Context, dataset: &Dataset, part: &[(String, KeyValues)], written: &mut Written) {
    let options = LoadOptions { keeps_values: true, ..LoadOptions::because(Cause::Write) };
    let store = || async { load(context, dataset, part, options, &mut Job::uncounted()).await };
    let loaded = match with_current_epoch(context, store).await {
        Ok(report) => {
            // Redis is full, or a row cannot be encoded: the entry is deleted, so that no older one is read, but it is not there.
            if !report.failures.is_empty() || 0 < report.invalidated + report.left {
                written.cache = CacheState::Pending;
            }
            report.loaded
        }
        Err(error) => {
            debug!(dataset = dataset.name(), error = %chain(&error), "what was written is stored by the feed");
            written.cache = CacheState::Pending;
            // The caller gets the new value all the same.
            let only_read = LoadOptions::for_reader(false);
            let read = load(context, dataset, part, only_read, &mut Job::uncounted()).await;
            read.map(|report| report.loaded).unwrap_or_default()
        }
    };
    written.values.extend(loaded.by_key);
    if let Some(poll) = loaded.poll {
        written.token.get_or_insert(Token { incarnation: poll.incarnation, snapshot: poll.snapshot });
    }
}
