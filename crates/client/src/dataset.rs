//! Caches over datasets, and their entries: read from Redis, and loaded from Postgres under a stamp where they are missing.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::backend::Backend;
use super::builder::CacheBuilder;
use super::core::{Cache, Core};
use super::error::ClientError;
use super::flight::{Bytes, LoadRequest, LoadedBytes, Loader};
use super::in_memory::{InMemory, Table};
use super::key_class::KeyClass;
use super::policy::Policy;
use super::source::{Snapshot, Source};
use super::waits::is_within_load;
use cachekeeper_config::Config;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::{self, with_current_epoch};
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::load::{Job, Keys, LoadOptions, load};
use cachekeeper_engine::tokens;
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::token::Token;

/// A dataset of the configuration, for reading.
#[derive(Debug, Clone)]
pub struct DatasetCache {
    core: Arc<Core>,
    rows: RowSource,
    class: Arc<KeyClass>,
    policy: Arc<Policy>,
}

/// Where the entries of a dataset are loaded from.
#[derive(Debug, Clone)]
enum RowSource {
    Postgres(Arc<Context>, Arc<Dataset>),
    /// Of a cache in memory.
    Memory(InMemory, Arc<Table>),
}

impl Cache {
    /// A cache over the servers and datasets of a configuration, as the worker has it.
    ///
    /// # Errors
    /// [`ClientError`] when a URL cannot be used.
    pub fn open(config: &Config) -> Result<CacheBuilder, ClientError> {
        let builder = Self::over(Context::on_one_redis(config)?);
        let channel = config.invalidation.channels.first();
        let builder = channel.iter().fold(builder, |builder, channel| builder.channel(channel));
        let stream = config.invalidation.stream.iter();
        Ok(stream.fold(builder, |builder, stream| builder.stream(stream)))
    }

    /// A cache over stores that the caller has prepared.
    #[must_use]
    pub fn over(context: Context) -> CacheBuilder {
        CacheBuilder::new(Backend::Redis(Box::new(context.redis.clone())), Source::new(context))
    }

    /// A snapshot of Postgres, for [`super::Loaded::as_of`]: take it before the loader reads.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NoSource`] without Postgres.
    pub async fn snapshot(&self) -> Result<Snapshot, ClientError> {
        let context = self.core.source.context()?;
        Ok(with_current_epoch(context, || epoch::poll(context)).await?)
    }

    /// The dataset of this name.
    ///
    /// # Errors
    /// [`ClientError::NoSource`] where the cache was opened without datasets; [`ClientError::NoDataset`].
    pub fn dataset(&self, name: &str) -> Result<DatasetCache, ClientError> {
        let core = Arc::clone(&self.core);
        if !core.source.is_some() {
            return Err(ClientError::NoSource);
        }
        let no_dataset = || ClientError::NoDataset(name.to_owned());
        let position = core.source.position_of_name(name).ok_or_else(no_dataset)?;
        let rows = match (core.source.context(), core.backend.in_memory()) {
            (Ok(context), _) => {
                let dataset = context.catalog.iter().nth(position).ok_or_else(no_dataset)?;
                RowSource::Postgres(Arc::new(context.clone()), Arc::clone(dataset))
            }
            (Err(_), Some(store)) => {
                let table = core.source.tables().get(position).ok_or_else(no_dataset)?;
                RowSource::Memory(store.clone(), Arc::clone(table))
            }
            (Err(error), None) => return Err(error),
        };
        let class = core.classes.datasets.get(position).cloned().ok_or_else(no_dataset)?;
        let policy = Arc::new(Policy::ttl(rows.life()));
        Ok(DatasetCache { core, rows, class, policy })
    }
}

impl RowSource {
    fn name(&self) -> &str {
        match self {
            Self::Postgres(_, dataset) => dataset.name(),
            Self::Memory(_, table) => &table.name,
        }
    }

    fn life(&self) -> Duration {
        match self {
            Self::Postgres(_, dataset) => dataset.settings.ttl,
            Self::Memory(_, table) => table.life,
        }
    }

    /// What its keys begin with.
    fn prefix(&self) -> &str {
        match self {
            Self::Postgres(_, dataset) => dataset.settings.key.prefix(),
            Self::Memory(_, table) => table.key.prefix(),
        }
    }

