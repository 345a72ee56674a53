//! What every flow is given.

mod on_shard;
mod pinned;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::backfill::{LostBackfills, SharedReads};
use super::catalog::{Catalog, Dataset};
use super::coverage::Coverage;
use super::directory;
use super::error::EngineError;
use super::event_scope::EventScope;
use super::history::{History, What};
use super::lease::worker_name;
use super::registrar::Registrar;
use super::watermark_watch::WatermarkWatch;
use crate::metrics::{ByReason, Metrics};
use crate::stores::postgres::{CaptureLimits, Postgres};
use crate::stores::redis::{
    Answer, CacheError, Claim, Cluster, Epoch, PlacedShard, PreconditionFailed, Redis, Registered,
};
use cachekeeper_config::{Config, FeedMode};
pub use on_shard::OnShard;

/// Between two looks at definitions that were not this process's.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Stores, datasets, metrics, and the epoch as this process knows it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    /// The source.
    pub postgres: Postgres,
    /// The cache.
    pub redis: Redis,
    /// The datasets.
    pub catalog: Arc<Catalog>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// How changes are captured.
    pub feed: FeedSettings,
    /// What events may touch.
    pub event_scope: Arc<EventScope>,
    /// What happened to entries, where somebody may ask for it: in a worker.
    pub history: Option<Arc<History>>,
    /// Registers the definitions of a worker (R16). A process that has none goes by those that are registered.
    pub(super) registrar: Option<Arc<Registrar>>,
    /// On a cluster, of a program as a whole: [`Self::of_shard`] is what works with entries.
    pub cluster: Option<Cluster>,
    /// On a shard of a cluster.
    pub(super) on_shard: Option<OnShard>,
    /// In a worker on a shard: reads that it has in common with the other shards.
    pub(super) shared_reads: Option<Arc<SharedReads>>,
    registered: Arc<RwLock<Arc<Registered>>>,
    epoch: Arc<RwLock<Option<Epoch>>>,
    coverage: Arc<RwLock<Option<Arc<Coverage>>>>,
    has_outbox: Arc<AtomicBool>,
    /// When it was last looked whether the registered definitions are this process's again.
    looked_again: Arc<Mutex<Option<Instant>>>,
    pub(super) watermark_watch: Arc<WatermarkWatch>,
    /// Backfills that have lost Postgres.
    pub lost_backfills: Arc<LostBackfills>,
}

/// How changes are captured, as the engine needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct FeedSettings {
    /// Whether they are.
    pub is_on: bool,
    /// Limits of the triggers.
    pub limits: CaptureLimits,
    /// How long applied changes are kept, for a Redis that is rolled back.
    pub retention: Duration,
    /// The watermark's age from which the worker is not ready.
    pub max_lag: Duration,
}

impl Context {
    /// That of a worker, which registers the definitions of its datasets. Nothing connects yet.
    ///
    /// # Errors
    /// [`EngineError`] when a URL cannot be used.
    pub fn of_worker(config: &Config) -> Result<Self, EngineError> {
        let context = Self::new(config)?;
        if context.cluster.is_some() {
            return Ok(Self { history: Some(Arc::default()), ..context });
        }
        Ok(context.registering(config))
    }

    /// The worker's name, which no other one has; none: this is not a worker's.
    #[must_use]
    pub fn worker_name(&self) -> Option<&str> {
        self.registrar.as_ref().map(|registrar| registrar.worker.as_str())
    }

    /// Prepares the stores; nothing connects yet.
    ///
    /// # Errors
    /// [`EngineError`] when a URL cannot be used.
    pub fn new(config: &Config) -> Result<Self, EngineError> {
        let Some(cluster) = Cluster::new(&config.redis, &config.service.namespace)? else {
            return Self::on_one_redis(config);
        };
        let (postgres, redis) = (Postgres::new(&config.postgres)?, cluster.any_node()?);
        Ok(Self { cluster: Some(cluster), ..Self::with_stores(config, postgres, redis) })
    }

