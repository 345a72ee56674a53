//! Spaces: keys of one kind under one name, with one policy, one format and one metric label.

mod far;
mod keys;
mod near_reads;
mod reads;
mod short_text;
#[cfg(feature = "postgres")]
mod tokens;
mod writes;

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use keys::{Shown, SpaceKey};
pub use reads::{Aged, IntoLoaded};
#[cfg(feature = "postgres")]
pub use tokens::{Freshness, ReadAt};

use super::codec::{Codec, ValueFormat};
use super::core::{Cache, check_key};
#[cfg(feature = "postgres")]
use super::dataset::DatasetCache;
use super::error::ClientError;
use super::key_class::{KeyClass, beginning};
use super::near::{Near, NearStore};
use super::policy::Policy;
use cachekeeper_config::Compression;

/// Values of one kind, by typed keys. Cheap to clone.
///
/// Every operation takes the policy from here: how long values live, their tags, what happens when a load fails or is slow. So what a
/// `set` stores is what a read expects. [`Self::with`] has another policy for a call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), cachekeeper_client::ClientError> {
/// use std::time::Duration;
/// use cachekeeper_client::{Cache, Policy};
///
/// let cache = Cache::in_memory().build();
/// let rates = cache
///     .space::<str, f64>("rate")
///     .policy(Policy::ttl(Duration::from_secs(300)).fail_safe(Duration::from_secs(3600)))
///     .build()?;
/// let rate = rates.get_or_load("eur", || async { Ok::<_, std::io::Error>(1.08) }).await?;
/// assert_eq!(rate, Some(1.08));
/// assert_eq!(cache.get::<f64>("rate:eur").await?, Some(1.08));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Space<K: ?Sized, V> {
    cache: Cache,
    /// What the keys begin with, the colon included; of a dataset, what its template begins with.
    prefix: Arc<str>,
    policy: Arc<Policy>,
    class: Arc<KeyClass>,
    near: Option<Arc<NearStore<V>>>,
    #[cfg(feature = "postgres")]
    dataset: Option<DatasetCache>,
    keys: PhantomData<fn(&K)>,
}

impl<K: ?Sized, V> Clone for Space<K, V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            prefix: Arc::clone(&self.prefix),
            policy: Arc::clone(&self.policy),
            class: Arc::clone(&self.class),
            near: self.near.clone(),
            #[cfg(feature = "postgres")]
            dataset: self.dataset.clone(),
            keys: PhantomData,
        }
    }
}

/// How a space behaves; [`Self::build`] makes it.
#[derive(Debug, Clone)]
pub struct SpaceBuilder<K: ?Sized, V> {
    cache: Cache,
    name: String,
    policy: Option<Policy>,
    codec: Codec,
    near: Option<Near>,
    #[cfg(feature = "postgres")]
    dataset: Option<DatasetCache>,
    keys: PhantomData<fn(&K)>,
    values: PhantomData<fn() -> V>,
}

impl Cache {
    /// A space of keys `name:…`. Make it once and keep it: names are known for the life of the cache (labels of metrics, prefixes that
    /// workers are told), so they are few, and not made of data. A key of another space whose name begins so (`a:b` beside `a`) is a key of
    /// both; it has the format of the longer name.
    #[must_use]
    pub fn space<K: SpaceKey + ?Sized, V>(&self, name: &str) -> SpaceBuilder<K, V> {
        SpaceBuilder {
            cache: self.clone(),
            name: name.to_owned(),
            policy: None,
            codec: self.core.classes.own.codec,
            near: None,
            #[cfg(feature = "postgres")]
            dataset: None,
            keys: PhantomData,
            values: PhantomData,
        }
    }
}

#[cfg(feature = "postgres")]
impl DatasetCache {
    /// The dataset as a space, whose loader is Postgres. Its keys are those of the dataset's template; lifetimes, tags and format
    /// are the worker's. Of a policy, what concerns loads counts: timeouts, eager loads, fail-safe, the load lock.
    #[must_use]
    pub fn space<K: SpaceKey + ?Sized, V>(&self) -> SpaceBuilder<K, V> {
        SpaceBuilder {
            cache: self.cache(),
            name: self.name().to_owned(),
            policy: None,
            codec: self.class().codec,
            near: None,
            dataset: Some(self.clone()),
            keys: PhantomData,
            values: PhantomData,
        }
    }
}

