//! `get_or_load` and `get_or_load_many` for the caller's own types and loaders.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::debug;

use super::core::{Cache, Core, check_key};
use super::error::ClientError;
use super::flight::{Bytes, LoadRequest, LoadedBytes, Loader};
use super::key_class::ReadOutcome;
use super::moments::{FAR, after, part};
use super::policy::Policy;
use super::source::Snapshot;
use super::waits::{is_within_load, note_late_tags};
use cachekeeper_engine::stores::redis::{Answer, CounterRule};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::EntryBatch;

/// What a loader found. `Some(value)` and `None` become one by themselves.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    value: Option<T>,
    life: Option<Duration>,
    tags: Vec<String>,
    read_at: Option<Snapshot>,
}

impl<T> From<Option<T>> for Loaded<T> {
    fn from(value: Option<T>) -> Self {
        Self { value, life: None, tags: Vec::new(), read_at: None }
    }
}

impl<T> Loaded<T> {
    /// This value.
    #[must_use]
    pub fn found(value: T) -> Self {
        Some(value).into()
    }

    /// Nothing.
    #[must_use]
    pub fn absent() -> Self {
        None.into()
    }

    /// Another lifetime than the policy's, for this value only.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.life = Some(ttl);
        self
    }

    /// More tags than the policy's. Since they were not known before the load, it is refused if any tag was
    /// invalidated meanwhile.
    #[must_use]
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tags.extend(tags.into_iter().map(Into::into));
        self
    }

    /// It was read from Postgres after this snapshot ([`Cache::snapshot`]) was taken: the stamp rule orders it.
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn as_of(mut self, snapshot: Snapshot) -> Self {
        self.read_at = Some(snapshot);
        self
    }
}

/// What a loader of many ids found. A map of what is there becomes one by itself.
#[derive(Debug, Clone)]
pub struct ManyLoaded<I, T> {
    /// The values that are there. An id that is in neither map is known to be absent.
    pub found: HashMap<I, T>,
    /// Ids that could not be loaded, each with the reason.
    pub failed: HashMap<I, String>,
}

impl<I, T> From<HashMap<I, T>> for ManyLoaded<I, T> {
    fn from(found: HashMap<I, T>) -> Self {
        Self { found, failed: HashMap::new() }
    }
}

/// The values of many ids, as far as they could be had.
#[derive(Debug, Clone)]
pub struct Partial<I, T> {
    /// The values that are there; absent ids are absent.
    pub values: HashMap<I, T>,
    /// Ids of which nothing is known, each with the reason.
    pub failed: Vec<(I, ClientError)>,
}

/// Less than this no store is given.
const STORE_WITHIN: Duration = Duration::from_millis(20);
/// Entries of one script.
const BATCH_ENTRIES: usize = 256;
/// Bytes of one script's entries.
const BATCH_BYTES: usize = 1 << 20;