    /// The same for what does not know clusters.
    ///
    /// # Errors
    /// [`EngineError`] when a URL cannot be used, or names a cluster.
    pub fn on_one_redis(config: &Config) -> Result<Self, EngineError> {
        let redis = Redis::new(&config.redis, &config.service.namespace)?;
        Ok(Self::with_stores(config, Postgres::new(&config.postgres)?, redis))
    }

    /// That of one shard of a cluster: what is registered there, and its epoch, are the shard's own.
    ///
    /// # Errors
    /// [`EngineError`] when the address of its server cannot be used.
    pub fn of_shard(
        config: &Config,
        postgres: &Postgres,
        cluster: &Cluster,
        shard: &PlacedShard,
    ) -> Result<Self, EngineError> {
        let redis = cluster.shard(&shard.node.address, shard.number)?;
        let metrics = Arc::new(Metrics::of_shard(shard.number));
        let on_shard = Some(OnShard::new(cluster, shard));
        Ok(Self { metrics, on_shard, ..Self::with_stores(config, postgres.clone(), redis) })
    }

    /// The same for a worker, which registers the definitions of its datasets.
    #[must_use]
    pub fn registering(self, config: &Config) -> Self {
        let (release, service) = (config.service.release, directory::of_service(config));
        let registrar = Registrar::new(worker_name(), release, service, Arc::clone(&self.catalog));
        Self { registrar: Some(Arc::new(registrar)), history: Some(Arc::default()), ..self }
    }

    fn with_stores(config: &Config, postgres: Postgres, redis: Redis) -> Self {
        Self {
            postgres,
            redis,
            catalog: Arc::new(Catalog::new(config.datasets.clone(), &config.stream_keys())),
            metrics: Arc::new(Metrics::new()),
            feed: FeedSettings {
                is_on: config.feed.mode == FeedMode::Outbox,
                limits: CaptureLimits { max_rows: config.feed.max_rows, max_outbox: config.feed.max_outbox },
                retention: config.feed.retention,
                max_lag: config.feed.max_lag,
            },
            event_scope: Arc::new(EventScope::new(config)),
            history: None,
            registrar: None,
            cluster: None,
            on_shard: None,
            shared_reads: None,
            registered: Arc::default(),
            epoch: Arc::default(),
            coverage: Arc::default(),
            has_outbox: Arc::default(),
            looked_again: Arc::default(),
            watermark_watch: Arc::default(),
            lost_backfills: Arc::default(),
        }
    }

    /// The same, knowing what happened before: that of a worker of this process which this one replaces.
    #[must_use]
    pub fn with_history_of(self, before: &Self) -> Self {
        Self { history: before.history.clone(), ..self }
    }

    /// The same, reading what others read at the same moment together with them.
    #[must_use]
    pub fn reading_with_others(self, shared: &Arc<SharedReads>) -> Self {
        Self { shared_reads: Some(Arc::clone(shared)), ..self }
    }

    /// The same with only those of its datasets that have these names.
    #[must_use]
    pub fn with_only(&self, is_wanted: impl Fn(&str) -> bool) -> Self {
        let datasets = self.catalog.iter().filter(|dataset| is_wanted(dataset.name()));
        self.with(Catalog::of(datasets.cloned().collect()))
    }

    /// The same with other datasets.
    pub(super) fn with(&self, catalog: Catalog) -> Self {
        Self { catalog: Arc::new(catalog), ..self.clone() }
    }