impl<K, V> SpaceBuilder<K, V>
where
    K: SpaceKey + ?Sized,
    V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    /// How values live and are loaded (default: an hour, or what the dataset says).
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// The bytes of the values (default: the cache's). A dataset's have the dataset's format.
    #[must_use]
    pub fn format(mut self, format: ValueFormat) -> Self {
        self.codec.format = format;
        self
    }

    /// Compresses values from a size on (default: as the cache does).
    #[must_use]
    pub fn compression(mut self, compression: Option<Compression>) -> Self {
        self.codec.compression = compression;
        self
    }

    /// Keeps decoded values in this process, coherent within a bound. Where Redis does not tell of changes (the user may not run
    /// `CLIENT TRACKING`, or the server does not know it), reads go to Redis.
    #[must_use]
    pub fn near(mut self, near: Near) -> Self {
        self.near = Some(near);
        self
    }

    /// The space. Several with the same name share their keys; their format must be the same.
    ///
    /// # Errors
    /// [`ClientError::Key`] for a name that no key may begin with; [`ClientError::Setting`].
    pub fn build(self) -> Result<Space<K, V>, ClientError> {
        let core = &self.cache.core;
        #[cfg(feature = "postgres")]
        let of_dataset = self.dataset.as_ref().map(|dataset| {
            (dataset.prefix().to_owned(), Arc::clone(dataset.class()), (**dataset.policy()).clone())
        });
        #[cfg(not(feature = "postgres"))]
        let of_dataset: Option<(String, Arc<KeyClass>, Policy)> = None;
        let (prefix, class, policy) = match of_dataset {
            Some(known) => known,
            None => {
                check_key(&self.name)?;
                let prefix = format!("{}:", self.name);
                check_key(&prefix)?;
                let new = KeyClass::new(&self.name, self.codec, &core.metrics);
                let class = core.classes.of_space(&prefix, new);
                if class.codec != self.codec {
                    let problem = format!("another space {:?} has another format", self.name);
                    return Err(ClientError::Setting { setting: "format", problem });
                }
                core.prefixes.add(&prefix);
                (prefix, class, Policy::default())
            }
        };
        let near = self.near.map(|near| near.checked()).transpose()?;
        if near.is_some() && prefix.is_empty() {
            let problem = "the key of this dataset begins with a column, so Redis cannot be asked to tell of its changes: begin it with a text";
            return Err(ClientError::Setting { setting: "near", problem: problem.to_owned() });
        }
        let near = near.map(|limits| NearStore::new(&core.near, &prefix, limits));
        Ok(Space {
            prefix: prefix.into(),
            policy: Arc::new(self.policy.unwrap_or(policy)),
            class,
            near,
            #[cfg(feature = "postgres")]
            dataset: self.dataset,
            cache: self.cache,
            keys: PhantomData,
        })
    }
}

impl<K: SpaceKey + ?Sized, V> Space<K, V> {
    /// The same values, and another policy for what is called on the answer.
    #[must_use]
    pub fn with(&self, policy: Policy) -> Self {
        Self { policy: Arc::new(policy), ..self.clone() }
    }

    /// How values live and are loaded.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The key in Redis, as every program can read it.
    ///
    /// # Errors
    /// [`ClientError::Key`] for a dataset's space, where the key has another number of parts than the template, or an empty one.
    pub fn key(&self, key: &K) -> Result<String, ClientError> {
        #[cfg(feature = "postgres")]
        if let Some(dataset) = &self.dataset {
            let mut parts = Vec::with_capacity(K::PARTS);
            key.parts(&mut |part| parts.push(part.to_string()));
            return dataset.key_of_parts(&parts);
        }
        let mut text = String::with_capacity(self.prefix.len() + 24);
        text.push_str(&self.prefix);
        match keys::render(key, &mut text) {
            Ok(()) => Ok(text),
            Err(_of_a_part) => Err(ClientError::Key { key: beginning(&text), problem: "does not display" }),
        }
    }
}
