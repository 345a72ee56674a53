//! How a shard of a cluster adopts cluster slots, and settles them once their entries were loaded again.
//!
//! What a shard has adopted stands in its table, and in the guard of each cluster slot, which migrates with it. Scripts act only where
//! the guard says what the caller knows (R20).

use std::sync::Arc;

use redis::{FromRedisValue, ParsingError, Value};

use super::script::{ADOPT, Call, SETTLE};
use super::{Adopted, Answer, CacheError, Epoch, Precondition, Redis, Refusal};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::guard::{Generation, Guard};
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;

/// Guards of one pipeline.
const GUARDS_AT_ONCE: usize = 1_000;

/// How an adoption ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// What it is known by.
    pub generation: Generation,
    /// The cluster slots that were refused: the server does not serve them, or they are moving.
    pub refused: ClusterSlotSet,
}

/// Positions of a list.
struct Positions(Vec<usize>);

impl FromRedisValue for Positions {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        Vec::from_redis_value(value).map(Self)
    }
}

impl Positions {
    fn of(&self, slots: &[ClusterSlot]) -> ClusterSlotSet {
        self.0.iter().filter_map(|position| slots.get(*position).copied()).collect()
    }
}

impl Redis {
    /// Whether a key is one of those that this handle may store: on a single Redis every key is.
    #[must_use]
    pub fn takes(&self, key: &str) -> bool {
        let is_adopted = |adopted: &Arc<Adopted>| adopted.guard(ClusterSlot::of(key.as_bytes())).is_some();
        self.adopted.as_ref().is_none_or(is_adopted)
    }

    /// Whether a key is one of those, and its cluster slot is adopted now as it was when this handle was made.
    #[must_use]
    pub(crate) fn takes_as(&self, key: &str, now: &Adopted) -> bool {
        let slot = ClusterSlot::of(key.as_bytes());
        self.adopted
            .as_ref()
            .is_some_and(|then| then.guard(slot).is_some() && then.guard(slot) == now.guard(slot))
    }

