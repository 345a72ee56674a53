//! Where the entries are: Redis, or memory for tests.

use std::time::Duration;

use super::in_memory::InMemory;
use super::policy::Sliding;
use cachekeeper_engine::stores::redis::{
    Answer, BatchCommand, BatchReply, CacheError, CounterRule, Precondition, Redis, ValueAndLife,
};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::{EntryBatch, Shape};
use cachekeeper_protocol::stamp::Stamp;

/// Where the entries are. Each operation means the same in both.
#[derive(Debug, Clone)]
pub(super) enum Backend {
    Redis(Box<Redis>),
    Memory(InMemory),
}

/// Members of one page of a tag.
const PAGE: usize = 256;
/// Members and sets that one script looks at to drop what is over.
const DROPPED_AT_ONCE: usize = 1_000;

impl Backend {
    pub async fn ping(&self) -> Result<(), CacheError> {
        match self {
            Self::Redis(redis) => redis.ping().await,
            Self::Memory(_) => Ok(()),
        }
    }

    pub async fn get(&self, key: &str, shape: Shape) -> Result<Option<Vec<u8>>, CacheError> {
        match self {
            Self::Redis(redis) => redis.get(key, shape).await,
            Self::Memory(memory) => Ok(memory.entries().look(key).0),
        }
    }

    pub async fn get_sliding(&self, key: &str, sliding: Sliding) -> Result<Option<Vec<u8>>, CacheError> {
        match self {
            Self::Redis(redis) => redis.get_sliding(key, sliding.span(), sliding.cap()).await,
            Self::Memory(memory) => {
                let mut memory = memory.entries();
                let value = memory.look(key).0;
                let left = sliding.until.map(|end| end.duration_since(std::time::SystemTime::now()));
                let left = left.map_or(sliding.span(), |left| left.unwrap_or_default().min(sliding.span()));
                memory.extend(key, left);
                Ok(value)
            }
        }
    }

    pub async fn expire(&self, key: &str, life_ms: u64) -> Result<bool, CacheError> {
        match self {
            Self::Redis(redis) => redis.expire(key, life_ms).await,
            Self::Memory(memory) => {
                let mut memory = memory.entries();
                memory.extend(key, Duration::from_millis(life_ms));
                Ok(memory.look(key).0.is_some())
            }
        }
    }

    /// Drops tag sets whose window is over; true: there is more to drop.
    pub async fn drop_old_windows(&self) -> Result<bool, CacheError> {
        match self {
            Self::Redis(redis) => {
                redis.drop_old_windows(DROPPED_AT_ONCE).await.map(|dropped| dropped.has_more)
            }
            Self::Memory(_) => Ok(false),
        }
    }

    pub async fn get_many(
        &self,
        keys: &[impl AsRef<str>],
        shape: Shape,
    ) -> Result<Vec<Option<Vec<u8>>>, CacheError> {
        match self {
            Self::Redis(redis) => redis.get_many(keys, shape).await,
            Self::Memory(memory) => {
                let mut memory = memory.entries();
                Ok(keys.iter().map(|key| memory.look(key.as_ref()).0).collect())
            }
        }
    }

    pub async fn exists(&self, key: &str) -> Result<bool, CacheError> {
        match self {
            Self::Redis(redis) => redis.exists(key).await,
            Self::Memory(memory) => Ok(memory.entries().look(key).0.is_some()),
        }
    }

    /// A value with its remaining lifetime in milliseconds.
    pub async fn look_one(&self, key: &str, shape: Shape) -> Result<ValueAndLife, CacheError> {
        match self {
            Self::Redis(redis) => redis.read_one(key, shape).await,
            Self::Memory(memory) => Ok(memory.entries().look(key)),
        }
    }

    /// Values with their remaining lifetimes in milliseconds.
    pub async fn look(
        &self,
        keys: &[impl AsRef<str>],
        shape: Shape,
    ) -> Result<Vec<ValueAndLife>, CacheError> {
        match self {
            Self::Redis(redis) => redis.read(keys, shape).await,
            Self::Memory(memory) => {
                let mut memory = memory.entries();
                Ok(keys.iter().map(|key| memory.look(key.as_ref())).collect())
            }
        }
    }

    /// The same on the server with this mark; none: another one has answered.
    pub async fn look_marked(
        &self,
        keys: &[impl AsRef<str>],
        mark: &str,
        shape: Shape,
    ) -> Result<Option<Vec<ValueAndLife>>, CacheError> {
        match self {
            Self::Redis(redis) => redis.read_marked(keys, mark, shape).await,
            Self::Memory(_) => Ok(None),
        }
    }

