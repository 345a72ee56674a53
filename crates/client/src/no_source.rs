//! In the place of `source.rs` where the library is compiled without Postgres: there are no datasets, all keys are the
//! application's own.

use std::sync::Arc;

use super::codec::Codec;
use super::error::ClientError;
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_engine::stores::redis::CacheError;
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::{EntryBatch, Shape};

/// No datasets.
#[derive(Debug)]
pub(super) struct Source;

/// There are no snapshots without a database.
#[derive(Debug, Clone)]
pub(super) enum Snapshot {}

/// Why entries of datasets were not invalidated here.
#[derive(Debug)]
#[expect(dead_code, reason = "callers distinguish what can happen with a database")]
pub(super) enum NotInvalidated {
    Redis(CacheError),
    /// A worker must see to it.
    NoStamp,
    Failed(ClientError),
}

#[expect(clippy::unused_self, clippy::unused_async, reason = "the same calls as with a database")]
impl Source {
    pub fn none() -> Self {
        Self
    }

    pub fn is_some(&self) -> bool {
        false
    }

    pub fn metrics(&self) -> Option<Arc<Metrics>> {
        None
    }

    pub fn codecs(&self, _own: Codec) -> impl Iterator<Item = (String, Codec, Shape)> {
        std::iter::empty()
    }

    pub fn prefixes(&self) -> Vec<&str> {
        Vec::new()
    }

    pub fn position_of(&self, _key: &str) -> Option<usize> {
        None
    }

    pub fn dataset_of(&self, _key: &str) -> Option<&str> {
        None
    }

    pub async fn learn_types(&self) {}

    pub async fn invalidate_tags(&self, _tags: &[String]) -> Result<u64, NotInvalidated> {
        Err(NotInvalidated::NoStamp)
    }

    pub async fn delete(&self, _keys: &[String]) -> Result<u64, NotInvalidated> {
        Err(NotInvalidated::NoStamp)
    }

    pub async fn store(
        &self,
        _batch: &EntryBatch,
        _counters: &InvalidationCounters,
        read_at: &Snapshot,
    ) -> Result<Vec<usize>, ClientError> {
        match *read_at {}
    }
}
