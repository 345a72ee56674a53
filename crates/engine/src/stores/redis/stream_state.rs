//! How a stream of entries stands, and who reads it.

use std::collections::HashMap;
use std::time::Duration;

use redis::Value;

use super::stream::{RawEntry, dead_of, position};
use super::{CacheError, Redis};

/// The state of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Entries.
    pub length: u64,
    /// Entries that somebody has and has not finished.
    pub pending: u64,
    /// The oldest entry's id.
    pub oldest: Option<String>,
    /// The newest entry's id.
    pub newest: Option<String>,
    /// For how long the oldest entry has been there, by Redis's clock, which made its id.
    pub oldest_age: Duration,
    /// Entries kept apart.
    pub dead: u64,
}

impl StreamState {
    /// The oldest entry as two numbers.
    #[must_use]
    pub(crate) fn oldest_position(&self) -> Option<(i64, i64)> {
        self.oldest.as_deref().map(position)
    }

    /// The newest entry as two numbers.
    #[must_use]
    pub(crate) fn newest_position(&self) -> Option<(i64, i64)> {
        self.newest.as_deref().map(position)
    }
}

impl Redis {
    /// The state of a stream.
    pub async fn stream_state(&self, stream: &str, group: &str) -> Result<StreamState, CacheError> {
        let what = "look at a stream";
        let length: u64 = self.command(what, redis::cmd("XLEN").arg(stream)).await?;
        let dead: u64 = self.command(what, redis::cmd("XLEN").arg(dead_of(stream))).await?;
        let first: Vec<RawEntry> = self
            .command(what, redis::cmd("XRANGE").arg(stream).arg("-").arg("+").arg("COUNT").arg(1))
            .await?;
        let last: Vec<RawEntry> = self
            .command(what, redis::cmd("XREVRANGE").arg(stream).arg("+").arg("-").arg("COUNT").arg(1))
            .await?;
        let pending: Result<(u64, Value, Value, Value), _> =
            self.command(what, redis::cmd("XPENDING").arg(stream).arg(group)).await;
        let pending = match pending {
            Ok((count, ..)) => count,
            // No stream or no group yet.
            Err(error) if error.source.code() == Some("NOGROUP") => 0,
            Err(error) => return Err(error),
        };
        let id_of = |entries: Vec<RawEntry>| entries.into_iter().next().map(|(id, _)| id);
        let (oldest, newest) = (id_of(first), id_of(last));
        let mut oldest_age = Duration::ZERO;
        if let Some(id) = &oldest {
            let (seconds, micros): (u64, u64) = self.command(what, &redis::cmd("TIME")).await?;
            let since = u64::try_from(position(id).0).unwrap_or_default();
            oldest_age = Duration::from_millis((seconds * 1000 + micros / 1000).saturating_sub(since));
        }
        Ok(StreamState { length, pending, oldest, newest, oldest_age, dead })
    }
}

/// A consumer of a stream's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConsumer {
    /// Its name.
    pub name: String,
    /// Entries that it has and has not finished.
    pub pending: u64,
    /// Since it last took entries, or tried to.
    pub idle: Duration,
}

impl Redis {
    /// The consumers of a group; none where stream or group are missing.
    pub async fn stream_consumers(
        &self,
        stream: &str,
        group: &str,
    ) -> Result<Vec<StreamConsumer>, CacheError> {
        let what = "look at a stream's consumers";
        if !self.command::<bool>(what, redis::cmd("EXISTS").arg(stream)).await? {
            return Ok(Vec::new());
        }
        let command = redis::cmd("XINFO").arg("CONSUMERS").arg(stream).arg(group).to_owned();
        let reply: Vec<HashMap<String, Value>> = match self.command(what, &command).await {
            Ok(reply) => reply,
            Err(error) if error.source.code() == Some("NOGROUP") => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let consumer = |fields: HashMap<String, Value>| {
            let number = |name: &str| match fields.get(name) {
                Some(Value::Int(number)) => u64::try_from(*number).unwrap_or_default(),
                _ => 0,
            };
            let name = fields.get("name").and_then(|name| redis::from_redis_value_ref(name).ok());
            StreamConsumer {
                name: name.unwrap_or_default(),
                pending: number("pending"),
                idle: Duration::from_millis(number("idle")),
            }
        };
        Ok(reply.into_iter().map(consumer).collect())
    }
}
