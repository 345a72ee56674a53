//! Stamp slots whose entries must be revalidated: what could not be loaded when it changed (R10, R14a).

use redis::{FromRedisValue, ParsingError, Value};

use super::script::{Call, MARK_SLOTS, PENDING_SLOTS};
use super::{Answer, CacheError, Epoch, Precondition, Redis};
use cachekeeper_protocol::slot_set::SlotSet;

/// What could not be loaded of a dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed {
    /// The stamp slots of entries that are kept, and may be older than the change that touched them.
    pub kept: SlotSet,
    /// Whether Redis is to hold every row, and some may be missing now.
    pub is_missing: bool,
}

impl Failed {
    /// Whether nothing has failed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.is_missing && self.kept.is_empty()
    }
}

/// The stamp slots that are pending, as work that begins now sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotsSeen {
    /// The number of the newest cause: what comes later is not in the set.
    pub cause: u64,
    /// The stamp slots.
    pub slots: SlotSet,
}

impl FromRedisValue for SlotsSeen {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let Value::Array(values) = value else { return Err("a list was expected".into()) };
        let mut values = values.into_iter();
        let cause = values.next().map_or(Err("a number is missing".into()), u64::from_redis_value)?;
        let mut slots = SlotSet::default();
        for bitmap in values {
            let bitmap = Vec::<u8>::from_redis_value(bitmap)?;
            // A bitmap that was evicted may have held any of them.
            slots.add(&SlotSet::from_bytes(&bitmap).unwrap_or_else(SlotSet::all));
        }
        Ok(Self { cause, slots })
    }
}

impl Redis {
    /// Records what could not be loaded of a dataset, for a reason (a few words). `job` is counted, if it is not empty.
    pub async fn mark_slots(
        &self,
        (epoch, incarnation): (&Epoch, &str),
        (dataset, reason): (&str, &str),
        failed: &Failed,
        job: &str,
    ) -> Result<Answer<u64>, CacheError> {
        let mut call = Call::namespace(&MARK_SLOTS, self, &Precondition::of_epoch(epoch, incarnation));
        call.arg(reason).arg(job).arg(dataset).arg(&self.keys.metadata().pending_prefix);
        match failed.kept.is_empty() {
            true => call.arg(""),
            false => call.arg(failed.kept.as_bytes()),
        };
        call.arg(if failed.is_missing { "missing" } else { "" });
        call.run(self).await
    }

    /// The stamp slots of a dataset that are pending, as a step of a counted job.
    pub async fn pending_slots(
        &self,
        precondition: &Precondition<'_>,
        job: &str,
    ) -> Result<Answer<SlotsSeen>, CacheError> {
        let mut call = Call::namespace(&PENDING_SLOTS, self, precondition);
        call.arg(job).arg(&self.keys.metadata().pending_prefix);
        call.run(self).await
    }
}
