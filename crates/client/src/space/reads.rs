//! Reading a space, and loading what is missing.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::near_reads::Found;
use super::{Space, SpaceKey};
use crate::error::ClientError;
use crate::get_or_load::Loaded;
use crate::policy::Age;

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
    /// the database. None: it is not known (there is no watermark, the dataset is not covered, or the space is none of a dataset).
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
        let key = self.key(key)?;
        let Some(near) = &self.near else { return self.get_far(&key).await };
        match self.read_near(near, &key).await?.found {
            Found::Missing => self.load_missing(&key).await,
            found => Ok(found.value()),
        }
    }

    /// The values of keys, in their order; none for each that is missing. What is not near comes in one round trip.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_many(&self, keys: &[&K]) -> Result<Vec<Option<V>>, ClientError> {
        let keys: Vec<String> = keys.iter().map(|key| self.key(key)).collect::<Result<_, _>>()?;
        let mut values = vec![None; keys.len()];
        let mut far: Vec<(usize, &String)> = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            let hit = self.near.as_ref().and_then(|near| self.near_hit(near, key));
            match (hit.map(|hit| hit.found), values.get_mut(at)) {
                (Some(Found::Value(value)), Some(place)) => *place = Some(value),
                (Some(Found::Null), _) => {}
                _ => far.push((at, key)),
            }
        }
        if far.is_empty() {
            return Ok(values);
        }
        let wanted: Vec<&str> = far.iter().map(|(_, key)| key.as_str()).collect();
        let read = self.get_many_far(&wanted).await?;
        for ((at, _), value) in far.into_iter().zip(read) {
            if let Some(place) = values.get_mut(at) {
                *place = value;
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
        let read = self.read_near(near, &key).await?;
        let behind_redis = read.stale_at_most.unwrap_or_default();
        let value = match read.found {
            Found::Missing => self.load_missing(&key).await?,
            found => found.value(),
        };
        Ok(Aged { value, behind_redis, behind_database })
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
        if let Some(near) = &self.near {
            // Where Redis cannot be asked, the loader is.
            if let Ok(read) = self.read_near(near, &key).await {
                let is_fresh = self.policy.judge(&key, read.left_ms) == Age::Fresh;
                match read.found {
                    Found::Value(value) if is_fresh => return Ok(Some(value)),
                    Found::Null if is_fresh => return Ok(None),
                    _ => {}
                }
            }
        }
        let loader = || async move { loader().await.map(IntoLoaded::into_loaded) };
        self.cache.get_or_load(&key, &self.policy, loader).await
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
