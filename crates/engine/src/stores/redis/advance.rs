//! The cursor of the feed and the watermark, and the script that moves both.

use std::time::{Duration, SystemTime};

use redis::{FromRedisValue, ParsingError, Value};
use serde::{Deserialize, Serialize};

use super::hashes::{ask_values, take_values};
use super::script::{ADVANCE, Call, nonce, pack, read_word};
use super::{Adopted, Answer, CacheError, Epoch, Precondition, Redis, ShardServer};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::moment::parse_utc;
use cachekeeper_protocol::stamp::Snapshot;

/// What every entry is at least as fresh as, but for the datasets it names. It is the JSON in Redis
/// under `ck:{<namespace>:0}:watermark`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// The epoch.
    pub epoch: String,
    /// The incarnation that the snapshot belongs to.
    pub incarnation: String,
    /// The snapshot, as `pg_current_snapshot()` prints it.
    pub snapshot: String,
    /// The database's clock when the snapshot was taken (RFC 3339).
    pub as_of: String,
    /// Datasets that this does not hold for.
    pub not_covered: Vec<String>,
    /// On a cluster: the cluster slots that this holds for, where their guards name this shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covers: Option<ClusterSlotSet>,
    /// On a cluster: the id of the node that it was written at. It does not count at another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// On a cluster: the runs of all servers, as its writer knew them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<Vec<String>>,
}

impl Watermark {
    /// How long ago the database was as every entry of this dataset is now, by the clocks of this machine and of the database; none:
    /// it does not hold for the dataset.
    #[must_use]
    pub fn age_for(&self, dataset: &str) -> Option<Duration> {
        if self.not_covered.iter().any(|name| name == dataset) {
            return None;
        }
        self.age()
    }

    /// The same of the datasets that it holds for.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        Some(SystemTime::now().duration_since(parse_utc(&self.as_of)?).unwrap_or_default())
    }
}

/// Why a dataset is pending that was not covered until now, or had another fingerprint.
const NEWLY_COVERED: &str = "newly covered";
/// The same for one that is not followed any more as it was.
const NO_LONGER_COVERED: &str = "what its query reads, or what captures its changes, has changed";

/// A move of the cursor.
#[derive(Debug)]
pub struct Advance<'a> {
    /// The feed's counted job and how many of its scripts have run.
    pub job: (&'a str, u64),
    /// Where the cursor was read.
    pub from: &'a str,
    /// Where it goes.
    pub to: &'a Snapshot,
    /// The database's clock then, where the watermark moves too: the fingerprints were verified there.
    pub watermark: Option<&'a str>,
    /// Whether it is to wait for former definitions that are not followed. Else their entries are to go.
    pub waits_for_former: bool,
    /// The datasets whose changes are followed. Any other one becomes pending.
    pub followed: &'a [Followed<'a>],
    /// On a shard of a cluster: what becomes of its cluster slots.
    pub of_shard: Option<&'a ShardAdvance<'a>>,
}

/// What a move of the cursor says of a shard's cluster slots. It is refused where any of it is not so.
#[derive(Debug)]
pub struct ShardAdvance<'a> {
    /// The shard's server, its run, and the cluster slots that it serves.
    pub server: &'a ShardServer,
    /// The runs of all servers, in the order of their names.
    pub runs: &'a [String],
    /// What the shard has adopted, as it was when the batch was routed.
    pub adopted: &'a Adopted,
    /// Those of which no other server holds entries, and none shows that they are moving. The watermark covers no other one.
    pub clear: &'a ClusterSlotSet,
    /// Those with a change that a script has refused. They are to be adopted again.
    pub refused: &'a ClusterSlotSet,
}

impl ShardAdvance<'_> {
    /// As the script is given it.
    fn arguments(&self, redis: &Redis) -> Vec<Vec<u8>> {
        let Self { server, adopted, .. } = self;
        let lost = adopted.all().without(self.clear).or(&adopted.all().without(&server.serves));
        let dropped = lost.or(self.refused);
        let covers = adopted.settled().without(&dropped);
        let runs = serde_json::to_string(self.runs).unwrap_or_default();
        let shard = redis.keys.metadata().number.to_string();
        let mut arguments: Vec<Vec<u8>> = [
            server.run.clone(),
            runs.clone(),
            server.node.clone(),
            server.serves.to_string(),
            adopted.changes.to_string(),
            covers.to_string(),
        ]
        .map(String::into_bytes)
        .into();
        arguments.push(pack(dropped.iter().map(|slot| u32::from(slot.number()))));
        arguments.extend([adopted.runs.clone(), shard].map(String::into_bytes));
        if runs != adopted.runs {
            let guard =
                |slot: ClusterSlot| [slot.to_string(), redis.keys.guard(slot)].map(String::into_bytes);
            arguments.extend(adopted.all().iter().flat_map(guard));
        }
        arguments
    }
}

