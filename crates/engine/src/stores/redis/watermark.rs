//! The cursor of the feed and the watermark, which move together (R12).

use redis::{FromRedisValue, ParsingError, Value};
use serde::{Deserialize, Serialize};

use super::precondition::read_word;
use super::script::{ADVANCE, Call};
use super::{Answer, CacheError, Epoch, PendingRevalidation, Precondition, Redis};
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
}

/// A move of the cursor.
#[derive(Debug)]
pub struct Advance<'a> {
    /// The feed's counted job and how many of its scripts have run.
    pub job: (&'a str, u64),
    /// Where the cursor was read.
    pub from: &'a str,
    /// Where it goes.
    pub to: &'a Snapshot,
    /// The database's clock then.
    pub as_of: &'a str,
    /// The datasets that are covered, each with its coverage fingerprint.
    pub covered: &'a [(String, String)],
    /// What becomes pending for a dataset that was not covered, or had another fingerprint.
    pub pending: &'a PendingRevalidation,
}

/// How a move ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advanced {
    /// The cursor and the watermark have moved.
    Done,
    /// Scripts of the batch are missing: Redis was rolled back.
    RolledBack,
    /// Another worker leads.
    Moved,
}

impl FromRedisValue for Advanced {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let words = [("DONE", Self::Done), ("ROLLED_BACK", Self::RolledBack), ("MOVED", Self::Moved)];
        read_word(&value, &words)
    }
}

impl Redis {
    /// Moves the cursor and the watermark, if every script of the batch is still there and nobody else moved it.
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
        let mut call = Call::guarded(&ADVANCE, self, on, [&on.watermark].into_iter(), Some(&precondition));
        call.arg(advance.job.0).number(advance.job.1);
        call.arg(advance.from).arg(advance.to.as_str()).arg(advance.as_of);
        call.arg(&advance.pending.0).arg(epoch.to_string());
        for (dataset, fingerprint) in advance.covered {
            call.arg(dataset).arg(fingerprint);
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
    pub(crate) async fn read_with_watermark(
        &self,
        key: &str,
    ) -> Result<(Option<Vec<u8>>, Option<Watermark>), CacheError> {
        let command = redis::cmd("MGET").arg(key).arg(&self.keys.metadata_of(key).watermark).to_owned();
        let (value, text): (Option<Vec<u8>>, Option<Vec<u8>>) =
            self.command("read a value with the watermark", &command).await?;
        Ok((value, text.map(|text| parse(&text)).transpose()?))
    }
}

fn parse(text: &[u8]) -> Result<Watermark, CacheError> {
    serde_json::from_slice(text)
        .map_err(|error| CacheError::unexpected("read the watermark", &error.to_string()))
}