impl Cache {
    /// The value of a key: from the cache, or from `loader`, which runs once for all who ask at the same time, in this
    /// process and, by a short lock, in others. None: the loader found nothing.
    ///
    /// What a caller gets was loaded after it came, or was in the cache. A value that was invalidated while it was
    /// loaded is returned to those who came before, and not stored. While Redis is down the loader is asked, by so
    /// many at a time as the cache was built for.
    ///
    /// A loader that wants a value which waits for its own gets [`ClientError::Recursion`] for it, where it asks in its own task: what it
    /// asks in a task that it spawns is not seen, and such a circle ends by a `hard_timeout` only.
    ///
    /// The loader runs in a task of its own. It is cancelled when the last caller who waits is dropped.
    ///
    /// # Errors
    /// [`ClientError::Loader`], [`ClientError::LoaderPanicked`], [`ClientError::Timeout`], each only where no stale value is at hand
    /// ([`Policy::fail_safe`]). Never because Redis is down.
    pub async fn get_or_load<T, L, F, U, E>(
        &self,
        key: &str,
        policy: &Policy,
        loader: F,
    ) -> Result<Option<T>, ClientError>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        L: Into<Loaded<T>> + Send,
        F: FnOnce() -> U + Send + 'static,
        U: Future<Output = Result<L, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.core.source.learn_types().await;
        let class = self.core.class_of(key);
        self.core.check_own(key)?;
        let (mut loader, mut shared) = (Some(loader), None);
        let both = || {
            let once = Arc::new(Mutex::new(loader.take()));
            shared = Some(Arc::clone(&once));
            (request(vec![key.into()], policy), self.core.one_loader::<T, L, F, U, E>(key, policy, once))
        };
        let obtained = self.core.obtain_one((key, &class), policy, both).await?;
        let Some(bytes) = obtained.value? else { return Ok(None) };
        let undecodable = |reason| ClientError::Decode { key: key.to_owned(), reason };
        let reason = match class.decode_or_null(&bytes) {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        let once = shared.unwrap_or_else(|| Arc::new(Mutex::new(loader)));
        // Loading again would bring the same, or the loader is busy with a refresh.
        if lock(&once).is_none() {
            return Err(undecodable(reason));
        }
        debug!(dataset = %class.label, reason, "a value does not decode, it is loaded anew");
        class.count(ReadOutcome::Undecodable);
        let mut forced = request(vec![key.into()], policy);
        forced.is_forced = true;
        let loader = self.core.one_loader::<T, L, F, U, E>(key, policy, once);
        let mut obtained = self.core.obtain_many(&forced, &loader).await;
        let bytes = obtained.pop().map_or(Ok(None), |one| one.value)?;
        let value = bytes.map(|bytes| class.decode_or_null(&bytes)).transpose().map_err(undecodable)?;
        Ok(value.flatten())
    }

    /// The values of ids: each as [`Self::get_or_load`] has it, but what is missing is loaded by one call (again only where
    /// another call's load, which this one had joined, was given up). Ids that another process is loading are waited for beside
    /// it.
    ///
    /// # Errors
    /// [`ClientError::Key`]. What fails for an id stands in the answer.
    pub async fn get_or_load_many<I, T, M, F, U, E>(
        &self,
        ids: &[I],
        key_of: impl Fn(&I) -> String,
        policy: &Policy,
        loader: F,
    ) -> Result<Partial<I, T>, ClientError>
    where
        I: Clone + Eq + Hash + Send + Sync + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        M: Into<ManyLoaded<I, T>> + Send,
        F: Fn(Vec<I>) -> U + Send + Sync + 'static,
        U: Future<Output = Result<M, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut seen = HashSet::with_capacity(ids.len());
        let ids: Vec<I> = ids.iter().filter(|id| seen.insert((*id).clone())).cloned().collect();
        let keys: Vec<Arc<str>> = ids.iter().map(|id| key_of(id).into()).collect();
        keys.iter().try_for_each(|key| check_key(key))?;
        self.core.source.learn_types().await;
        if self.core.source.is_some() {
            keys.iter().try_for_each(|key| self.core.check_own(key))?;
        }
        let all = request(keys.clone(), policy);
        let loader = self.core.many_loader(ids.clone(), keys.clone(), policy.clone(), loader);
        let obtained = self.core.obtain_many(&all, &loader).await;
        let mut partial = Partial { values: HashMap::with_capacity(ids.len()), failed: Vec::new() };
        let mut put = |id: &I, value: Result<Option<T>, ClientError>| match value {
            Ok(Some(value)) => drop(partial.values.insert(id.clone(), value)),
            Ok(None) => {}
            Err(error) => partial.failed.push((id.clone(), error)),
        };
        let mut undecodable = Vec::new();
        for (at, ((id, key), one)) in ids.iter().zip(&keys).zip(obtained).enumerate() {
            let is_own = one.is_own;
            match self.core.decode(key, one.value) {
                Err(ClientError::Decode { .. }) if !is_own => undecodable.push(at),
                value => put(id, value),
            }
        }
        if undecodable.is_empty() {
            return Ok(partial);
        }
        let forced_keys: Vec<Arc<str>> = undecodable.iter().filter_map(|at| keys.get(*at)).cloned().collect();
        for key in &forced_keys {
            self.core.class_of(key).count(ReadOutcome::Undecodable);
        }
        let mut forced = request(forced_keys, policy);
        forced.is_forced = true;
        let places = undecodable.clone();
        let among_all: Loader = Arc::new(move |positions, counters| {
            loader(positions.iter().filter_map(|at| places.get(*at)).copied().collect(), counters)
        });
        let obtained = self.core.obtain_many(&forced, &among_all).await;
        for (at, one) in undecodable.into_iter().zip(obtained) {
            if let (Some(id), Some(key)) = (ids.get(at), keys.get(at)) {
                put(id, self.core.decode(key, one.value));
            }
        }
        Ok(partial)
    }
}

