//! Many keys at once: what is missing is loaded by one call, and each id once across calls that overlap.

use std::collections::HashMap;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::core::{Core, check_key};
use super::flight::{Boarding, Bytes, Departure, Landing, Seat};
use super::get_or_load::run_loader;
use super::observe::Found;
use super::policy::{Age, Policy};
use super::{Cache, ClientError};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::EntryBatch;

/// What a loader of many ids found. A map of what is there becomes one by itself.
#[derive(Debug, Clone)]
pub struct ManyLoaded<I, T> {
    /// The values that are there. An id that stands in neither map is known to be absent.
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

/// Loads what stands at these positions; answers each one's bytes, in their order.
pub(super) type ManyWork = Arc<
    dyn Fn(
            Vec<usize>,
            Option<InvalidationCounters>,
        ) -> BoxFuture<'static, Result<Vec<ManyResult>, ClientError>>
        + Send
        + Sync,
>;
/// One of many.
pub(super) type ManyResult = Result<Option<Bytes>, ClientError>;

impl Cache {
    /// The values of ids: from the cache, or from `loader`, which is called once with those that are missing (again only
    /// where another call's load, which this one had joined, was given up). There is no lock between processes here:
    /// a batch would have to wait for the slowest of its keys.
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
        let mut seen = std::collections::HashSet::with_capacity(ids.len());
        let ids: Vec<I> = ids.iter().filter(|id| seen.insert((*id).clone())).cloned().collect();
        let keys: Vec<Arc<str>> = ids.iter().map(|id| key_of(id).into()).collect();
        keys.iter().try_for_each(|key| check_key(key))?;
        let work = self.core.work_of(ids.clone(), keys.clone(), policy.clone(), loader);
        let results = self.core.obtain_many(&keys, policy, false, work).await;
        let mut partial = Partial { values: HashMap::with_capacity(ids.len()), failed: Vec::new() };
        for ((id, key), result) in ids.into_iter().zip(&keys).zip(results) {
            let codec = self.core.class_of(key).codec;
            let decode = |bytes: Bytes| {
                let decoded = codec.decode::<T>(&bytes);
                decoded.map_err(|reason| ClientError::Decode { key: key.to_string(), reason })
            };
            match result.and_then(|bytes| bytes.map(decode).transpose()) {
                Ok(Some(value)) => drop(partial.values.insert(id, value)),
                Ok(None) => {}
                Err(error) => partial.failed.push((id, error)),
            }
        }
        Ok(partial)
    }
}