/// A dataset whose changes are followed.
#[derive(Debug, Clone, Copy)]
pub struct Followed<'a> {
    /// Its name.
    pub dataset: &'a str,
    /// The definition by which it is followed; where another one is registered it is not.
    pub definition: &'a str,
    /// Its coverage fingerprint; empty: not known yet. Then the watermark leaves it out, and nothing is revalidated.
    pub fingerprint: &'a str,
    /// A recorded fingerprint that this one takes the place of although nothing needs to be revalidated; empty: none.
    pub replaces: &'a str,
}

/// How a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advanced {
    /// The cursor and the watermark have moved.
    Done,
    /// They have, and datasets became pending.
    MadePending,
    /// Scripts of the batch are missing: Redis was rolled back.
    RolledBack,
    /// Another worker leads.
    Moved,
    /// Nothing has moved: a former definition is not followed yet.
    Unfollowed,
}

impl FromRedisValue for Advanced {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let words = [
            ("DONE", Self::Done),
            ("PENDING", Self::MadePending),
            ("ROLLED_BACK", Self::RolledBack),
            ("MOVED", Self::Moved),
            ("UNFOLLOWED", Self::Unfollowed),
        ];
        read_word(&value, &words)
    }
}

impl Redis {
    /// Moves the cursor, and with it the watermark, if every script of the batch is still there and nobody else moved it.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] it may have moved.
    pub async fn advance(
        &self,
        epoch: &Epoch,
        incarnation: &str,
        advance: &Advance<'_>,
    ) -> Result<Answer<Advanced>, CacheError> {
        let on = self.keys.metadata();
        let precondition = Precondition::of_epoch(epoch, incarnation);
        let of_shard = advance.of_shard.map(|advance| advance.arguments(self)).unwrap_or_default();
        let keys = if advance.of_shard.is_some() { 2 } else { 1 };
        let keys = [&on.watermark, &on.adopted].into_iter().take(keys);
        let mut call = Call::guarded_with(&ADVANCE, self, on, keys, &of_shard, Some(&precondition));
        call.arg(advance.job.0).number(advance.job.1);
        call.arg(advance.from).arg(advance.to.as_str()).arg(advance.watermark.unwrap_or_default());
        call.arg(NEWLY_COVERED).arg(NO_LONGER_COVERED).arg(epoch.to_string()).arg(nonce());
        call.arg(if advance.waits_for_former { "1" } else { "" });
        for followed in advance.followed {
            call.arg(followed.dataset)
                .arg(followed.definition)
                .arg(followed.fingerprint)
                .arg(followed.replaces);
        }
        call.run(self).await
    }

    /// The watermark; none: there is none (yet, or any more).
    pub async fn watermark(&self) -> Result<Option<Watermark>, CacheError> {
        let command = redis::cmd("GET").arg(&self.keys.metadata().watermark).to_owned();
        let text: Option<Vec<u8>> = self.command("read the watermark", &command).await?;
        text.map(|text| parse(&text)).transpose()
    }

    /// A value and the watermark of the same moment.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn read_with_watermark(
        &self,
        key: &str,
        shape: Shape,
    ) -> Result<(Option<Vec<u8>>, Option<Watermark>), CacheError> {
        if shape == Shape::Hash {
            return self.read_hash_with_watermark(key).await;
        }
        let command = redis::cmd("MGET").arg(key).arg(&self.keys.metadata_of(key).watermark).to_owned();
        let (value, text): (Option<Vec<u8>>, Option<Vec<u8>>) =
            self.command("read a value with the watermark", &command).await?;
        Ok((value, text.map(|text| parse(&text)).transpose()?))
    }

    async fn read_hash_with_watermark(
        &self,
        key: &str,
    ) -> Result<(Option<Vec<u8>>, Option<Watermark>), CacheError> {
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        let of_value = ask_values(&mut pipeline, &[key], Shape::Hash);
        pipeline.cmd("GET").arg(&self.keys.metadata_of(key).watermark);
        let mut replies = self.pipeline("read a value with the watermark", &pipeline, of_value + 1).await?;
        let value = take_values(&mut replies, 1, Shape::Hash)?.pop().flatten();
        let text: Option<Vec<u8>> = replies.next()?;
        Ok((value, text.map(|text| parse(&text)).transpose()?))
    }
}

pub(super) fn parse(text: &[u8]) -> Result<Watermark, CacheError> {
    serde_json::from_slice(text)
        .map_err(|error| CacheError::unexpected("read the watermark", &error.to_string()))
}