fn request(keys: Vec<Arc<str>>, policy: &Policy) -> LoadRequest {
    LoadRequest {
        keys: keys.into(),
        policy: Arc::new(policy.clone()),
        of_dataset: None,
        is_forced: false,
        is_within_load: is_within_load(),
    }
}

/// A loader that is called once at most.
type Once<F> = Arc<Mutex<Option<F>>>;

fn lock<F>(once: &Once<F>) -> MutexGuard<'_, Option<F>> {
    once.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a loader, through the faults on purpose.
async fn run<L, E>(core: &Core, loader: impl Future<Output = Result<L, E>>) -> Result<L, ClientError>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| ClientError::Loader(error.into());
    match &core.chaos {
        None => loader.await.map_err(|error| failed(error.into())),
        Some(chaos) => match chaos.around_loader(loader).await {
            Some(result) => result.map_err(|error| failed(error.into())),
            None => Err(failed("a fault on purpose".into())),
        },
    }
}

impl Core {
    fn decode<T: DeserializeOwned>(&self, key: &str, value: LoadedBytes) -> Result<Option<T>, ClientError> {
        let Some(bytes) = value? else { return Ok(None) };
        let decoded = self.class_of(key).decode_or_null(&bytes);
        decoded.map_err(|reason| ClientError::Decode { key: key.to_owned(), reason })
    }

