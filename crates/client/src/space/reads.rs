//! Reading a space, and loading what is missing.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use tokio::time::Instant;

use super::near_reads::{Found, NearRead};
use super::{Space, SpaceKey};
use crate::error::ClientError;
use crate::get_or_load::{Loaded, ManyLoaded, Partial};
use crate::moments::after;
use crate::near::NearStore;
use crate::policy::{Age, Sliding};
use crate::read::Read;

/// A value with how old it may be.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Aged<V> {
    /// The value; none: there is none.
    pub value: Option<V>,
    /// Whatever was changed in Redis more than this before the call is seen: the age of the near cache's proof for a value that is near,
    /// nothing for one from Redis itself, as the server that answered has it. (For about a second after a failover that leaves
    /// connections open, a demoted server may still answer; near values are read from the server that tells of changes, and no other.)
    pub behind_redis: Duration,
    /// How far Redis may be behind the database, for entries of a dataset: the age of the watermark, by the clocks of this machine and of
    /// the database. None: it is not known (there is no watermark, the dataset is not covered, the space is none of a dataset, or nothing
    /// is near in this cache: the watermark is heard with the changes).
    pub behind_database: Option<Duration>,
}

impl<K, V> Space<K, V>
where
    K: SpaceKey + ?Sized,
    V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    /// The value of a key; none where there is none. In a dataset's space, what is missing is loaded from Postgres.
    ///
    /// # Errors
    /// [`ClientError`]: never because the value is missing.
    pub async fn get(&self, key: &K) -> Result<Option<V>, ClientError> {
        if !self.is_loaded_from_elsewhere()
            && let Some(read) = self.near_now(key)
        {
            return Ok(read.found.value());
        }
        let key = self.key(key)?;
        let Some(near) = &self.near else { return self.get_far(&key).await };
        match self.read_near(near, &key).await {
            Ok(read) if self.is_served(&key, &read) => Ok(read.found.value()),
            Err(error) if self.has_waited_in_vain(&error) => Err(error),
            // As without a near cache: it may be loaded, or there may be an old value for bad times.
            Ok(_) | Err(_) => self.get_far(&key).await,
        }
    }

    /// Whether Redis did not answer, and nobody else is to be asked: to ask it again would double the wait.
    fn has_waited_in_vain(&self, error: &ClientError) -> bool {
        !self.is_loaded_from_elsewhere() && matches!(error, ClientError::Unavailable { .. })
    }

    /// Whether what was read is the answer. What is old by the policy, or missing where there is a loader, is not.
    fn is_served(&self, key: &str, read: &NearRead<V>) -> bool {
        if !self.is_loaded_from_elsewhere() {
            return true;
        }
        !matches!(read.found, Found::Missing) && self.is_fresh(key, read.left_ms)
    }

    /// Whether a value needs no load by the policy. One that lives shorter than the policy says, as its loader wanted, is not due early.
    fn is_fresh(&self, key: &str, left_ms: i64) -> bool {
        match self.policy.judge(key, left_ms) {
            Age::Fresh => true,
            Age::Due => self.cache.core.flights.not_due.holds(key),
            Age::Stale => false,
        }
    }

    /// The values of keys, in their order; none for each that is missing. What is not near is asked for at once.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_many(&self, keys: &[&K]) -> Result<Vec<Option<V>>, ClientError> {
        let keys: Vec<String> = keys.iter().map(|key| self.key(key)).collect::<Result<_, _>>()?;
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        match &self.near {
            Some(near) => self.read_many_near(near, &keys).await,
            None => self.get_many_far(&keys).await,
        }
    }

    /// Reads what is near, the rest from Redis, and then near; what is missing is loaded at once where the space has a loader.
    async fn read_many_near(
        &self,
        near: &Arc<NearStore<V>>,
        keys: &[&str],
    ) -> Result<Vec<Option<V>>, ClientError> {
        let (reads, error) = self.read_all_near(near, keys, None).await;
        if let Some(error) = error.filter(|error| self.has_waited_in_vain(error)) {
            return Err(error);
        }
        let mut values = vec![None; keys.len()];
        let mut far: Vec<usize> = (reads.len()..keys.len()).collect();
        for (((at, key), read), place) in keys.iter().enumerate().zip(reads).zip(&mut values) {
            if self.is_served(key, &read) {
                *place = read.found.value();
            } else {
                far.push(at);
            }
        }
        if !far.is_empty() {
            let wanted: Vec<&str> = far.iter().filter_map(|at| keys.get(*at)).copied().collect();
            for (at, value) in far.into_iter().zip(self.get_many_far(&wanted).await?) {
                if let Some(place) = values.get_mut(at) {
                    *place = value;
                }
            }
        }
        Ok(values)
    }

    /// The value, and how old it may be.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_aged(&self, key: &K) -> Result<Aged<V>, ClientError> {
        let key = self.key(key)?;
        let behind_database = self.watermark_age();
        let Some(near) = &self.near else {
            return Ok(Aged {
                value: self.get_far(&key).await?,
                behind_redis: Duration::ZERO,
                behind_database,
            });
        };
        match self.read_near(near, &key).await {
            Ok(read) if self.is_served(&key, &read) => {
                let behind_redis = read.stale_at_most.unwrap_or_default();
                Ok(Aged { value: read.found.value(), behind_redis, behind_database })
            }
            Err(error) if self.has_waited_in_vain(&error) => Err(error),
            Ok(_) | Err(_) => {
                let value = self.get_far(&key).await?;
                Ok(Aged { value, behind_redis: Duration::ZERO, behind_database })
            }
        }
    }

    /// The value: from the cache, or from `loader`, which runs once for all who ask at the same time
    /// ([`crate::Cache::get_or_load`] says how). The loader answers a value, an `Option` of one, or a [`Loaded`] with more to say.
    ///
    /// # Errors
    /// As [`crate::Cache::get_or_load`]; [`ClientError::OfDataset`] in a dataset's space, whose loader is Postgres.
    pub async fn get_or_load<L, U, E>(
        &self,
        key: &K,
        loader: impl FnOnce() -> U + Send + 'static,
    ) -> Result<Option<V>, ClientError>
    where
        L: IntoLoaded<V> + Send,
        U: Future<Output = Result<L, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let key = self.key(key)?;
        self.cache.core.check_own(&key)?;
        let began = Instant::now();
        if let Some(near) = &self.near
            && let Some(value) = self.fresh_near(near, &key).await
        {
            return Ok(value);
        }
        let loader = || async move { loader().await.map(IntoLoaded::into_loaded) };
        self.cache.get_or_load(&key, &self.policy.with_time_left(began.elapsed()), loader).await
    }

    /// A value or an explicit null that is fresh by the policy. Where Redis cannot be asked in time there is none: the loader is asked.
    async fn fresh_near(&self, near: &Arc<NearStore<V>>, key: &str) -> Option<Option<V>> {
        self.all_fresh_near(near, &[key]).await.pop().flatten()
    }

    /// The same of many, in their order.
    async fn all_fresh_near(&self, near: &Arc<NearStore<V>>, keys: &[&str]) -> Vec<Option<Option<V>>> {
        let until = Some(after(self.policy.time_for_a_look()));
        let (reads, _error) = self.read_all_near(near, keys, until).await;
        let judged = keys.iter().zip(reads).map(|(key, read)| {
            let is_fresh = !matches!(read.found, Found::Missing) && self.is_fresh(key, read.left_ms);
            is_fresh.then(|| read.found.value())
        });
        let mut judged: Vec<_> = judged.collect();
        judged.resize(keys.len(), None);
        judged
    }

    /// The values of keys: each as [`Self::get_or_load`] has it, but what is missing is loaded by one call of `loader`, with the keys that
    /// it is to load ([`crate::Cache::get_or_load_many`] says more).
    ///
    /// # Errors
    /// [`ClientError::Key`]; [`ClientError::OfDataset`] in a dataset's space. What fails for a key stands in the answer.
    pub async fn get_or_load_many<M, U, E>(
        &self,
        keys: &[K],
        loader: impl Fn(Vec<K>) -> U + Send + Sync + 'static,
    ) -> Result<Partial<K, V>, ClientError>
    where
        K: Clone + Eq + Hash + Send + Sync + 'static,
        M: Into<ManyLoaded<K, V>> + Send,
        U: Future<Output = Result<M, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let names: Vec<String> = keys.iter().map(|key| self.key(key)).collect::<Result<_, _>>()?;
        names.iter().try_for_each(|name| self.cache.core.check_own(name))?;
        // Each was rendered just now.
        let key_of = |key: &K| self.key(key).unwrap_or_default();
        let Some(near) = &self.near else {
            return self.cache.get_or_load_many(keys, key_of, &self.policy, loader).await;
        };
        let began = Instant::now();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fresh = self.all_fresh_near(near, &names).await;
        let (mut found, mut far) = (HashMap::new(), Vec::new());
        for (key, fresh) in keys.iter().zip(fresh) {
            match fresh {
                Some(value) => found.extend(value.map(|value| (key.clone(), value))),
                None => far.push(key.clone()),
            }
        }
        if far.is_empty() {
            return Ok(Partial { values: found, failed: Vec::new() });
        }
        let policy = self.policy.with_time_left(began.elapsed());
        let mut loaded = self.cache.get_or_load_many(&far, key_of, &policy, loader).await?;
        loaded.values.extend(found);
        Ok(loaded)
    }

    /// As [`Self::get`]; a hit extends the entry's life in the same command. It goes past the near cache.
    ///
    /// # Errors
    /// As [`crate::Cache::get_sliding`].
    pub async fn get_sliding(&self, key: &K, sliding: Sliding) -> Result<Option<V>, ClientError> {
        self.cache.get_sliding(&self.key(key)?, sliding).await
    }

    /// As [`crate::Cache::read`]: what Redis has under a key, and tells a miss from a known absence. Nothing is loaded, and it goes past
    /// the near cache.
    ///
    /// # Errors
    /// [`ClientError::Key`] where the key cannot be rendered.
    pub async fn read(&self, key: &K) -> Result<Read<V>, ClientError> {
        Ok(self.cache.read(&self.key(key)?).await)
    }

    /// The value's bytes as they stand in Redis.
    ///
    /// # Errors
    /// As [`crate::Cache::get_bytes`].
    pub async fn get_bytes(&self, key: &K) -> Result<Option<Vec<u8>>, ClientError> {
        self.cache.get_bytes(&self.key(key)?).await
    }

    /// Whether a key exists in Redis.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn exists(&self, key: &K) -> Result<bool, ClientError> {
        self.cache.exists(&self.key(key)?).await
    }
}

/// What a loader may answer: a value, an `Option` of one, or a [`Loaded`].
pub trait IntoLoaded<V> {
    /// The same, with all that can be said.
    fn into_loaded(self) -> Loaded<V>;
}

impl<V> IntoLoaded<V> for V {
    fn into_loaded(self) -> Loaded<V> {
        Loaded::found(self)
    }
}

impl<V> IntoLoaded<V> for Option<V> {
    fn into_loaded(self) -> Loaded<V> {
        self.into()
    }
}

impl<V> IntoLoaded<V> for Loaded<V> {
    fn into_loaded(self) -> Self {
        self
    }
}
