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
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::event::Op;

/// Where the datasets' entries come from; nothing in a cache over Redis alone.
#[derive(Debug)]
pub(super) struct Source {
    context: Option<Context>,
    types: Arc<KeyTypes>,
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
        Self { context: Some(context), types: Arc::default() }
    }

    pub fn none() -> Self {
        Self { context: None, types: Arc::default() }
    }

    pub fn is_some(&self) -> bool {
        self.context.is_some()
    }

    pub fn context(&self) -> Result<&Context, ClientError> {
        self.context.as_ref().ok_or(ClientError::NoSource)
    }

    /// The worker's metrics, where a worker's stores are shared.
    pub fn metrics(&self) -> Option<Arc<Metrics>> {
        self.context.as_ref().map(|context| Arc::clone(&context.metrics))
    }

    /// Names and codecs of the datasets, in their order.
    pub fn codecs(&self) -> impl Iterator<Item = (String, Codec)> {
        let datasets = self.context.iter().flat_map(|context| context.catalog.iter());
        datasets.map(|dataset| {
            let format = match dataset.settings.format {
                Format::Json { .. } => ValueFormat::Json,
                Format::MessagePack { .. } | Format::Raw { .. } => ValueFormat::MessagePack,
            };
            (dataset.name().to_owned(), Codec { format, compression: dataset.settings.compression })
        })
    }

    /// What the keys of datasets begin with.
    pub fn prefixes(&self) -> Vec<&str> {
        let datasets = self.context.iter().flat_map(|context| context.catalog.iter());
        datasets.map(|dataset| dataset.settings.key.prefix()).collect()
    }

    /// The position of the dataset that a key belongs to.
    pub fn position_of(&self, key: &str) -> Option<usize> {
        self.context.as_ref()?.catalog.position_of_key(key)
    }

    /// The name of the dataset that a key belongs to.
    pub fn dataset_of(&self, key: &str) -> Option<&str> {
        let context = self.context.as_ref()?;
        let position = context.catalog.position_of_key(key)?;
        context.catalog.iter().nth(position).map(|dataset| dataset.name())
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
        let Some(context) = &self.context else { return Err(NotInvalidated::NoStamp) };
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
