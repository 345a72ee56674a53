//! Reads. A hit costs one command, the value, and nothing else.

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{Instrument, debug};

use super::core::{Core, check_key};
use super::observe::{Class, Found};
use super::policy::Sliding;
use super::{Cache, ClientError};
use cachekeeper_engine::stores::redis::CacheError;

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
        self.core.read(key, self.core.backend.get(key)).await
    }

    /// The value's bytes as they stand in Redis.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_bytes(&self, key: &str) -> Result<Option<Vec<u8>>, ClientError> {
        check_key(key)?;
        self.core.ask("read an entry", self.core.backend.get(key)).await
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
        self.core.check_own(key)?;
        self.core.read(key, self.core.backend.get_sliding(key, sliding)).await.into_result()
    }

    /// The values of keys, in their order, in one round trip; none for each that is missing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_many<T: DeserializeOwned>(
        &self,
        keys: &[impl AsRef<str>],
    ) -> Result<Vec<Option<T>>, ClientError> {
        keys.iter().try_for_each(|key| check_key(key.as_ref()))?;
        let began = Instant::now();
        let values = self.core.ask("read entries", self.core.backend.get_many(keys)).await?;
        let took = began.elapsed();
        let typed = |(key, value): (&_, Option<Vec<u8>>)| {
            let key: &str = AsRef::<str>::as_ref(key);
            let class = self.core.class_of(key);
            let (found, read) = typed(class, value);
            class.count(found);
            read.into_result()
        };
        if let Some(first) = keys.first() {
            self.core.report_slow("get_many", first.as_ref(), self.core.class_of(first.as_ref()), took);
        }
        keys.iter().zip(values).map(typed).collect()
    }

    /// Whether a key exists.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn exists(&self, key: &str) -> Result<bool, ClientError> {
        check_key(key)?;
        self.core.ask("look for an entry", self.core.backend.exists(key)).await
    }
}

impl Core {
    async fn read<T: DeserializeOwned>(
        &self,
        key: &str,
        command: impl Future<Output = Result<Option<Vec<u8>>, CacheError>>,
    ) -> Read<T> {
        if let Err(error) = check_key(key) {
            return Read::Unavailable(error);
        }
        let class = self.class_of(key);
        let span = self.span("cache.get", key, class);
        let began = Instant::now();
        // Time is taken around the command only.
        let answer = if span.is_disabled() {
            self.ask("read an entry", command).await
        } else {
            self.ask("read an entry", command).instrument(span.clone()).await
        };
        let took = began.elapsed();
        let (found, read) = match answer {
            Ok(value) => typed(class, value),
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                (Found::Unavailable, Read::Unavailable(error))
            }
        };
        span.record("cache.hit", matches!(found, Found::Hit | Found::Negative));
        self.observe_read(key, class, took, found);
        read
    }
}

/// The value of what was read.
fn typed<T: DeserializeOwned>(class: &Class, value: Option<Vec<u8>>) -> (Found, Read<T>) {
    let Some(bytes) = value else { return (Found::Miss, Read::Miss) };
    match class.codec.decode(&bytes) {
        Ok(value) => (Found::Hit, Read::Hit(value)),
        Err(_) if bytes == class.codec.null() => (Found::Negative, Read::Negative),
        Err(reason) => {
            debug!(dataset = %class.label, reason, "a value does not decode, it counts as a miss");
            (Found::Undecodable, Read::Miss)
        }
    }
}
