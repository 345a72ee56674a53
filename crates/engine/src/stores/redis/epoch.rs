//! Epochs: how one begins, and which definitions are registered in it.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::script::{CREATE_EPOCH, Call, REGISTER, nonce, read_word};
use super::{Answer, CacheError, Epoch, Metadata, Precondition, Redis};
use cachekeeper_protocol::stamp::Snapshot;
use cachekeeper_protocol::window::window_width;

/// What a new epoch begins with.
#[derive(Debug)]
pub struct NewEpoch<'a> {
    /// The database's incarnation.
    pub incarnation: &'a str,
    /// The snapshot at which floor and cursor begin, taken after the metadata was read.
    pub snapshot: &'a Snapshot,
    /// Why every dataset is pending.
    pub reason: &'a str,
    /// The datasets that the caller knows (those in the metadata are added).
    pub datasets: &'a [String],
    /// Whether the stamps are still good and only the epoch's id changes, because Redis was rolled back as a whole.
    pub is_renewal: bool,
}

/// How the attempt to begin an epoch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It has begun.
    Created(Epoch),
    /// Somebody was faster: read the metadata again.
    Lost,
    /// This server's incarnation is over: another primary has taken its place.
    Retired,
}

/// How the registration of a definition ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// It was another one; a revalidation is pending.
    Registered,
    /// It was this one already.
    Same,
    /// Somebody else changed it meanwhile.
    Lost,
}

impl FromRedisValue for Registration {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        read_word(&value, &[("REGISTERED", Self::Registered), ("SAME", Self::Same), ("LOST", Self::Lost)])
    }
}

/// What the script that begins an epoch replies.
#[derive(Clone, Copy)]
enum CreationReply {
    Created,
    Lost,
    Retired,
}

impl FromRedisValue for CreationReply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        read_word(&value, &[("CREATED", Self::Created), ("LOST", Self::Lost), ("RETIRED", Self::Retired)])
    }
}

impl Redis {
    /// Begins an epoch, if the metadata is still what was `seen`.
    pub async fn create_epoch(&self, seen: &Metadata, new: &NewEpoch<'_>) -> Result<Creation, CacheError> {
        let epoch = Epoch::random();
        let on = self.keys.metadata();
        let mut call = Call::new(&CREATE_EPOCH, 5);
        call.arg(&on.meta).arg(&on.stamps).arg(&on.tag_stamps).arg(&on.watermark).arg(&on.counters);
        call.arg(seen.epoch.as_ref().map_or(&[][..], Epoch::as_bytes));
        call.arg(seen.incarnation.as_deref().unwrap_or_default());
        call.arg(epoch.as_bytes()).arg(new.incarnation);
        call.arg(new.snapshot.stamp().to_bytes()).arg(new.snapshot.as_str());
        call.arg(new.reason);
        call.arg(if new.is_renewal { "renew" } else { "new" });
        for dataset in new.datasets {
            call.arg(dataset);
        }
        Ok(match call.run(self).await? {
            CreationReply::Created => Creation::Created(epoch),
            CreationReply::Lost => Creation::Lost,
            CreationReply::Retired => Creation::Retired,
        })
    }

    /// Registers a dataset's definition by compare-and-set (R16), and announces its longest lifetime.
    pub async fn register(
        &self,
        epoch: &Epoch,
        incarnation: &str,
        dataset: &str,
        (seen, revision): (&str, &str),
        longest_life: Duration,
    ) -> Result<Answer<Registration>, CacheError> {
        let mut call = Call::namespace(&REGISTER, self, &Precondition::of_epoch(epoch, incarnation));
        call.arg(seen).arg(revision);
        call.number(longest_life.as_secs() + 1).number(window_width(longest_life));
        call.arg("redefined").arg(dataset).arg(nonce());
        call.run(self).await
    }
}