    /// Those of these adopted cluster slots whose guard does not say so (any more): others have had them meanwhile, or have them now.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn foreign_guards(
        &self,
        adopted: &Adopted,
        slots: &ClusterSlotSet,
    ) -> Result<ClusterSlotSet, CacheError> {
        let slots: Vec<ClusterSlot> = slots.iter().collect();
        let mut foreign = ClusterSlotSet::default();
        for part in slots.chunks(GUARDS_AT_ONCE) {
            for (slot, says) in part.iter().zip(self.guards_of(part).await?) {
                if says != adopted.guard(*slot) {
                    foreign.insert(*slot);
                }
            }
        }
        Ok(foreign)
    }

    /// The shards that the guards of these cluster slots name, where the server has them.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(super) async fn guarded_by(&self, slots: &[ClusterSlot]) -> Result<Vec<u32>, CacheError> {
        Ok(self.guards_of(slots).await?.into_iter().flatten().map(|guard| guard.shard).collect())
    }

    /// What the guards of these cluster slots say; none: nothing, or the cluster slot has moved to another node since it was listed.
    async fn guards_of(&self, slots: &[ClusterSlot]) -> Result<Vec<Option<Guard>>, CacheError> {
        let mut pipeline = redis::pipe();
        for slot in slots {
            pipeline.cmd("GET").arg(self.keys.guard(*slot));
        }
        pipeline.ignore_errors();
        let mut replies = self.pipeline("look at guards", &pipeline, slots.len()).await?;
        let mut guards = Vec::with_capacity(slots.len());
        for _slot in slots {
            guards.push(match replies.next::<Option<String>>() {
                Ok(says) => says.and_then(|says| says.parse().ok()),
                Err(error) if error.refusal == Refusal::Elsewhere => None,
                Err(error) => return Err(error),
            });
        }
        Ok(guards)
    }

    /// How many keys each of these cluster slots has, which the server must serve.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn key_counts(&self, slots: &[ClusterSlot]) -> Result<Vec<u64>, CacheError> {
        let mut pipeline = redis::pipe();
        for slot in slots {
            pipeline.cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot.number());
        }
        let mut counts = self.pipeline("count the keys of cluster slots", &pipeline, slots.len()).await?;
        slots.iter().map(|_slot| counts.next()).collect()
    }

    /// The keys of entries in these cluster slots, which the server must serve.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn entries_within(&self, slots: &[ClusterSlot]) -> Result<Vec<String>, CacheError> {
        let counts = self.key_counts(slots).await?;
        let mut pipeline = redis::pipe();
        let mut asked = 0;
        for (slot, count) in slots.iter().zip(counts).filter(|(_, count)| 0 < *count) {
            pipeline.cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot.number()).arg(count);
            asked += 1;
        }
        if asked == 0 {
            return Ok(Vec::new());
        }
        let mut replies = self.pipeline("list the entries of cluster slots", &pipeline, asked).await?;
        let mut keys = Vec::new();
        for _slot in 0..asked {
            let found: Vec<Vec<u8>> = replies.next()?;
            let found = found.into_iter().filter_map(|key| String::from_utf8(key).ok());
            keys.extend(found.filter(|key| !key.starts_with(RESERVED_PREFIX)));
        }
        Ok(keys)
    }

    /// What the shard has adopted in this epoch; none: its table is lost, or another epoch has begun.
    pub async fn read_adopted(&self, epoch: &Epoch) -> Result<Option<Arc<Adopted>>, CacheError> {
        let on = self.keys.metadata();
        let mut pipeline = redis::pipe();
        pipeline.atomic().cmd("HMGET").arg(&on.meta).arg("adoptions").arg("runs");
        pipeline.cmd("GET").arg(&on.adopted);
        let mut replies = self.pipeline("read the adopted cluster slots", &pipeline, 2).await?;
        let (changes, runs): (Option<u64>, Option<String>) = replies.next()?;
        let table: Vec<u8> = replies.next::<Option<Vec<u8>>>()?.unwrap_or_default();
        let known = (changes.unwrap_or_default(), runs.unwrap_or_default());
        Ok(Adopted::read(on.number, known, table, epoch.as_bytes()).map(Arc::new))
    }

    /// The same as of now, where what is `known` may be it: then the table is not read.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn adopted_now(
        &self,
        known: Option<&Arc<Adopted>>,
    ) -> Result<Option<Arc<Adopted>>, CacheError> {
        let meta = &self.keys.metadata().meta;
        let command = redis::cmd("HMGET").arg(meta).arg("epoch").arg("adoptions").arg("runs").to_owned();
        let (epoch, changes, runs): (Option<Vec<u8>>, Option<u64>, Option<String>) =
            self.command("read the adopted cluster slots", &command).await?;
        let Some(epoch) = epoch.and_then(|bytes| bytes.try_into().ok()).map(Epoch::from_bytes) else {
            return Ok(None);
        };
        let is_it = |known: &&Arc<Adopted>| {
            known.is_of(epoch.as_bytes())
                && known.changes == changes.unwrap_or_default()
                && known.runs == runs.as_deref().unwrap_or_default()
        };
        match known.filter(is_it) {
            Some(known) => Ok(Some(Arc::clone(known))),
            None => self.read_adopted(&epoch).await,
        }
    }

    /// Adopts cluster slots: from now on only what was loaded after this is stored there. `run` is that of the server when it was
    /// asked whether others hold entries of them.
    pub async fn adopt(
        &self,
        precondition: &Precondition<'_>,
        run: &str,
        slots: &[ClusterSlot],
    ) -> Result<Answer<Adoption>, CacheError> {
        let on = self.keys.metadata();
        let generation = Generation::from_bytes(rand::random());
        let keys = [&on.watermark, &on.adopted].into_iter();
        let mut call = Call::guarded(&ADOPT, self, on, keys, Some(precondition));
        call.arg(run).arg(Guard { shard: on.number, generation }.to_string()).arg(generation.as_bytes());
        for slot in slots {
            call.arg(slot.to_string()).arg(self.keys.guard(*slot));
        }
        Ok(match call.run::<Answer<Positions>>(self).await? {
            Answer::Done(refused) => Answer::Done(Adoption { generation, refused: refused.of(slots) }),
            Answer::Failed(failed) => Answer::Failed(failed),
        })
    }

    /// Settles adopted cluster slots whose entries were loaded again. Answers those that are not pending by this adoption (any more).
    pub async fn settle(
        &self,
        precondition: &Precondition<'_>,
        run: &str,
        generation: &Generation,
        slots: &[ClusterSlot],
    ) -> Result<Answer<ClusterSlotSet>, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::guarded(&SETTLE, self, on, [&on.adopted].into_iter(), Some(precondition));
        call.arg(run).arg(generation.as_bytes());
        for slot in slots {
            call.arg(slot.to_string());
        }
        Ok(match call.run::<Answer<Positions>>(self).await? {
            Answer::Done(refused) => Answer::Done(refused.of(slots)),
            Answer::Failed(failed) => Answer::Failed(failed),
        })
    }
}
