//! Entries of datasets: raise, delete, extend, read.

use std::time::Duration;

use super::script::{Call, EXTEND, RAISE, pack_slots};
use super::{Answer, CacheError, Precondition, Redis};
use cachekeeper_protocol::stamp::Stamp;

/// A value and its remaining lifetime in milliseconds (-1: no end, -2: no entry).
pub type ValueAndLife = (Option<Vec<u8>>, i64);

impl Redis {
    /// Raises keys, cached or not, and answers the positions of those that exist (R6). `job` is counted, if it is
    /// not empty.
    pub async fn raise(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        job: &str,
    ) -> Result<Answer<Vec<usize>>, CacheError> {
        self.raise_and("exists", precondition, stamp, keys, (job, "")).run(self).await
    }

    /// Raises keys and deletes them; answers how many existed. The delete is carried out even where the precondition
    /// failed: absence is always right, but the caller must then repeat it. `job` is counted, if it is not empty; the keys
    /// leave `tag_set`, if it is not empty.
    pub async fn invalidate(
        &self,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        job: &str,
        tag_set: &str,
    ) -> Result<Answer<u64>, CacheError> {
        self.raise_and("delete", precondition, stamp, keys, (job, tag_set)).run(self).await
    }

    fn raise_and(
        &self,
        action: &str,
        precondition: &Precondition<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        (job, tag_set): (&str, &str),
    ) -> Call {
        let on = self.keys.metadata_of(keys.first().map_or("", AsRef::as_ref));
        let names = keys.iter().map(|key| -> &str { key.as_ref() });
        let mut call = Call::guarded(&RAISE, self, on, names.clone(), Some(precondition));
        call.arg(stamp.to_bytes()).arg(action).arg(job).arg(pack_slots(names)).arg(tag_set);
        call
    }

    /// Extends entries, each only if no more than the given remaining time is left: a newer store has longer.
    pub async fn extend(
        &self,
        precondition: &Precondition<'_>,
        entries: &[(String, Duration)],
        life: Duration,
    ) -> Result<Answer<u64>, CacheError> {
        let on = self.keys.metadata_of(entries.first().map_or("", |(key, _)| key.as_str()));
        let names = entries.iter().map(|(key, _)| key);
        let mut call = Call::guarded(&EXTEND, self, on, names, Some(precondition));
        call.number(millis(life));
        for (_, left) in entries {
            call.number(millis(*left));
        }
        call.run(self).await
    }

    /// The values of keys with their remaining lifetimes.
    pub async fn read(&self, keys: &[impl AsRef<str>]) -> Result<Vec<ValueAndLife>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("GET").arg(key.as_ref()).cmd("PTTL").arg(key.as_ref());
        }
        let mut replies = self.pipeline("read entries", &pipeline, 2 * keys.len()).await?;
        keys.iter().map(|_| Ok((replies.next()?, replies.next()?))).collect()
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
