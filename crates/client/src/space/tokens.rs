//! Read your writes: reads that are at least as fresh as a token of a write (R18).

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Space, SpaceKey};
use crate::error::ClientError;
use cachekeeper_engine::tokens::{self, WaitError};
use cachekeeper_protocol::token::Token;

/// How fresh a value is, beside a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// At least as fresh as the token.
    Fresh,
    /// Perhaps older than the token, and as fresh as the database was so long ago, by the clocks of this machine and of the database.
    StaleAtMost(Duration),
    /// Not known: there is no watermark, the token is of another incarnation, or it does not hold for this dataset.
    Unknown,
}

/// A value with how fresh it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadAt<V> {
    /// The value in Redis; none: there is none.
    pub value: Option<V>,
    /// How fresh that is.
    pub freshness: Freshness,
}

impl<K, V> Space<K, V>
where
    K: SpaceKey + ?Sized,
    V: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    /// The value, at least as fresh as a token: from Redis if the watermark says so, else from Postgres. It goes past the near cache.
    ///
    /// # Errors
    /// [`ClientError::NoSource`] where the space is not a dataset's; [`ClientError::Timeout`] after the policy's hard timeout; others
    /// where the value is in neither.
    pub async fn get_at(&self, key: &K, token: &Token) -> Result<Option<V>, ClientError> {
        let key = self.key(key)?;
        let dataset = self.dataset.as_ref().ok_or(ClientError::NoSource)?;
        dataset.get_since_by_key(&key.into(), token, &self.policy).await
    }

    /// The value as Redis has it, and whether it is as fresh as a token; so long it is waited for that. Postgres is not asked.
    ///
    /// # Errors
    /// [`ClientError::NoSource`] where the space is not a dataset's; [`ClientError::Decode`]; [`ClientError::Unavailable`], also where
    /// too many wait already.
    pub async fn read_at(&self, key: &K, token: &Token, wait: Duration) -> Result<ReadAt<V>, ClientError> {
        let key_given = key;
        let key = self.key(key)?;
        let dataset = self.dataset.as_ref().ok_or(ClientError::NoSource)?;
        let Some(context) = dataset.context() else {
            // In memory, what is put there is seen to at once.
            return Ok(ReadAt { value: self.get(key_given).await?, freshness: Freshness::Fresh });
        };
        if !wait.is_zero() {
            let waited = tokens::wait(context, token, Some(dataset.name()), wait).await;
            waited.map_err(|error| match error {
                WaitError::Flow(error) => error.into(),
                error @ WaitError::TooMany => ClientError::unavailable(&error.to_string()),
            })?;
        }
        let read = async { context.redis.read_with_watermark(&key, dataset.class().shape).await };
        let hidden = self.cache.core.breaker.hidden(&[&key]);
        let (bytes, watermark) = self.cache.core.ask("read an entry and the watermark", read).await?;
        let freshness = match &watermark {
            _ if tokens::satisfies(watermark.as_ref(), token, Some(dataset.name())) => Freshness::Fresh,
            Some(watermark) if watermark.incarnation == token.incarnation => {
                watermark.age_for(dataset.name()).map_or(Freshness::Unknown, Freshness::StaleAtMost)
            }
            _ => Freshness::Unknown,
        };
        Ok(ReadAt {
            value: dataset.typed(&key, bytes.filter(|_| hidden.is_empty()).map(Into::into))?,
            freshness,
        })
    }
}