    /// The epoch, as it was last read.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        *self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_epoch(&self, epoch: Option<Epoch>) {
        *self.epoch.write().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    /// What is registered, as a worker has last seen it.
    #[must_use]
    pub fn registered(&self) -> Arc<Registered> {
        Arc::clone(&self.registered.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nobody else is fitter to lead the feed (R16).
    #[must_use]
    pub fn may_lead(&self) -> bool {
        let registered = self.registered();
        registered.may_lead || registered.revisions.is_empty()
    }

    pub(super) fn set_registered(&self, registered: Registered) {
        *self.registered.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registered);
    }

    /// What the feed follows, as it was last looked at.
    #[must_use]
    pub fn coverage(&self) -> Option<Arc<Coverage>> {
        self.coverage.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what was found.
    pub fn set_coverage(&self, coverage: Coverage) {
        *self.coverage.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(coverage));
    }

    /// Whether this process has seen that the outbox is there and may be written.
    pub(super) fn has_outbox(&self) -> bool {
        self.has_outbox.load(Ordering::Relaxed)
    }

    pub(super) fn set_has_outbox(&self) {
        self.has_outbox.store(true, Ordering::Relaxed);
    }

    /// Whether it is time to look again; then it counts as done.
    pub(super) fn may_look_again(&self) -> bool {
        let mut looked = self.looked_again.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = looked.is_none_or(|looked| LOOK_AGAIN <= looked.elapsed());
        if is_due {
            *looked = Some(Instant::now());
        }
        is_due
    }

    /// What a script answered, or the error that its caller must begin again with.
    ///
    /// # Errors
    /// [`EngineError::PreconditionFailed`], [`EngineError::Superseded`].
    pub fn checked<T>(&self, dataset: Option<&Dataset>, answer: Answer<T>) -> Result<T, EngineError> {
        match answer {
            Answer::Done(value) => Ok(value),
            Answer::Failed(failed) => Err(self.on_precondition_failed(dataset, failed)),
        }
    }

    /// Whether a job may claim to be whole, or must begin again because Redis lost some of its steps.
    ///
    /// # Errors
    /// As [`Self::checked`], and [`EngineError::RedisRolledBack`].
    pub(super) fn claimed(
        &self,
        dataset: Option<&Dataset>,
        answer: Answer<Claim>,
    ) -> Result<(), EngineError> {
        match self.checked(dataset, answer)? {
            Claim::Accepted => Ok(()),
            Claim::RolledBack => {
                self.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                Err(EngineError::RedisRolledBack)
            }
        }
    }

    /// The one place that acts on a failed precondition. A definition that is not the dataset's any more ends this process's
    /// work on it; a revision that changed is read anew before anything is loaded again; else what is known of the epoch is out of date, and is read anew before anything else is tried.
    pub(super) fn on_precondition_failed(
        &self,
        dataset: Option<&Dataset>,
        failed: PreconditionFailed,
    ) -> EngineError {
        match (failed, dataset) {
            // What was known is out of date. The next look tells whose definition counts.
            (PreconditionFailed::Revision, Some(dataset)) if dataset.known_revision().is_some() => {
                dataset.set_revision(None);
                self.set_epoch(None);
                EngineError::PreconditionFailed(failed)
            }
            (PreconditionFailed::Revision, Some(dataset)) => dataset.supersede(),
            (PreconditionFailed::Outdated, Some(dataset)) => {
                dataset.set_revision(None);
                EngineError::PreconditionFailed(failed)
            }
            (PreconditionFailed::Revision | PreconditionFailed::Outdated, None)
            | (
                PreconditionFailed::Members
                | PreconditionFailed::Version
                | PreconditionFailed::Guard
                | PreconditionFailed::Adopted,
                _,
            ) => EngineError::PreconditionFailed(failed),
            (
                PreconditionFailed::Table
                | PreconditionFailed::Epoch
                | PreconditionFailed::Incarnation
                | PreconditionFailed::Run,
                _,
            ) => {
                self.set_epoch(None);
                EngineError::PreconditionFailed(failed)
            }
        }
    }

    /// Notes what happened to entries of a dataset, where that is kept.
    pub(crate) fn note_touches<'k>(
        &self,
        of: (&str, &'static str),
        touches: impl Iterator<Item = (&'k str, What, Option<&'k str>)>,
    ) {
        if let Some(history) = &self.history {
            history.note(of, touches);
        }
    }

    /// Counts a refusal by Redis and hands the error on.
    pub(crate) fn count_refusal(&self, error: CacheError) -> CacheError {
        self.metrics.redis_refusals.get_or_create(&ByReason::new(error.refusal.label())).inc();
        error
    }
}
