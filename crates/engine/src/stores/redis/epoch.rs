//! Epochs: how one begins.

use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::entries::millis;
use super::script::{CREATE_EPOCH, Call, read_word};
use super::{CacheError, Epoch, Metadata, Redis};
use cachekeeper_protocol::stamp::Snapshot;

/// The life of the primary that Redis is filled from holds a lease for so long after a worker has last renewed it.
pub(super) const PRIMARY_LEASE: Duration = Duration::from_secs(10);

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
    /// The place of this life among others, as it is recorded.
    pub place: &'a str,
    /// How long the lease of the recorded life must have been over; none: that is no question.
    pub grace: Option<Duration>,
    /// False: changes of before may come to light after the revalidations of this epoch have begun.
    pub was_covered: bool,
}

/// How the attempt to begin an epoch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Creation {
    /// It has begun.
    Created(Epoch),
    /// Somebody was faster: read the metadata again.
    Lost,
    /// The server that Redis was filled from may still be served, and this one is not its successor.
    OtherLife,
    /// A later version of Cachekeeper works in this namespace.
    Newer,
}

/// What the script that begins an epoch replies.
#[derive(Clone, Copy)]
enum CreationReply {
    Created,
    Lost,
    OtherLife,
    Newer,
}

impl FromRedisValue for CreationReply {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let words = [
            ("CREATED", Self::Created),
            ("LOST", Self::Lost),
            ("OTHER_LIFE", Self::OtherLife),
            ("NEWER", Self::Newer),
        ];
        read_word(&value, &words)
    }
}

impl Redis {
    /// Begins an epoch, if the metadata is still what was `seen`.
    pub async fn create_epoch(&self, seen: &Metadata, new: &NewEpoch<'_>) -> Result<Creation, CacheError> {
        let epoch = Epoch::random();
        let on = self.keys.metadata();
        let mut call = Call::new(&CREATE_EPOCH, if self.adopted.is_some() { 6 } else { 5 });
        call.arg(&on.meta).arg(&on.stamps).arg(&on.tag_stamps).arg(&on.watermark).arg(&on.counters);
        if self.adopted.is_some() {
            call.arg(&on.adopted);
        }
        call.arg(seen.epoch.as_ref().map_or(&[][..], Epoch::as_bytes));
        call.arg(seen.incarnation.as_deref().unwrap_or_default());
        call.arg(epoch.as_bytes()).arg(new.incarnation);
        call.arg(new.snapshot.stamp().to_bytes()).arg(new.snapshot.as_str());
        call.arg(new.reason);
        call.arg(match (new.is_renewal, new.was_covered) {
            (true, _) => "renew",
            (false, true) => "new",
            (false, false) => "uncovered",
        });
        call.arg(new.place).number(millis(PRIMARY_LEASE));
        match new.grace {
            Some(grace) => call.number(millis(grace)),
            None => call.arg(""),
        };
        for dataset in new.datasets {
            call.arg(dataset);
        }
        Ok(match call.run(self).await? {
            CreationReply::Created => Creation::Created(epoch),
            CreationReply::Lost => Creation::Lost,
            CreationReply::OtherLife => Creation::OtherLife,
            CreationReply::Newer => Creation::Newer,
        })
    }
}
