//! Reads. A hit costs one command, the value, and nothing else.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{Instrument, debug};

use super::core::{Cache, Core, check_key};
use super::error::ClientError;
use super::flight::{Bytes, LoadedBytes};
use super::key_class::{KeyClass, ReadOutcome};
use super::policy::{Age, Policy, Sliding};
use cachekeeper_engine::stores::redis::{CacheError, ValueAndLife};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::Shape;

/// What a read found.
#[derive(Debug, Clone)]
pub enum Read<T> {
    /// The value.
    Hit(T),
    /// An explicit null: it is known that there is nothing.
    Negative,
    /// Nothing, or bytes that are no such value.
    Miss,
    /// Redis could not be asked: there may or may not be a value.
    Unavailable(ClientError),
}

impl<T> Read<T> {
    /// The value or none, where it is known.
    ///
    /// # Errors
    /// [`ClientError`] where Redis could not be asked.
    pub fn into_result(self) -> Result<Option<T>, ClientError> {
        match self {
            Self::Hit(value) => Ok(Some(value)),
            Self::Negative | Self::Miss => Ok(None),
            Self::Unavailable(error) => Err(error),
        }
    }
}

impl Cache {
    /// The value of a key; none where there is none, or where the bytes are no such value (counted as
    /// `undecodable`, and healed by the next fill).
    ///
    /// # Errors
    /// [`ClientError`]: never because the value is missing.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, ClientError> {
        self.read(key).await.into_result()
    }

    /// As [`Self::get`], and tells a miss from a known absence.
    pub async fn read<T: DeserializeOwned>(&self, key: &str) -> Read<T> {
        self.core.read(key, |shape| self.core.backend.get(key, shape)).await
    }

    /// The value's bytes as they stand in Redis. Of a dataset with `format = "hash"`: a MessagePack list of the names and values of the
    /// fields in turn, in the order of the names.
    pub async fn get_bytes(&self, key: &str) -> Result<Option<Vec<u8>>, ClientError> {
        check_key(key)?;
        self.core.source.learn_types().await;
        let shape = self.core.class_of(key).shape;
        let hidden = self.core.breaker.hidden(&[key]);
        let value = self.core.ask("read an entry", self.core.backend.get(key, shape)).await?;
        Ok(value.filter(|_| hidden.is_empty()))
    }

    /// As [`Self::get`]; a hit extends the entry's life in the same command, a miss does nothing.
    ///
    /// An entry with tags must be given its longest life when it is set (`Sliding::until`): a tag's members are
    /// remembered for the life that was announced.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::OfDataset`] for a dataset's entry, whose life is the worker's.
    pub async fn get_sliding<T: DeserializeOwned>(
        &self,
        key: &str,
        sliding: Sliding,
    ) -> Result<Option<T>, ClientError> {
        self.core.source.learn_types().await;
        self.core.check_own(key)?;
        let get = |_own: Shape| self.core.backend.get_sliding(key, sliding);
        let read = self.core.read(key, get).await;
        // Its end has changed.
        self.core.near.remove(&[key]);
        read.into_result()
    }

    /// The values of keys, in their order, in one round trip; none for each that is missing.
    pub async fn get_many<T: DeserializeOwned>(
        &self,
        keys: &[impl AsRef<str>],
    ) -> Result<Vec<Option<T>>, ClientError> {
        keys.iter().try_for_each(|key| check_key(key.as_ref()))?;
        self.core.source.learn_types().await;
        let began = Instant::now();
        let hidden = self.core.breaker.hidden(keys);
        let mut values = self.core.ask("read entries", self.core.get_mixed(keys)).await?;
        hide(&mut values, &hidden, None);
        let took = began.elapsed();
        let typed = |(key, value): (&_, Option<Vec<u8>>)| {
            let key: &str = AsRef::<str>::as_ref(key);
            let class = self.core.class_of(key);
            let (found, read) = typed(&class, value);
            class.count(found);
            read.into_result()
        };
        if let Some(first) = keys.first() {
            self.core.report_slow("get_many", first.as_ref(), &self.core.class_of(first.as_ref()), took);
        }
        keys.iter().zip(values).map(typed).collect()
    }

    /// Whether a key exists.
    pub async fn exists(&self, key: &str) -> Result<bool, ClientError> {
        check_key(key)?;
        let hidden = self.core.breaker.hidden(&[key]);
        let exists = self.core.ask("look for an entry", self.core.backend.exists(key)).await?;
        Ok(exists && hidden.is_empty())
    }
}

