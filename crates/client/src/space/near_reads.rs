//! Reads by way of the near cache.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::keys::render;
use super::short_text::ShortText;
use super::{Space, SpaceKey};
use crate::error::ClientError;
use crate::key_class::ReadOutcome;
use crate::near::{NearHit, NearStore};

/// What a read found, near or in Redis.
#[derive(Debug, Clone)]
pub(super) enum Found<V> {
    /// A value.
    Value(V),
    /// An explicit null.
    Null,
    /// Nothing.
    Missing,
}

impl<V> Found<V> {
    pub fn value(self) -> Option<V> {
        match self {
            Self::Value(value) => Some(value),
            Self::Null | Self::Missing => None,
        }
    }
}

/// The same, with how old it may be and how long it lives on.
#[derive(Debug, Clone)]
pub(super) struct NearRead<V> {
    pub found: Found<V>,
    /// Of one that was near; none: it comes from Redis.
    pub stale_at_most: Option<Duration>,
    /// Milliseconds, -1: without end; of a missing one, nothing.
    pub left_ms: i64,
}

impl<K, V> Space<K, V>
where
    K: SpaceKey + ?Sized,
    V: DeserializeOwned + Clone + Send + Sync + 'static,
{
    /// A value that is near and may be served. Nothing is allocated for it but what the value needs.
    pub(super) fn near_now(&self, key: &K) -> Option<NearRead<V>> {
        let near = self.near.as_ref()?;
        if self.is_loaded_from_elsewhere() {
            // Its template makes the key.
            return self.near_hit(near, &self.key(key).ok()?);
        }
        let mut text = ShortText::new();
        text.write_str(&self.prefix).ok()?;
        render(key, &mut text).ok()?;
        self.near_hit(near, text.as_str()?)
    }

    /// A value that is near and may be served.
    pub(super) fn near_hit(&self, near: &Arc<NearStore<V>>, key: &str) -> Option<NearRead<V>> {
        let NearHit { value, is_missing, stale_at_most, left } = near.hit(key)?;
        let found = match value {
            Some(value) => Found::Value(value),
            None if is_missing => Found::Missing,
            None => Found::Null,
        };
        self.class.count(match &found {
            Found::Value(_) => ReadOutcome::Hit,
            Found::Null => ReadOutcome::Negative,
            Found::Missing => ReadOutcome::Miss,
        });
        let left_ms = left.map_or(-1, |left| i64::try_from(left.as_millis()).unwrap_or(i64::MAX));
        Some(NearRead { found, stale_at_most: Some(stale_at_most), left_ms })
    }

    /// The value: near, or from Redis, and then near for who comes next.
    pub(super) async fn read_near(
        &self,
        near: &Arc<NearStore<V>>,
        key: &str,
    ) -> Result<NearRead<V>, ClientError> {
        let core = &self.cache.core;
        core.near.follow();
        if let Some(hit) = self.near_hit(near, key) {
            return Ok(hit);
        }
        // Of the key: a space within this one may have another format.
        let class = core.class_of(key);
        let ticket = near.begin(key).await;
        // After the ticket: what is noted later takes it away, and then nothing is kept.
        if !core.breaker.hidden(&[key]).is_empty() {
            self.class.count(ReadOutcome::Miss);
            return Ok(NearRead { found: Found::Missing, stale_at_most: None, left_ms: -1 });
        }
        if let Some(hit) = self.near_hit(near, key) {
            return Ok(hit);
        }
        let marked = match &ticket {
            Some(ticket) => {
                let look = core.backend.look_marked(key, &ticket.mark, class.shape);
                let read = core.ask("read an entry", look).await?;
                if read.is_none() {
                    core.near.lose_mark(&ticket.mark);
                }
                read
            }
            None => None,
        };
        let ticket = ticket.as_ref().filter(|_| marked.is_some());
        let (bytes, left_ms) = match marked {
            Some(read) => read,
            None => {
                let mut looked = core.ask("read an entry", core.backend.look(&[key], class.shape)).await?;
                looked.pop().unwrap_or((None, -1))
            }
        };
        let Some(bytes) = bytes else {
            self.class.count(ReadOutcome::Miss);
            ticket.inspect(|ticket| ticket.keep_missing());
            return Ok(NearRead { found: Found::Missing, stale_at_most: None, left_ms });
        };
        let found = match class.decode::<V>(&bytes) {
            Ok(value) => {
                self.class.count(ReadOutcome::Hit);
                ticket.inspect(|ticket| ticket.keep(Some(value.clone()), bytes.len(), left_ms));
                Found::Value(value)
            }
            Err(_) if bytes == class.codec.null() => {
                self.class.count(ReadOutcome::Negative);
                ticket.inspect(|ticket| ticket.keep(None, bytes.len(), left_ms));
                Found::Null
            }
            Err(reason) => {
                self.class.count(ReadOutcome::Undecodable);
                tracing::debug!(dataset = %self.class.label, reason, "a value does not decode, it counts as a miss");
                Found::Missing
            }
        };
        Ok(NearRead { found, stale_at_most: None, left_ms })
    }
}
