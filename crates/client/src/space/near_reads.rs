//! Reads by way of the near cache.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::keys::render;
use super::short_text::ShortText;
use super::{Space, SpaceKey};
use crate::error::ClientError;
use crate::key_class::{KeyClass, ReadOutcome};
use crate::near::{NearHit, NearStore, NearTicket};
use cachekeeper_engine::stores::redis::ValueAndLife;
use cachekeeper_protocol::entry::Shape;

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

impl<V> NearRead<V> {
    fn missing(left_ms: i64) -> Self {
        Self { found: Found::Missing, stale_at_most: None, left_ms }
    }
}

/// Keys of the first command for many, and of any: it grows while replies are small.
const PAGE_FIRST: usize = 64;
const PAGE_MAX: usize = 256;
/// Bytes of a reply that are little and much: Redis serves nobody else while it makes one, and it waits here in memory.
const LITTLE: usize = 256 << 10;
const MUCH: usize = 1 << 20;

/// How many keys the next command has.
fn next_page(page: usize, bytes: usize) -> usize {
    match bytes {
        ..LITTLE => (page * 2).min(PAGE_MAX),
        LITTLE..MUCH => page,
        _ => (page * MUCH / bytes).max(1),
    }
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
        let (mut reads, _bytes) = self.read_page_near(near, &[key]).await?;
        Ok(reads.pop().unwrap_or_else(|| NearRead::missing(-1)))
    }

    /// The same of many, in their order: what is not near is read page by page. Where one fails, or time is over, the answer is of the
    /// keys before it, with the error if there is one.
    pub(super) async fn read_all_near(
        &self,
        near: &Arc<NearStore<V>>,
        keys: &[&str],
        until: Option<Instant>,
    ) -> (Vec<NearRead<V>>, Option<ClientError>) {
        let mut places = HashMap::with_capacity(keys.len());
        let mut unique = Vec::with_capacity(keys.len());
        for key in keys {
            places.entry(*key).or_insert_with(|| {
                unique.push(*key);
                unique.len() - 1
            });
        }
        let (mut reads, mut error) = (Vec::with_capacity(unique.len()), None);
        let (mut rest, mut page) = (&unique[..], PAGE_FIRST);
        while !rest.is_empty() {
            let (wanted, after) = rest.split_at(page.min(rest.len()));
            let reading = self.read_page_near(near, wanted);
            let read = match until {
                None => Some(reading.await),
                Some(until) => timeout_at(until, reading).await.ok(),
            };
            match read {
                Some(Ok((read, bytes))) => {
                    reads.extend(read);
                    page = next_page(page, bytes);
                    rest = after;
                }
                failed => {
                    error = failed.and_then(Result::err);
                    break;
                }
            }
        }
        let of_key = |key: &&str| places.get(key).and_then(|at| reads.get(*at)).cloned();
        (keys.iter().map_while(of_key).collect(), error)
    }

    /// The reads of a page, and how many bytes came for them.
    async fn read_page_near(
        &self,
        near: &Arc<NearStore<V>>,
        keys: &[&str],
    ) -> Result<(Vec<NearRead<V>>, usize), ClientError> {
        let core = &self.cache.core;
        core.near.follow();
        let mut came = 0;
        let mut reads: Vec<_> = keys.iter().map(|key| self.near_hit(near, key)).collect();
        let far = keys.iter().zip(&mut reads).filter(|(_, read)| read.is_none());
        let (far, places): (Vec<&str>, Vec<_>) = far.map(|(key, read)| (*key, read)).unzip();
        if !far.is_empty() {
            let ticket = near.begin(&far).await;
            // After the ticket: what is noted later takes it away, and then nothing is kept.
            let hidden = core.breaker.hidden(&far);
            let mut of_shapes: BTreeMap<Shape, Vec<_>> = BTreeMap::new();
            for ((at, key), place) in far.iter().enumerate().zip(places) {
                if hidden.binary_search(&at).is_ok() {
                    self.class.count(ReadOutcome::Miss);
                    *place = Some(NearRead::missing(-1));
                } else if let Some(hit) = self.near_hit(near, key) {
                    *place = Some(hit);
                } else {
                    // Of the key: a space within this one may have another format.
                    let class = core.class_of(key);
                    of_shapes.entry(class.shape).or_default().push((at, class, place));
                }
            }
            for (shape, wanted) in of_shapes {
                let keys: Vec<&str> = wanted.iter().filter_map(|(at, ..)| far.get(*at)).copied().collect();
                let (looked, ticket) = self.look_near(ticket.as_ref(), &keys, shape).await?;
                for ((at, class, place), (bytes, left_ms)) in wanted.into_iter().zip(looked) {
                    came += bytes.as_ref().map_or(0, Vec::len);
                    *place = Some(self.taken(&class, bytes, left_ms, ticket.map(|ticket| (ticket, at))));
                }
            }
        }
        let reads = reads.into_iter().map(|read| read.unwrap_or_else(|| NearRead::missing(-1)));
        Ok((reads.collect(), came))
    }

    /// Values as Redis has them; with the ticket where it was the server that tells of changes.
    async fn look_near<'a>(
        &self,
        ticket: Option<&'a NearTicket<V>>,
        keys: &[&str],
        shape: Shape,
    ) -> Result<(Vec<ValueAndLife>, Option<&'a NearTicket<V>>), ClientError> {
        let core = &self.cache.core;
        if let Some(ticket) = ticket {
            let look = core.backend.look_marked(keys, &ticket.mark, shape);
            if let Some(looked) = core.ask("read entries", look).await? {
                return Ok((looked, Some(ticket)));
            }
            core.near.lose_mark(&ticket.mark);
        }
        Ok((core.ask("read entries", core.backend.look(keys, shape)).await?, None))
    }

    /// What was read, decoded; kept near under the ticket, if there is one.
    fn taken(
        &self,
        class: &KeyClass,
        bytes: Option<Vec<u8>>,
        left_ms: i64,
        ticket: Option<(&NearTicket<V>, usize)>,
    ) -> NearRead<V> {
        let Some(bytes) = bytes else {
            self.class.count(ReadOutcome::Miss);
            ticket.inspect(|(ticket, at)| ticket.keep_missing(*at));
            return NearRead::missing(left_ms);
        };
        let found = match class.decode::<V>(&bytes) {
            Ok(value) => {
                self.class.count(ReadOutcome::Hit);
                ticket.inspect(|(ticket, at)| ticket.keep(*at, Some(value.clone()), bytes.len(), left_ms));
                Found::Value(value)
            }
            Err(_) if bytes == class.codec.null() => {
                self.class.count(ReadOutcome::Negative);
                ticket.inspect(|(ticket, at)| ticket.keep(*at, None, bytes.len(), left_ms));
                Found::Null
            }
            Err(reason) => {
                self.class.count(ReadOutcome::Undecodable);
                tracing::debug!(dataset = %self.class.label, reason, "a value does not decode, it counts as a miss");
                Found::Missing
            }
        };
        NearRead { found, stale_at_most: None, left_ms }
    }
}
