//! Postgres and the datasets behind a cache. All else in the library that needs them is in `dataset.rs` and
//! `write_through.rs`; without the feature `postgres`, `no_source.rs` takes the place of this.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::codec::{Codec, ValueFormat};
use super::error::ClientError;
use super::in_memory::Table;
use super::later_loads::LaterLoads;
use cachekeeper_config::Format;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::{self, with_current_epoch};
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::invalidate;
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_engine::stores::chain;
use cachekeeper_engine::stores::postgres::Poll;
use cachekeeper_engine::stores::redis::{CacheError, CounterRule, Precondition};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::{EntryBatch, Shape};
use cachekeeper_protocol::event::Op;

/// Where the datasets' entries come from; nothing in a cache over Redis alone.
#[derive(Debug)]
pub(super) struct Source {
    context: Option<Context>,
    types: Arc<KeyTypes>,
    /// The datasets of a cache in memory.
    tables: Vec<Arc<Table>>,
    /// Loads that are as fresh as a token.
    pub later_loads: Arc<LaterLoads>,
}

/// Whether Postgres was asked for the types of the datasets' keys.
#[derive(Debug, Default)]
struct KeyTypes {
    are_known: AtomicBool,
    /// The first attempt, which the first reads wait for.
    first: OnceCell<()>,
    tried: Mutex<Option<Instant>>,
}

impl KeyTypes {
    /// Whether it is time to ask again; then it counts as done.
    fn is_due(&self) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = tried.is_none_or(|tried| LEARN_EVERY < tried.elapsed());
        if is_due {
            *tried = Some(Instant::now());
        }
        is_due
    }
}

/// How long the first reads wait for Postgres to tell the types.
const LEARN_WITHIN: Duration = Duration::from_secs(1);
/// Between two attempts while it does not.
const LEARN_EVERY: Duration = Duration::from_secs(5);

async fn describe_all(context: &Context, types: &KeyTypes) {
    let mut are_known = true;
    for dataset in context.catalog.iter() {
        if let Err(error) = dataset.source(&context.postgres).await {
            debug!(dataset = dataset.name(), error = %chain(&error), "the types of its key are not known yet");
            are_known = false;
        }
    }
    types.are_known.store(are_known, Ordering::Relaxed);
}

/// A snapshot of the database, see [`super::Cache::snapshot`].
pub type Snapshot = Poll;

/// Why entries of datasets were not invalidated under a stamp.
#[derive(Debug)]
pub(super) enum NotInvalidated {
    /// Redis did not do it.
    Redis(CacheError),
    /// Postgres gave no stamp: a worker must see to it later.
    NoStamp,
    Failed(ClientError),
}

impl From<EngineError> for NotInvalidated {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cache(error) => Self::Redis(error),
            error if error.is_source_down() => Self::NoStamp,
            error => Self::Failed(error.into()),
        }
    }
}

impl From<EngineError> for ClientError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Cache(error) => error.into(),
            other => Self::Source(Arc::new(other)),
        }
    }
}

impl Source {
    pub fn new(context: Context) -> Self {
        Self { context: Some(context), ..Self::none() }
    }

    pub fn none() -> Self {
        Self { context: None, types: Arc::default(), tables: Vec::new(), later_loads: Arc::default() }
    }

    /// Adds a dataset of a cache in memory.
    pub fn add(&mut self, table: Table) {
        self.tables.push(Arc::new(table));
    }

    pub fn tables(&self) -> &[Arc<Table>] {
        &self.tables
    }

    /// The position of the dataset of this name.
    pub fn position_of_name(&self, name: &str) -> Option<usize> {
        match &self.context {
            Some(context) => context.catalog.iter().position(|dataset| dataset.name() == name),
            None => self.tables.iter().position(|table| table.name == name),
        }
    }

    pub fn is_some(&self) -> bool {
        self.context.is_some() || !self.tables.is_empty()
    }

    pub fn context(&self) -> Result<&Context, ClientError> {
        self.context.as_ref().ok_or(ClientError::NoSource)
    }

    /// The worker's metrics, where a worker's stores are shared.
    pub fn metrics(&self) -> Option<Arc<Metrics>> {
        self.context.as_ref().map(|context| Arc::clone(&context.metrics))
    }