    fn key_of(&self, parts: &[String]) -> Option<String> {
        match self {
            Self::Postgres(_, dataset) => dataset.key_of(parts),
            Self::Memory(_, table) => {
                let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
                table.key.render(&parts).ok()
            }
        }
    }

    /// Loads entries; they are stored where counters are given.
    async fn load(
        &self,
        keys: &[Arc<str>],
        counters: Option<InvalidationCounters>,
    ) -> Result<Vec<LoadedBytes>, ClientError> {
        match self {
            // Their stamps order them; without counters Redis could not be asked, or another process stores.
            Self::Postgres(context, dataset) => {
                load_entries(context, dataset, keys, counters.is_some()).await
            }
            Self::Memory(store, table) => Ok(table.load(store, keys, counters.as_ref())),
        }
    }
}

impl DatasetCache {
    /// The key of an entry, by the texts of its placeholders in their order.
    ///
    /// # Errors
    /// [`ClientError::Key`].
    pub fn key(&self, id: &[&str]) -> Result<String, ClientError> {
        let parts: Vec<String> = id.iter().map(|text| (*text).to_owned()).collect();
        self.key_of_parts(&parts)
    }

    /// The entry: from Redis, or from Postgres, by one statement for all who ask at the same time. While Redis is down,
    /// from Postgres. None: there is no row.
    ///
    /// # Errors
    /// [`ClientError`], where it is in neither.
    pub async fn get<T: DeserializeOwned>(&self, id: &[&str]) -> Result<Option<T>, ClientError> {
        self.get_by_key(&self.key(id)?, &self.policy).await
    }

    pub(super) async fn get_by_key<T: DeserializeOwned>(
        &self,
        key: &str,
        policy: &Arc<Policy>,
    ) -> Result<Option<T>, ClientError> {
        let request = || self.request(vec![key.into()], policy);
        let obtained = self.core.obtain_one((key, &self.class), policy, request).await?;
        self.typed(key, obtained.value?)
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
        Ok(self.get_many_by_key(&keys, &self.policy).await)
    }

    pub(super) async fn get_many_by_key<T: DeserializeOwned>(
        &self,
        keys: &[impl AsRef<str>],
        policy: &Arc<Policy>,
    ) -> Vec<Result<Option<T>, ClientError>> {
        let (request, loader) = self.request(keys.iter().map(|key| key.as_ref().into()).collect(), policy);
        let obtained = self.core.obtain_many(&request, &loader).await;
        let typed = keys.iter().zip(obtained).map(|(key, one)| self.typed(key.as_ref(), one.value?));
        typed.collect()
    }

    /// The entry, at least as fresh as a token of a write: from Redis if the watermark says so, else from Postgres.
    pub async fn get_since<T: DeserializeOwned>(
        &self,
        id: &[&str],
        token: &Token,
    ) -> Result<Option<T>, ClientError> {
        self.get_since_by_key(&self.key(id)?.into(), token, &self.policy).await
    }

    /// The same by the whole key, within the hard timeout of a policy.
    pub(super) async fn get_since_by_key<T: DeserializeOwned>(
        &self,
        key: &Arc<str>,
        token: &Token,
        policy: &Policy,
    ) -> Result<Option<T>, ClientError> {
        let Some(hard) = policy.hard else { return self.read_since(key, token, true).await };
        // To wait for a load that is under way and then for another one would take twice as long as the caller may expect.
        let read = self.read_since(key, token, false);
        tokio::time::timeout(hard, read).await.unwrap_or(Err(ClientError::Timeout(hard)))
    }

