//! What is behind a space: Redis alone, or with `postgres` also the dataset that it is.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{Space, SpaceKey};
use crate::error::ClientError;

#[cfg(feature = "postgres")]
impl<K: SpaceKey + ?Sized, V: DeserializeOwned> Space<K, V> {
    pub(super) async fn get_far(&self, key: &str) -> Result<Option<V>, ClientError> {
        match &self.dataset {
            Some(dataset) => dataset.get_by_key(key, &self.policy).await,
            None => self.cache.get(key).await,
        }
    }

    pub(super) async fn get_many_far(&self, keys: &[&str]) -> Result<Vec<Option<V>>, ClientError> {
        match &self.dataset {
            Some(dataset) => dataset.get_many_by_key(keys, &self.policy).await.into_iter().collect(),
            None => self.cache.get_many(keys).await,
        }
    }

    /// Whether the space has a loader of its own.
    pub(super) fn is_loaded_from_elsewhere(&self) -> bool {
        self.dataset.is_some()
    }

    /// The age of the watermark, where it holds for this dataset.
    pub(super) fn watermark_age(&self) -> Option<Duration> {
        self.cache.core.near.watermark_age(self.dataset.as_ref()?.name())
    }
}

#[cfg(not(feature = "postgres"))]
#[expect(clippy::unused_self, reason = "the same calls as with a database")]
impl<K: SpaceKey + ?Sized, V: DeserializeOwned> Space<K, V> {
    pub(super) async fn get_far(&self, key: &str) -> Result<Option<V>, ClientError> {
        self.cache.get(key).await
    }

    pub(super) async fn get_many_far(&self, keys: &[&str]) -> Result<Vec<Option<V>>, ClientError> {
        self.cache.get_many(keys).await
    }

    pub(super) fn is_loaded_from_elsewhere(&self) -> bool {
        false
    }

    pub(super) fn watermark_age(&self) -> Option<Duration> {
        None
    }
}