    pub async fn look_with_counters(
        &self,
        keys: &[impl AsRef<str>],
        tags: &[String],
        of_dataset: Option<Shape>,
    ) -> Result<(Vec<ValueAndLife>, InvalidationCounters), CacheError> {
        match self {
            Self::Redis(redis) => redis.read_with_counters(keys, tags, of_dataset).await,
            Self::Memory(memory) => {
                let mut memory = memory.entries();
                let counters = memory.counters(keys, tags);
                Ok((keys.iter().map(|key| memory.look(key.as_ref())).collect(), counters))
            }
        }
    }

    pub async fn fill(
        &self,
        batch: &EntryBatch,
        order: CounterRule<'_>,
        stamp: Option<(Precondition<'_>, Stamp)>,
    ) -> Result<Answer<Vec<usize>>, CacheError> {
        match self {
            Self::Redis(redis) => redis.fill(batch, order, stamp).await,
            Self::Memory(memory) => {
                let counters = match order {
                    CounterRule::Unchanged(counters) => Some(counters),
                    CounterRule::Raise => None,
                };
                Ok(Answer::Done(memory.entries().fill(batch, counters, stamp.map(|(_, stamp)| stamp))))
            }
        }
    }

    pub async fn set_plain(&self, batch: &EntryBatch) -> Result<Vec<(usize, CacheError)>, CacheError> {
        match self {
            Self::Redis(redis) => redis.set_plain(batch).await,
            Self::Memory(memory) => {
                memory.entries().fill(batch, None, None);
                Ok(Vec::new())
            }
        }
    }

    pub async fn invalidate(&self, keys: &[impl AsRef<str>]) -> Result<u64, CacheError> {
        match self {
            Self::Redis(redis) => redis.invalidate_keys(keys, "").await,
            Self::Memory(memory) => Ok(memory.entries().invalidate_keys(keys)),
        }
    }

    /// Refuses what is being loaded under these tags, and deletes their members, but for those that `keeps` says; `gone` is told
    /// of the others.
    pub async fn forget_tags(
        &self,
        tags: &[impl AsRef<str>],
        keeps: impl Fn(&str) -> bool,
        gone: impl Fn(&str),
    ) -> Result<u64, CacheError> {
        let redis = match self {
            Self::Redis(redis) => redis,
            Self::Memory(memory) => return Ok(memory.entries().invalidate_tags(tags)),
        };
        let mut deleted = 0;
        for (set, _size) in redis.invalidate_tags(tags).await? {
            let mut cursor = 0;
            loop {
                let (next, members) = redis.scan_set(&set, cursor, PAGE).await?;
                let own: Vec<String> = members.into_iter().filter(|key| !keeps(key)).collect();
                // A set that is small comes whole, whatever page was asked for.
                for page in own.chunks(PAGE) {
                    deleted += redis.invalidate_keys(page, &set).await?;
                    page.iter().for_each(|key| gone(key));
                }
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(deleted)
    }

    pub async fn batch(&self, commands: &[BatchCommand]) -> Result<Vec<BatchReply>, CacheError> {
        let memory = match self {
            Self::Redis(redis) => return redis.batch(commands).await,
            Self::Memory(memory) => memory,
        };
        let mut memory = memory.entries();
        let run = |command: &BatchCommand| match command {
            BatchCommand::Get(key, _) => BatchReply::Value(memory.look(key).0),
            BatchCommand::Exists(key) => BatchReply::Flag(memory.look(key).0.is_some()),
            BatchCommand::Delete(key) => BatchReply::Flag(0 < memory.invalidate_keys(&[key])),
            BatchCommand::Set(key, value, life) => {
                let mut batch = EntryBatch::default();
                batch.push(key, value, *life);
                memory.fill(&batch, None, None);
                BatchReply::Stored
            }
        };
        Ok(commands.iter().map(run).collect())
    }

    pub async fn register_prefixes(&self, prefixes: &[String]) -> Result<bool, CacheError> {
        match self {
            Self::Redis(redis) => redis.register_prefixes(prefixes).await,
            Self::Memory(_) => Ok(true),
        }
    }

    pub async fn publish(&self, channel: &str, body: &[u8]) -> Result<u64, CacheError> {
        match self {
            Self::Redis(redis) => redis.publish(channel, body).await,
            Self::Memory(memory) => Ok(memory.publish(channel, body)),
        }
    }

    /// The same, to add to it.
    #[cfg(feature = "postgres")]
    pub fn in_memory_mut(&mut self) -> Option<&mut InMemory> {
        match self {
            Self::Redis(_) => None,
            Self::Memory(memory) => Some(memory),
        }
    }

    /// The one in memory.
    #[cfg(feature = "postgres")]
    pub fn in_memory(&self) -> Option<&InMemory> {
        match self {
            Self::Redis(_) => None,
            Self::Memory(memory) => Some(memory),
        }
    }
}

/// How long a reply may take before the breaker's probe counts as failed.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(1);
