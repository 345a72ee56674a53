//! Entries of a dataset: read from Redis, and loaded from Postgres under a stamp where they are missing.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::core::Core;
use super::flight::Bytes;
use super::load::{Wish, Work};
use super::load_many::{ManyResult, ManyWork};
use super::policy::Policy;
use super::{Cache, ClientError};
use cachekeeper_engine::flows::catalog::Dataset;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::fill::fill;
use cachekeeper_engine::flows::fresh;
use cachekeeper_engine::flows::reload::with_current_order;
use cachekeeper_engine::stores::postgres::KeyValues;
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::token::Token;

/// A dataset of the configuration, for reading.
#[derive(Debug, Clone)]
pub struct DatasetCache {
    core: Arc<Core>,
    context: Context,
    dataset: Arc<Dataset>,
    policy: Arc<Policy>,
}

impl Cache {
    /// The dataset of this name.
    ///
    /// # Errors
    /// [`ClientError::NoSource`] where the cache was opened without datasets; [`ClientError::NoDataset`].
    pub fn dataset(&self, name: &str) -> Result<DatasetCache, ClientError> {
        let context = self.core.context.clone().ok_or(ClientError::NoSource)?;
        let dataset = context.catalog.get(name).ok_or_else(|| ClientError::NoDataset(name.to_owned()))?;
        let dataset = Arc::clone(dataset);
        let policy = Arc::new(Policy::ttl(dataset.settings.ttl));
        Ok(DatasetCache { core: Arc::clone(&self.core), context, dataset, policy })
    }
}

impl DatasetCache {
    /// The key of an entry, by the texts of its placeholders in their order.
    ///
    /// # Errors
    /// [`ClientError::Key`].
    pub fn key(&self, id: &[&str]) -> Result<String, ClientError> {
        let values: Vec<String> = id.iter().map(|text| (*text).to_owned()).collect();
        let problem = "has another number of parts than the dataset's key, or an empty one";
        self.dataset.key_of(&values).ok_or_else(|| ClientError::Key { key: id.join(" "), problem })
    }

    /// The entry: from Redis, or from Postgres, by one statement for all who ask at the same time. While Redis is down,
    /// from Postgres. None: there is no row.
    ///
    /// # Errors
    /// [`ClientError`], where it is in neither.
    pub async fn get<T: DeserializeOwned>(&self, id: &[&str]) -> Result<Option<T>, ClientError> {
        let key: Arc<str> = self.key(id)?.into();
        let wish = Wish {
            key: Arc::clone(&key),
            policy: Arc::clone(&self.policy),
            is_stamped: true,
            is_forced: false,
        };
        let many = self.work(vec![Arc::clone(&key)]);
        let mut work: Option<Work> = Some(Box::new(move |fence| {
            Box::pin(async move { many(vec![0], fence).await?.pop().unwrap_or(Ok(None)) })
        }));
        let bytes = self.core.obtain(&wish, &mut work).await?;
        self.typed(&key, bytes)
    }

    /// The entries of many ids, in their order, each as [`Self::get`] has it; what is missing is loaded by one statement.
    ///
    /// # Errors
    /// [`ClientError::Key`]. What fails for an id stands in the answer.
    pub async fn get_many<T: DeserializeOwned>(
        &self,
        ids: &[&[&str]],
    ) -> Result<Vec<Result<Option<T>, ClientError>>, ClientError> {
        let keys: Vec<Arc<str>> =
            ids.iter().map(|id| self.key(id).map(Arc::from)).collect::<Result<_, ClientError>>()?;
        let work = self.work(keys.clone());
        let results = self.core.obtain_many(&keys, &self.policy, true, work).await;
        let typed = |(key, result): (&Arc<str>, ManyResult)| result.and_then(|bytes| self.typed(key, bytes));
        Ok(keys.iter().zip(results).map(typed).collect())
    }

    /// The entry, at least as fresh as a token of a write: from Redis if the watermark says so, else from Postgres.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_since<T: DeserializeOwned>(
        &self,
        id: &[&str],
        token: &Token,
    ) -> Result<Option<T>, ClientError> {
        let key: Arc<str> = self.key(id)?.into();
        let command = async {
            match fresh::get(&self.context, &key, token).await {
                Ok(found) => Ok(Some(found)),
                Err(cachekeeper_engine::flows::error::FlowError::Cache(error)) => Err(error),
                Err(_other) => Ok(None),
            }
        };
        match self.core.ask("read an entry and the watermark", command).await {
            Ok(Some(fresh::Found::Fresh(Some(bytes)))) => self.typed(&key, Some(bytes.into())),
            _ => {
                let work = self.work(vec![Arc::clone(&key)]);
                let bytes =
                    work(vec![0], Some(InvalidationCounters::default())).await?.pop().unwrap_or(Ok(None))?;
                self.typed(&key, bytes)
            }
        }
    }

    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// The dataset's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.dataset.name()
    }

    pub(super) fn typed<T: DeserializeOwned>(
        &self,
        key: &str,
        bytes: Option<Bytes>,
    ) -> Result<Option<T>, ClientError> {
        let class = self.core.class_of(key);
        let Some(bytes) = bytes.filter(|bytes| **bytes != *class.codec.null()) else { return Ok(None) };
        // The worker's bytes are what the configuration says: loading again would bring the same.
        let decoded = class.codec.decode(&bytes).map(Some);
        decoded.map_err(|reason| ClientError::Decode { key: key.to_owned(), reason })
    }

    /// Loads entries under a stamp.
    fn work(&self, keys: Vec<Arc<str>>) -> ManyWork {
        let (context, dataset) = (self.context.clone(), Arc::clone(&self.dataset));
        let keys = Arc::new(keys);
        Arc::new(move |positions, fence| {
            let (context, dataset, keys) = (context.clone(), Arc::clone(&dataset), Arc::clone(&keys));
            Box::pin(async move {
                let wanted: Vec<(String, KeyValues)> = positions
                    .iter()
                    .filter_map(|at| keys.get(*at))
                    .filter_map(|key| Some((key.to_string(), dataset.read_key(key)?)))
                    .collect();
                let may_store = fence.is_some();
                let flow = with_current_order(&context, || fill(&context, &dataset, &wanted, may_store));
                let mut values = flow.await?.values;
                let found = |at: &usize| match keys.get(*at).and_then(|key| values.remove(&**key)) {
                    Some(value) => Ok(value.map(Bytes::from)),
                    None => Err(ClientError::Decode {
                        key: keys.get(*at).map(ToString::to_string).unwrap_or_default(),
                        reason: "its row cannot be encoded".to_owned(),
                    }),
                };
                Ok(positions.iter().map(found).collect())
            })
        })
    }
}