impl Core {
    /// A caller's loader as work on positions.
    fn work_of<I, T, M, F, U, E>(
        self: &Arc<Self>,
        ids: Vec<I>,
        keys: Vec<Arc<str>>,
        policy: Policy,
        loader: F,
    ) -> ManyWork
    where
        I: Clone + Eq + Hash + Send + Sync + 'static,
        T: Serialize + Send + 'static,
        M: Into<ManyLoaded<I, T>> + Send,
        F: Fn(Vec<I>) -> U + Send + Sync + 'static,
        U: Future<Output = Result<M, E>> + Send,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let core = Arc::clone(self);
        let shared = Arc::new((ids, keys, policy, loader));
        Arc::new(move |positions, fence| {
            let (core, shared) = (Arc::clone(&core), Arc::clone(&shared));
            Box::pin(async move {
                let (ids, keys, policy, loader) = &*shared;
                let wanted = positions.iter().filter_map(|at| ids.get(*at)).cloned().collect();
                let loaded: ManyLoaded<I, T> = run_loader(&core, loader(wanted)).await?.into();
                let mut batch = EntryBatch::default();
                let mut results = Vec::with_capacity(positions.len());
                for (id, key) in positions.iter().filter_map(|at| ids.get(*at).zip(keys.get(*at))) {
                    if let Some(reason) = loaded.failed.get(id) {
                        results.push(Err(ClientError::Loader(Arc::from(Box::from(reason.as_str())))));
                        continue;
                    }
                    results.push(core.encode_one(key, loaded.found.get(id), policy, &mut batch));
                }
                if let Some(fence) = fence {
                    core.fill(&batch, &fence, None).await;
                }
                Ok(results)
            })
        })
    }

    fn encode_one<T: Serialize>(
        &self,
        key: &str,
        value: Option<&T>,
        policy: &Policy,
        batch: &mut EntryBatch,
    ) -> ManyResult {
        let codec = self.class_of(key).codec;
        let encode = |value: &T| {
            codec.encode(value).map_err(|reason| ClientError::Encode { key: key.to_owned(), reason })
        };
        let bytes = value.map(encode).transpose()?;
        let position = match (&bytes, policy.negative) {
            (Some(bytes), _) => {
                batch.push(key, bytes, policy.stored_millis(policy.life_of(key, policy.life)))
            }
            (None, Some(life)) => batch.push(key, codec.null(), policy.stored_millis(life)),
            (None, None) => batch.push_gone(key),
        };
        policy.tags.iter().for_each(|tag| batch.tag(position, tag));
        Ok(bytes.map(Bytes::from))
    }

    /// The bytes of many keys, in their order.
    pub async fn obtain_many(
        self: &Arc<Self>,
        keys: &[Arc<str>],
        policy: &Policy,
        is_stamped: bool,
        work: ManyWork,
    ) -> Vec<ManyResult> {
        let began = Instant::now();
        let mut results: Vec<Option<ManyResult>> = vec![None; keys.len()];
        let mut stale: HashMap<usize, Bytes> = HashMap::new();
        let looked = self.ask("read entries", self.backend.look(keys)).await;
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        if let Ok(looked) = looked {
            missing = self.sort_out(keys, &missing, looked, policy, &mut results, &mut stale);
        }
        // Again only for those whose load somebody else had begun and given up.
        while !missing.is_empty() {
            let wanted: Vec<&str> = missing.iter().filter_map(|at| keys.get(*at)).map(|key| &**key).collect();
            let look = self.backend.look_fenced(&wanted, &policy.tags, is_stamped);
            let fenced = self.ask("read entries", look).await;
            let fence = match fenced {
                Ok((looked, fence)) => {
                    missing = self.sort_out(keys, &missing, looked, policy, &mut results, &mut stale);
                    Some(fence)
                }
                Err(_unavailable) => None,
            };
            missing = self.load_round(keys, policy, &work, fence, missing, &mut results, &stale).await;
        }
        if let Some(first) = keys.first() {
            self.report_slow("get_or_load_many", first, self.class_of(first), began.elapsed());
        }
        results.into_iter().map(|result| result.unwrap_or(Ok(None))).collect()
    }

    /// Takes out what was found; answers what is missing.
    fn sort_out(
        &self,
        keys: &[Arc<str>],
        positions: &[usize],
        looked: Vec<cachekeeper_engine::stores::redis::ValueAndLife>,
        policy: &Policy,
        results: &mut [Option<ManyResult>],
        stale: &mut HashMap<usize, Bytes>,
    ) -> Vec<usize> {
        let mut missing = Vec::new();
        for (at, (value, left)) in positions.iter().copied().zip(looked) {
            let (Some(key), Some(result)) = (keys.get(at), results.get_mut(at)) else { continue };
            let class = self.class_of(key);
            match value {
                Some(value) if policy.judge(key, left) != Age::Stale => {
                    let is_null = value == class.codec.null();
                    class.count(if is_null { Found::Negative } else { Found::Hit });
                    *result = Some(Ok((!is_null).then(|| value.into())));
                }
                Some(value) => {
                    stale.insert(at, value.into());
                    missing.push(at);
                }
                None => missing.push(at),
            }
        }
        missing
    }

    /// Loads what nobody loads yet and waits for the rest; answers what must be tried again.
    #[expect(clippy::too_many_arguments, reason = "one round of a loop, with the loop's state")]
    async fn load_round(
        self: &Arc<Self>,
        keys: &[Arc<str>],
        policy: &Policy,
        work: &ManyWork,
        fence: Option<InvalidationCounters>,
        missing: Vec<usize>,
        results: &mut [Option<ManyResult>],
        stale: &HashMap<usize, Bytes>,
    ) -> Vec<usize> {
        let mut seats: Vec<(usize, Seat, bool)> = Vec::with_capacity(missing.len());
        let mut departures: Vec<(usize, Departure)> = Vec::new();
        for at in missing {
            let Some(key) = keys.get(at) else { continue };
            match self.flights.board(key, fence.as_ref().map(|fence| fence.part(key, &policy.tags))) {
                Boarding::Joined(seat) => seats.push((at, seat, false)),
                Boarding::Leads(seat, departure) => {
                    // Others may wait for one of them: the whole call goes on.
                    seat.keep();
                    seats.push((at, seat, true));
                    departures.push((at, departure));
                }
            }
        }
        if !departures.is_empty() {
            drop(tokio::spawn(Arc::clone(self).fly_many(departures, Arc::clone(work), fence)));
        }
        let limit = policy.hard;
        let landings = join_all(seats.iter_mut().map(async |(at, seat, leads)| {
            let landing = match limit {
                Some(limit) => tokio::time::timeout(limit, seat.landing()).await.ok(),
                None => Some(seat.landing().await),
            };
            (*at, *leads, landing)
        }))
        .await;
        let mut again = Vec::new();
        for (at, leads, landing) in landings {
            let (Some(key), Some(result)) = (keys.get(at), results.get_mut(at)) else { continue };
            let loaded = match landing {
                Some(Landing::Value(value)) => Ok(value),
                Some(Landing::Failed(error)) => Err(error),
                Some(Landing::Panicked | Landing::Abandoned) if !leads => {
                    again.push(at);
                    continue;
                }
                Some(Landing::Panicked | Landing::Abandoned) => Err(ClientError::LoaderPanicked),
                None => Err(ClientError::Timeout(limit.unwrap_or_default())),
            };
            let (found, answer) = match (loaded, stale.get(&at)) {
                (Ok(value), _) => (Found::Miss, Ok(value)),
                (Err(_), Some(value)) => (Found::Stale, Ok(Some(Arc::clone(value)))),
                (Err(error), None) => (Found::Miss, Err(error)),
            };
            self.class_of(key).count(found);
            *result = Some(answer);
        }
        again
    }

    async fn fly_many(
        self: Arc<Self>,
        departures: Vec<(usize, Departure)>,
        work: ManyWork,
        fence: Option<InvalidationCounters>,
    ) {
        let positions = departures.iter().map(|(at, _)| *at).collect();
        let _permit = match &fence {
            None => self.loads.acquire().await.ok(),
            Some(_) => None,
        };
        let flown = AssertUnwindSafe(work(positions, fence)).catch_unwind().await;
        let mut landings: Vec<Landing> = match flown {
            Ok(Ok(results)) => {
                results.into_iter().map(|one| one.map_or_else(Landing::Failed, Landing::Value)).collect()
            }
            Ok(Err(error)) => vec![Landing::Failed(error); departures.len()],
            Err(_panic) => vec![Landing::Panicked; departures.len()],
        };
        landings.resize(departures.len(), Landing::Abandoned);
        for ((_, departure), landing) in departures.into_iter().zip(landings) {
            departure.land(&self.flights, landing);
        }
    }
}