    /// The loader of one key. It is called once: whoever has led a load does not begin again.
    fn one_loader<T, L, F, U, E>(self: &Arc<Self>, key: &str, policy: &Policy, once: Once<F>) -> Loader
    where
        T: Serialize + Send + 'static,
        L: Into<Loaded<T>> + Send,
        F: FnOnce() -> U + Send + 'static,
        U: Future<Output = Result<L, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let shared = Arc::new((Arc::clone(self), key.to_owned(), policy.clone(), once));
        Arc::new(move |_positions, counters| {
            let shared = Arc::clone(&shared);
            Box::pin(async move {
                let (core, key, policy, once) = &*shared;
                let loader = lock(once).take();
                let loader = loader.ok_or(ClientError::LoaderPanicked)?;
                let loaded: Loaded<T> = run(core, loader()).await?.into();
                Ok(core.keep(vec![(key, Ok(loaded))], policy, counters).await)
            })
        })
    }

    /// The loader of many ids.
    fn many_loader<I, T, M, F, U, E>(
        self: &Arc<Self>,
        ids: Vec<I>,
        keys: Vec<Arc<str>>,
        policy: Policy,
        loader: F,
    ) -> Loader
    where
        I: Clone + Eq + Hash + Send + Sync + 'static,
        T: Serialize + Send + 'static,
        M: Into<ManyLoaded<I, T>> + Send,
        F: Fn(Vec<I>) -> U + Send + Sync + 'static,
        U: Future<Output = Result<M, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let shared = Arc::new((Arc::clone(self), ids, keys, policy, loader));
        Arc::new(move |positions, counters| {
            let shared = Arc::clone(&shared);
            Box::pin(async move {
                let (core, ids, keys, policy, loader) = &*shared;
                let wanted = positions.iter().filter_map(|at| ids.get(*at)).cloned().collect();
                let mut loaded: ManyLoaded<I, T> = run(core, loader(wanted)).await?.into();
                let one = |at: &usize| {
                    let (id, key) = (ids.get(*at)?, keys.get(*at)?);
                    let failed = loaded.failed.get(id).map(|reason| Box::from(reason.as_str()));
                    let found = match failed {
                        Some(reason) => Err(ClientError::Loader(Arc::from(reason))),
                        None => Ok(Loaded::from(loaded.found.remove(id))),
                    };
                    Some((&**key, found))
                };
                let found = positions.iter().filter_map(one).collect();
                Ok(core.keep(found, policy, counters).await)
            })
        })
    }

    /// Encodes what was loaded, stores it where nothing forbids that, and answers the bytes.
    async fn keep<T: Serialize>(
        &self,
        found: Vec<(&str, Result<Loaded<T>, ClientError>)>,
        policy: &Policy,
        counters: Option<InvalidationCounters>,
    ) -> Vec<LoadedBytes> {
        let mut results = Vec::with_capacity(found.len());
        let mut batches = vec![EntryBatch::default()];
        let mut read_at = None;
        for (key, loaded) in found {
            if batches.last().is_some_and(|last| BATCH_ENTRIES <= last.len() || BATCH_BYTES <= last.bytes()) {
                batches.push(EntryBatch::default());
            }
            let Some(batch) = batches.last_mut() else { continue };
            results.push(loaded.and_then(|loaded| {
                let bytes = self.encode(key, &loaded, policy, batch);
                if !loaded.tags.is_empty() {
                    note_late_tags(key);
                }
                read_at = loaded.read_at;
                bytes
            }));
        }
        if let Some(counters) = counters {
            let store = async {
                for batch in batches.iter().filter(|batch| !batch.is_empty()) {
                    self.fill(batch, &counters, read_at.as_ref()).await;
                }
            };
            // Who does not wait for long gets the value, stored or not, where Redis does not answer.
            let limit = policy.hard.map_or(FAR, |hard| (hard / 4).max(STORE_WITHIN));
            if tokio::time::timeout(limit, store).await.is_err() {
                debug!("redis is slow, it is not known whether what was loaded is stored");
            }
        }
        results
    }

    fn encode<T: Serialize>(
        &self,
        key: &str,
        loaded: &Loaded<T>,
        policy: &Policy,
        batch: &mut EntryBatch,
    ) -> LoadedBytes {
        let codec = self.class_of(key).codec;
        let encode = |value: &T| {
            codec.encode(value).map_err(|reason| ClientError::Encode { key: key.to_owned(), reason })
        };
        let mut bytes = loaded.value.as_ref().map(encode).transpose()?;
        let position = match (&bytes, policy.negative) {
            (Some(bytes), _) => {
                let life = policy.life_of(key, loaded.life.unwrap_or(policy.life));
                self.note_own_life(key, policy, loaded.life);
                batch.push(key, bytes, policy.stored_millis(life))
            }
            // Its caller gets it as the next ones do.
            (None, Some(life)) => {
                bytes = Some(codec.null().to_vec());
                batch.push(key, codec.null(), policy.stored_millis(life))
            }
            // The loader found nothing, so a stale value that is kept for fail-safe must be deleted.
            (None, None) => batch.push_gone(key),
        };
        policy.tags.iter().chain(&loaded.tags).for_each(|tag| batch.tag(position, tag));
        Ok(bytes.map(Bytes::from))
    }

    /// How old a value is, is told from what remains of its life, by the policy's life. One with a life of its own would seem to be due
    /// from its first moment, and be loaded again by every read (faults E6).
    fn note_own_life(&self, key: &str, policy: &Policy, own: Option<Duration>) {
        if let (Some(own), Some(share)) = (own, policy.eager) {
            self.flights.not_due.put(&key.into(), after(part(own, 1.0 - share)));
        }
    }

    /// Stores fills. What is refused or fails is not stored: whoever loaded it has it.
    async fn fill(&self, batch: &EntryBatch, counters: &InvalidationCounters, read_at: Option<&Snapshot>) {
        let refused = match read_at {
            Some(read_at) if self.source.is_some() => self.source.store(batch, counters, read_at).await,
            _ => {
                let fill = self.backend.fill(batch, CounterRule::Unchanged(counters), None);
                self.ask("store a fill", fill).await.map(|answer| match answer {
                    Answer::Done(refused) => refused,
                    // It carries no stamp: nothing can have changed under it.
                    Answer::Failed(_) => Vec::new(),
                })
            }
        };
        batch.iter().for_each(|entry| self.near.remove(&[entry.key]));
        self.drop_windows_of(batch);
        let Some(first) = batch.get(0) else { return };
        let class = self.class_of(first.key);
        match refused {
            Ok(refused) => class.count_fills(batch.len(), refused.len()),
            Err(error) => debug!(dataset = %class.label, %error, "a fill was not stored"),
        }
    }
}