    /// Names of the datasets, in their order, with how their entries are read; those in memory have the application's own codec.
    pub fn codecs(&self, own: Codec) -> impl Iterator<Item = (String, Codec, Shape)> {
        let tables = self.tables.iter().map(move |table| (table.name.clone(), own, Shape::String));
        let datasets = self.context.iter().flat_map(|context| context.catalog.iter());
        let datasets = datasets.map(|dataset| {
            let format = match dataset.settings.format {
                Format::Json { .. } => ValueFormat::Json,
                // The fields of a hash are decoded otherwise.
                Format::MessagePack { .. } | Format::Raw { .. } | Format::Hash => ValueFormat::MessagePack,
            };
            let codec = Codec { format, compression: dataset.settings.compression };
            (dataset.name().to_owned(), codec, dataset.settings.format.shape())
        });
        datasets.chain(tables)
    }

    /// What the keys of datasets begin with.
    pub fn prefixes(&self) -> Vec<&str> {
        let datasets = self.context.iter().flat_map(|context| context.catalog.iter());
        let tables = self.tables.iter().map(|table| table.key.prefix());
        datasets.map(|dataset| dataset.settings.key.prefix()).chain(tables).collect()
    }

    /// The position of the dataset that a key belongs to.
    pub fn position_of(&self, key: &str) -> Option<usize> {
        match &self.context {
            Some(context) => context.catalog.position_of_key(key),
            None => self.tables.iter().position(|table| table.key.read(key).is_some()),
        }
    }

    /// The name of the dataset that a key belongs to.
    pub fn dataset_of(&self, key: &str) -> Option<&str> {
        let position = self.position_of(key)?;
        match &self.context {
            Some(context) => context.catalog.iter().nth(position).map(|dataset| dataset.name()),
            None => self.tables.get(position).map(|table| table.name.as_str()),
        }
    }

    /// Asks Postgres, once, for the types of all datasets' keys: a text may fit a template and still be none of its keys, and
    /// every process must read a key in the same format. Where Postgres does not answer, what fits the most literal template is
    /// taken for its key, and Postgres is asked again beside the reads.
    pub async fn learn_types(&self) {
        let Some(context) = &self.context else { return };
        if self.types.are_known.load(Ordering::Relaxed) {
            return;
        }
        let first = || async { drop(timeout(LEARN_WITHIN, describe_all(context, &self.types)).await) };
        self.types.first.get_or_init(first).await;
        if !self.types.are_known.load(Ordering::Relaxed) && self.types.is_due() {
            let (context, types) = (context.clone(), Arc::clone(&self.types));
            drop(tokio::spawn(async move { describe_all(&context, &types).await }));
        }
    }

    /// Invalidates the datasets' members of tags as their `on_change` says; answers how many were deleted or loaded again.
    pub async fn invalidate_tags(&self, tags: &[String]) -> Result<u64, NotInvalidated> {
        let Some(context) = &self.context else {
            // In memory, those of all are deleted already.
            return if self.tables.is_empty() { Err(NotInvalidated::NoStamp) } else { Ok(0) };
        };
        let report = with_current_epoch(context, || invalidate::tags(context, tags, None)).await?;
        Ok(report.stored + report.gone + report.invalidated)
    }

    /// Deletes entries of datasets under a stamp, so that no older load can bring them back.
    pub async fn delete(&self, keys: &[String]) -> Result<u64, NotInvalidated> {
        let Some(context) = &self.context else { return Err(NotInvalidated::NoStamp) };
        let deleted =
            with_current_epoch(context, || invalidate::keys(context, keys, Some(Op::Delete))).await?;
        Ok(deleted.invalidated)
    }

    /// Stores entries of no dataset that were loaded after a snapshot was taken: the stamp rule orders them, and the
    /// counters as well. Answers the positions that were refused.
    pub async fn store(
        &self,
        batch: &EntryBatch,
        counters: &InvalidationCounters,
        read_at: &Snapshot,
    ) -> Result<Vec<usize>, ClientError> {
        let context = self.context()?;
        let current = epoch::current(context).await?;
        let precondition = Precondition::of_epoch(&current, &read_at.incarnation);
        let stamp = Some((precondition, read_at.snapshot.stamp()));
        let answer = context.redis.fill(batch, CounterRule::Unchanged(counters), stamp).await?;
        Ok(context.checked(None, answer)?)
    }
}