impl Core {
    async fn read<T, U>(&self, key: &str, command: impl FnOnce(Shape) -> U) -> Read<T>
    where
        T: DeserializeOwned,
        U: Future<Output = Result<Option<Vec<u8>>, CacheError>>,
    {
        if let Err(error) = check_key(key) {
            return Read::Unavailable(error);
        }
        self.source.learn_types().await;
        let class = self.class_of(key);
        let command = command(class.shape);
        let span = self.span("cache.get", key, &class);
        let hidden = self.breaker.hidden(&[key]);
        let began = Instant::now();
        // Time is taken around the command only.
        let answer = if span.is_disabled() {
            self.ask("read an entry", command).await
        } else {
            self.ask("read an entry", command).instrument(span.clone()).await
        };
        let took = began.elapsed();
        let (found, read) = match answer {
            Ok(value) => typed(&class, value.filter(|_| hidden.is_empty())),
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                (ReadOutcome::Unavailable, Read::Unavailable(error))
            }
        };
        span.record("cache.hit", matches!(found, ReadOutcome::Hit | ReadOutcome::Negative));
        class.count_timed(found, took);
        self.report_slow("get", key, &class, took);
        read
    }
}

impl Core {
    /// The values of keys of any datasets, or of none: those of each shape together.
    async fn get_mixed(&self, keys: &[impl AsRef<str>]) -> Result<Vec<Option<Vec<u8>>>, CacheError> {
        if !self.classes.has_hashes {
            return self.backend.get_many(keys, Shape::String).await;
        }
        let shapes: Vec<Shape> = keys.iter().map(|key| self.class_of(key.as_ref()).shape).collect();
        let of = |wanted: Shape| -> Vec<&str> {
            let with_shape = keys.iter().zip(&shapes).filter(|(_, shape)| **shape == wanted);
            with_shape.map(|(key, _)| key.as_ref()).collect()
        };
        let (strings, hashes) = (of(Shape::String), of(Shape::Hash));
        let read = tokio::try_join!(
            self.backend.get_many(&strings, Shape::String),
            self.backend.get_many(&hashes, Shape::Hash)
        );
        let (strings, hashes) = read?;
        let (mut strings, mut hashes) = (strings.into_iter(), hashes.into_iter());
        let next = |shape: &Shape| match shape {
            Shape::String => strings.next().flatten(),
            Shape::Hash => hashes.next().flatten(),
        };
        Ok(shapes.iter().map(next).collect())
    }
}

/// What is deleted and only noted so far is missing (`Breaker::hidden`).
pub(super) fn hide<T: Clone>(read: &mut [T], hidden: &[usize], missing: T) {
    for at in hidden {
        if let Some(place) = read.get_mut(*at) {
            *place = missing.clone();
        }
    }
}

/// The value of what was read.
fn typed<T: DeserializeOwned>(class: &KeyClass, value: Option<Vec<u8>>) -> (ReadOutcome, Read<T>) {
    let Some(bytes) = value else { return (ReadOutcome::Miss, Read::Miss) };
    match class.decode(&bytes) {
        Ok(value) => (ReadOutcome::Hit, Read::Hit(value)),
        Err(_) if bytes == class.codec.null() => (ReadOutcome::Negative, Read::Negative),
        Err(reason) => {
            debug!(dataset = %class.label, reason, "a value does not decode, it counts as a miss");
            (ReadOutcome::Undecodable, Read::Miss)
        }
    }
}

/// What is in the cache under a key, as a policy sees it.
#[derive(Debug)]
pub(super) enum Look {
    /// To be served, or kept for bad times.
    Found(Bytes, Age),
    Missing,
    Unavailable,
}

/// What somebody gets for one key.
#[derive(Debug, Clone)]
pub(super) struct Obtained {
    pub found: ReadOutcome,
    /// It comes from the caller's own loader: loading again would bring the same.
    pub is_own: bool,
    pub value: LoadedBytes,
}

impl Obtained {
    /// A value that is there, or an explicit null.
    pub fn served(class: &KeyClass, value: Bytes) -> Self {
        let is_null = *value == *class.codec.null();
        let found = if is_null { ReadOutcome::Negative } else { ReadOutcome::Hit };
        Self { found, is_own: false, value: Ok(Some(value)) }
    }

    pub fn nothing() -> Self {
        Self { found: ReadOutcome::Miss, is_own: false, value: Ok(None) }
    }

    pub fn stale(value: Bytes) -> Self {
        Self { found: ReadOutcome::Stale, is_own: false, value: Ok(Some(value)) }
    }
}

/// A remaining lifetime that nobody asked for.
const NO_END: i64 = -1;

