//! What every flow is given.

use std::sync::{Arc, PoisonError, RwLock};

use super::catalog::{Catalog, Dataset};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::stores::postgres::Postgres;
use crate::stores::redis::{CacheError, Epoch, Redis, Standing};

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
    epoch: Arc<RwLock<Option<Epoch>>>,
}

impl Context {
    /// Prepares the stores; nothing connects yet.
    ///
    /// # Errors
    /// [`super::error::FlowError`] when a URL cannot be used.
    pub fn new(config: &Config) -> Result<Self, super::error::FlowError> {
        Ok(Self {
            postgres: Postgres::new(&config.postgres)?,
            redis: Redis::new(&config.redis, &config.service.namespace)?,
            catalog: Arc::new(Catalog::new(config.datasets.clone())),
            metrics: Arc::new(Metrics::new()),
            epoch: Arc::default(),
        })
    }

    /// The epoch, as it was last read.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        *self.epoch.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_epoch(&self, epoch: Option<Epoch>) {
        *self.epoch.write().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    /// Counts a refusal by Redis and hands the error on.
    pub fn count_refusal(&self, error: CacheError) -> CacheError {
        self.metrics
            .redis_refusals
            .get_or_create(&crate::metrics::ByReason::new(error.refusal.label()))
            .inc();
        error
    }
}

impl Dataset {
    /// What a script that writes this dataset's entries must find unchanged.
    #[must_use]
    pub fn standing<'a>(&'a self, epoch: &'a Epoch, incarnation: &'a str) -> Standing<'a> {
        Standing { epoch, incarnation, dataset: self.name(), revision: &self.revision }
    }
}
