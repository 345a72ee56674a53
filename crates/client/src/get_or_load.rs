//! `get_or_load` for the caller's own types and loaders.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::core::Core;
use super::flight::Bytes;
use super::load::{Wish, Work};
use super::observe::Found;
use super::policy::Policy;
use super::{Cache, ClientError};
use cachekeeper_engine::flows::epoch;
use cachekeeper_engine::flows::fill::store_own;
use cachekeeper_engine::flows::reload::with_current_order;
use cachekeeper_engine::stores::postgres::Poll;
use cachekeeper_engine::stores::redis::{Answer, CounterRule};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::EntryBatch;

/// What a loader found. `Some(value)` and `None` become one by themselves.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    pub(super) value: Option<T>,
    pub(super) life: Option<Duration>,
    pub(super) tags: Vec<String>,
    pub(super) stamp: Option<Poll>,
}

impl<T> From<Option<T>> for Loaded<T> {
    fn from(value: Option<T>) -> Self {
        Self { value, life: None, tags: Vec::new(), stamp: None }
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

    /// Another life than the policy's, for this value only.
    #[must_use]
    pub fn life(mut self, life: Duration) -> Self {
        self.life = Some(life);
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
    #[must_use]
    pub fn as_of(mut self, snapshot: Poll) -> Self {
        self.stamp = Some(snapshot);
        self
    }
}

impl Cache {
    /// The value of a key: from the cache, or from `loader`, which runs once for all who ask at the same time, in this
    /// process and, by a short lock, in others. None: the loader found nothing.
    ///
    /// What a caller gets was loaded after it came, or stood in the cache. A value that was invalidated while it was
    /// loaded is returned to those who came before, and not stored. While Redis is down the loader is asked, by so
    /// many at a time as the cache was built for.
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
        let mut wish =
            Wish { key: key.into(), policy: Arc::new(policy.clone()), is_stamped: false, is_forced: false };
        let (core, own) = (Arc::clone(&self.core), wish.clone());
        let mut work: Option<Work> = Some(Box::new(move |fence| {
            Box::pin(async move {
                let loaded = run_loader(&core, loader()).await?.into();
                core.keep(&own, loaded, fence).await
            })
        }));
        let codec = self.core.class_of(key).codec;
        let decode = |bytes: Bytes| codec.decode::<T>(&bytes);
        let first = self.core.obtain(&wish, &mut work).await?;
        match first.map(decode).transpose() {
            Ok(value) => Ok(value),
            Err(reason) if work.is_none() => Err(ClientError::Decode { key: key.to_owned(), reason }),
            Err(_healed_by_loading) => {
                self.core.class_of(key).count(Found::Undecodable);
                wish.is_forced = true;
                let second = self.core.obtain(&wish, &mut work).await?;
                second
                    .map(decode)
                    .transpose()
                    .map_err(|reason| ClientError::Decode { key: key.to_owned(), reason })
            }
        }
    }

    /// A snapshot of Postgres, for [`Loaded::as_of`]: take it before the loader reads.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::NoSource`] without Postgres.
    pub async fn snapshot(&self) -> Result<Poll, ClientError> {
        let context = self.core.context.as_ref().ok_or(ClientError::NoSource)?;
        Ok(with_current_order(context, || epoch::poll(context)).await?)
    }
}

/// Runs a loader, through the faults on purpose.
pub(super) async fn run_loader<L, E>(
    core: &Core,
    loader: impl Future<Output = Result<L, E>>,
) -> Result<L, ClientError>
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
    /// Stores what was loaded, where nothing forbids it, and answers its bytes.
    async fn keep<T: Serialize>(
        &self,
        wish: &Wish,
        loaded: Loaded<T>,
        fence: Option<InvalidationCounters>,
    ) -> Result<Option<Bytes>, ClientError> {
        let class = self.class_of(&wish.key);
        let policy = &wish.policy;
        let encode = |value: &T| {
            let bytes = class.codec.encode(value);
            bytes.map_err(|reason| ClientError::Encode { key: wish.key.to_string(), reason })
        };
        let bytes = loaded.value.as_ref().map(encode).transpose()?;
        let life = match (&bytes, loaded.life) {
            (Some(_), life) => Some(policy.life_of(&wish.key, life.unwrap_or(policy.life))),
            (None, _) => policy.negative,
        };
        let mut batch = EntryBatch::default();
        let position = match (&bytes, life) {
            (Some(bytes), Some(life)) => batch.push(&wish.key, bytes, policy.stored_millis(life)),
            (None, Some(life)) => batch.push(&wish.key, class.codec.null(), policy.stored_millis(life)),
            // An older value that is kept for bad times may not outlive the news that there is none.
            (_, None) => batch.push_gone(&wish.key),
        };
        policy.tags.iter().chain(&loaded.tags).for_each(|tag| batch.tag(position, tag));
        if let Some(fence) = fence {
            self.fill(&batch, &fence, loaded.stamp.as_ref()).await;
        }
        Ok(bytes.map(Bytes::from))
    }

    /// Stores fills. What is refused or fails is not stored: whoever loaded it has it.
    pub async fn fill(&self, batch: &EntryBatch, fence: &InvalidationCounters, stamp: Option<&Poll>) {
        let refused = match (&self.context, stamp) {
            (Some(context), Some(poll)) => {
                store_own(context, batch, fence, poll).await.map_err(ClientError::from)
            }
            _ => {
                let order = CounterRule::Unchanged(fence);
                let answer = self.ask("store a fill", self.backend.fill(batch, order, None)).await;
                answer.map(|answer| match answer {
                    Answer::Done(refused) => refused,
                    Answer::Failed(_) => Vec::new(),
                })
            }
        };
        let Some(first) = batch.get(0) else { return };
        let label = &self.class_of(first.key).label;
        match refused {
            Ok(refused) => {
                let labels = cachekeeper_engine::metrics::ByDatasetCause::new(label, "fill");
                self.metrics.refused.get_or_create(&labels).inc_by(refused.len() as u64);
                self.metrics.stored.get_or_create(&labels).inc_by((batch.len() - refused.len()) as u64);
            }
            Err(error) => tracing::debug!(dataset = %label, %error, "a fill was not stored"),
        }
    }
}