impl Core {
    /// Looks for one key. By one command, which asks for the age only where the policy depends on it.
    pub async fn look_one(&self, key: &str, class: &KeyClass, policy: &Policy, began: Instant) -> Look {
        let hidden = self.breaker.hidden(&[key]);
        let looked = if policy.needs_age() {
            let look = self.ask("read an entry", self.backend.look_one(key, class.shape));
            self.within(policy, began, look).await
        } else {
            let get = self.ask("read an entry", self.backend.get(key, class.shape));
            self.within(policy, began, get).await.map(|value| (value, NO_END))
        };
        match looked {
            Ok(_) if !hidden.is_empty() => Look::Missing,
            Ok(looked) => judge(key, class, policy, looked),
            Err(error) => unavailable(&error),
        }
    }

    /// Looks for many keys; `of_dataset` is the class of all of them, where they are a dataset's.
    pub async fn look_many(
        &self,
        keys: &[Arc<str>],
        of_dataset: Option<&KeyClass>,
        policy: &Policy,
        began: Instant,
    ) -> Vec<Look> {
        let hidden = self.breaker.hidden(keys);
        // Of several classes there are only strings: keys of datasets have no other loader ([`Self::check_own`]).
        let shape = of_dataset.map(|class| class.shape).unwrap_or_default();
        let looked = if policy.needs_age() {
            self.within(policy, began, self.ask("read entries", self.backend.look(keys, shape))).await
        } else {
            let get = self.ask("read entries", self.backend.get_many(keys, shape));
            let values = self.within(policy, began, get).await;
            values.map(|values| values.into_iter().map(|value| (value, NO_END)).collect())
        };
        match looked {
            Ok(mut looked) => {
                hide(&mut looked, &hidden, (None, NO_END));
                self.judge_all(keys.iter(), of_dataset, policy, looked)
            }
            Err(error) => keys.iter().map(|_| unavailable(&error)).collect(),
        }
    }

    /// Looks for keys, and for the counters that a fill of them will need, of one moment. Without counters: Redis could not be
    /// asked.
    pub async fn look_with_counters(
        &self,
        keys: &[&Arc<str>],
        of_dataset: Option<&KeyClass>,
        policy: &Policy,
        began: Instant,
    ) -> (Vec<Look>, Option<InvalidationCounters>) {
        let hidden = self.breaker.hidden(keys);
        let shape = of_dataset.map(|class| class.shape);
        let look = self.backend.look_with_counters(keys, &policy.tags, shape);
        match self.within(policy, began, self.ask("read entries", look)).await {
            Ok((mut looked, counters)) => {
                hide(&mut looked, &hidden, (None, NO_END));
                (self.judge_all(keys.iter().copied(), of_dataset, policy, looked), Some(counters))
            }
            Err(_unavailable) => (keys.iter().map(|_| Look::Unavailable).collect(), None),
        }
    }

    fn judge_all<'k>(
        &self,
        keys: impl Iterator<Item = &'k Arc<str>>,
        of_dataset: Option<&KeyClass>,
        policy: &Policy,
        looked: Vec<ValueAndLife>,
    ) -> Vec<Look> {
        let judge_one = |(key, looked): (&Arc<str>, ValueAndLife)| match of_dataset {
            Some(class) => judge(key, class, policy, looked),
            None => judge(key, &self.class_of(key), policy, looked),
        };
        keys.zip(looked).map(judge_one).collect()
    }
}

impl Core {
    /// Waits for Redis as long as a policy allows: for half of the time after which its caller is gone, so that the loader has the rest.
    /// That time is the caller's: that it was short is no failure of Redis, but whether Redis answers at all is looked into.
    async fn within<T>(
        &self,
        policy: &Policy,
        began: Instant,
        asked: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let Some(hard) = policy.hard else { return asked.await };
        let left = (hard / 2).saturating_sub(began.elapsed());
        match tokio::time::timeout(left, asked).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                self.doubt();
                Err(CacheError::timed_out("wait for redis within the hard timeout").into())
            }
        }
    }
}

fn unavailable(error: &ClientError) -> Look {
    debug!(%error, "the cache could not be read, the loader is asked");
    Look::Unavailable
}

fn judge(key: &str, class: &KeyClass, policy: &Policy, (value, left): ValueAndLife) -> Look {
    let Some(value) = value else { return Look::Missing };
    match policy.judge(key, left) {
        // There is nothing to refresh ahead in knowing that there is nothing.
        Age::Due if value == class.codec.null() => Look::Found(value.into(), Age::Fresh),
        age => Look::Found(value.into(), age),
    }
}