    async fn read_since<T: DeserializeOwned>(
        &self,
        key: &Arc<str>,
        token: &Token,
        may_share: bool,
    ) -> Result<Option<T>, ClientError> {
        let (context, dataset) = match &self.rows {
            RowSource::Postgres(context, dataset) => (context, dataset),
            // What is put there is seen to at once.
            RowSource::Memory(..) => return self.get_by_key(key, &self.policy).await,
        };
        let command = async {
            match tokens::get(context, key, token).await {
                Ok(found) => Ok(Some(found)),
                Err(EngineError::Cache(error)) => Err(error),
                Err(_other) => Ok(None),
            }
        };
        let hidden = self.core.breaker.hidden(&[key]);
        match self.core.ask("read an entry and the watermark", command).await {
            Ok(Some(tokens::TokenRead::Fresh(Some(bytes)))) if hidden.is_empty() => {
                self.typed(key, Some(bytes.into()))
            }
            _ => {
                let load = || {
                    let (core, context, dataset) =
                        (Arc::clone(&self.core), Arc::clone(context), Arc::clone(dataset));
                    let key = Arc::clone(key);
                    async move {
                        let loaded = load_entries(&context, &dataset, &[Arc::clone(&key)], true).await?;
                        core.near.remove(&[&key]);
                        loaded.into_iter().next().unwrap_or(Ok(None))
                    }
                };
                // One statement for all who come while another one is under way. It begins after each of them came.
                let loaded = match may_share {
                    true => self.core.source.later_loads.load(key, load).await?,
                    false => load().await?,
                };
                self.typed(key, loaded)
            }
        }
    }

    /// The cache that it belongs to.
    pub(super) fn cache(&self) -> Cache {
        Cache { core: Arc::clone(&self.core) }
    }

    pub(super) fn class(&self) -> &Arc<KeyClass> {
        &self.class
    }

    pub(super) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// What its keys begin with.
    pub(super) fn prefix(&self) -> &str {
        self.rows.prefix()
    }

    /// The key of an entry, by the texts of its placeholders.
    pub(super) fn key_of_parts(&self, parts: &[String]) -> Result<String, ClientError> {
        let problem = "has another number of parts than the dataset's key, or an empty one";
        self.rows.key_of(parts).ok_or_else(|| ClientError::Key { key: parts.join(" "), problem })
    }

    /// The stores behind it; none: it is in memory.
    pub(super) fn context(&self) -> Option<&Context> {
        match &self.rows {
            RowSource::Postgres(context, _) => Some(context),
            RowSource::Memory(..) => None,
        }
    }

    /// The dataset's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.rows.name()
    }

    pub(super) fn typed<T: DeserializeOwned>(
        &self,
        key: &str,
        bytes: Option<Bytes>,
    ) -> Result<Option<T>, ClientError> {
        let class = &self.class;
        let Some(bytes) = bytes.filter(|bytes| **bytes != *class.codec.null()) else { return Ok(None) };
        // The worker's bytes are what the configuration says: loading again would bring the same.
        let decoded = class.decode(&bytes).map(Some);
        decoded.map_err(|reason| ClientError::Decode { key: key.to_owned(), reason })
    }

    /// A request for keys of this dataset, and what loads them.
    fn request(&self, keys: Vec<Arc<str>>, policy: &Arc<Policy>) -> (LoadRequest, Loader) {
        let rows = self.rows.clone();
        let keys: Arc<[Arc<str>]> = keys.into();
        let request = LoadRequest {
            keys: Arc::clone(&keys),
            policy: Arc::clone(policy),
            of_dataset: Some(Arc::clone(&self.class)),
            is_forced: false,
            is_within_load: is_within_load(),
        };
        let loader: Loader = Arc::new(move |positions, counters| {
            let rows = rows.clone();
            let wanted: Vec<Arc<str>> = positions.iter().filter_map(|at| keys.get(*at)).cloned().collect();
            Box::pin(async move { rows.load(&wanted, counters).await })
        });
        (request, loader)
    }
}

/// Loads entries under a stamp; answers in the order of the keys.
async fn load_entries(
    context: &Context,
    dataset: &Dataset,
    keys: &[Arc<str>],
    may_store: bool,
) -> Result<Vec<LoadedBytes>, ClientError> {
    let wanted: Keys =
        keys.iter().filter_map(|key| Some((key.to_string(), dataset.read_key(key)?))).collect();
    let options = LoadOptions::for_reader(may_store);
    let read = || async { load(context, dataset, &wanted, options, &mut Job::uncounted()).await };
    let report = with_current_epoch(context, read).await?;
    let mut values = report.loaded.by_key;
    let found = |key: &Arc<str>| match values.remove(&**key) {
        Some(value) => Ok(value.map(Bytes::from)),
        None => {
            let failure = report.failures.iter().find(|failure| failure.key.as_deref() == Some(key));
            let reason = failure.map_or("its row cannot be encoded", |failure| &failure.reason);
            Err(ClientError::Decode { key: key.to_string(), reason: reason.to_owned() })
        }
    };
    Ok(keys.iter().map(found).collect())
}
