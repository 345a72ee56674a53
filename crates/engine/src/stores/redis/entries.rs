//! Entries: store, raise, delete, extend, read.

use std::time::Duration;

use super::script::{Answer, Call, EXTEND, RAISE, STORE, Standing, pack_slots};
use super::{CacheError, Redis};
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::window::window_width;

/// What a store raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode<'a> {
    /// The slot of each key (R5).
    Slots,
    /// The floor, once for all (R7): for a pass, of which one statement feeds many scripts. The text is what the
    /// pass needs to go on after an interruption.
    Floor {
        /// The counted job.
        job: &'a str,
        /// Where the pass stands after this batch; empty: not to be resumed.
        progress: &'a str,
    },
    /// The slot of each key, as a step of a counted job.
    Counted {
        /// The counted job.
        job: &'a str,
    },
}

/// The positions of entries that were refused: something newer has touched their slots.
pub type Refused = Vec<usize>;
/// What a store answers.
pub type Stored = Answer<Refused>;

impl Redis {
    /// Stores the entries of one load, and deletes those whose rows are gone.
    ///
    /// # Errors
    /// [`CacheError`]; after [`super::Refusal::Unknown`] the entries may or may not be stored.
    pub async fn store(
        &self,
        standing: &Standing<'_>,
        stamp: Stamp,
        batch: &EntryBatch,
        longest_life: Duration,
        mode: StoreMode<'_>,
    ) -> Result<Stored, CacheError> {
        let mut call = Call::fenced(&STORE, self, 1 + batch.len());
        call.arg(self.keys.windows.as_bytes());
        for entry in batch.iter() {
            call.arg(entry.key.as_bytes());
        }
        call.standing(standing);
        let (raises, job, progress) = match mode {
            StoreMode::Slots => ("slots", "", ""),
            StoreMode::Floor { job, progress } => ("floor", job, progress),
            StoreMode::Counted { job } => ("slots", job, ""),
        };
        call.arg(&stamp.to_bytes()).arg(raises.as_bytes()).arg(self.keys.tag_prefix().as_bytes());
        call.number(longest_life.as_secs() + 1).number(window_width(longest_life));
        call.arg(job.as_bytes()).arg(progress.as_bytes());
        call.arg(&pack_slots(batch.iter().map(|entry| entry.key)));
        call.number(batch.tag_count() as u64);
        for entry in batch.iter() {
            call.arg(entry.value).number(entry.life_ms);
        }
        let mut packed = Vec::new();
        for (tag, positions) in batch.tags() {
            packed.clear();
            for position in positions {
                packed.extend_from_slice(&(position + 1).to_be_bytes());
            }
            let slot = cachekeeper_protocol::keyspace::slot(tag.as_bytes());
            call.arg(tag.as_bytes()).number(u64::from(slot)).arg(&packed);
        }
        match call.run_fenced(self).await? {
            Answer::Done(reply) => Ok(Answer::Done(call.read(reply)?)),
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
        }
    }

    /// Raises keys, cached or not, and answers the positions of those that exist (R6). `job` is counted, if it is
    /// not empty.
    pub async fn raise(
        &self,
        standing: &Standing<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        job: &str,
    ) -> Result<Answer<Vec<usize>>, CacheError> {
        match self.raise_and(standing, stamp, keys, "exists", job, "").await? {
            (call, Answer::Done(reply)) => Ok(Answer::Done(call.read(reply)?)),
            (_, Answer::Gone(gone)) => Ok(Answer::Gone(gone)),
        }
    }

    /// Raises keys and deletes them; answers how many existed. The delete is carried out even where the answer is
    /// [`Answer::Gone`]: absence is always right, but the caller must then repeat it.
    pub async fn invalidate(
        &self,
        standing: &Standing<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
    ) -> Result<Answer<u64>, CacheError> {
        self.invalidate_counted(standing, stamp, keys, "", "").await
    }

    /// As [`Self::invalidate`], as a step of a counted job, and takes the keys out of a tag's set.
    pub async fn invalidate_counted(
        &self,
        standing: &Standing<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        job: &str,
        tag_set: &str,
    ) -> Result<Answer<u64>, CacheError> {
        match self.raise_and(standing, stamp, keys, "delete", job, tag_set).await? {
            (call, Answer::Done(reply)) => Ok(Answer::Done(call.read(reply)?)),
            (_, Answer::Gone(gone)) => Ok(Answer::Gone(gone)),
        }
    }

    async fn raise_and(
        &self,
        standing: &Standing<'_>,
        stamp: Stamp,
        keys: &[impl AsRef<str>],
        then: &str,
        job: &str,
        tag_set: &str,
    ) -> Result<(Call, Answer<redis::Value>), CacheError> {
        let mut call = Call::fenced(&RAISE, self, keys.len());
        for key in keys {
            call.arg(key.as_ref().as_bytes());
        }
        call.standing(standing);
        call.arg(&stamp.to_bytes()).arg(then.as_bytes()).arg(job.as_bytes());
        call.arg(&pack_slots(keys.iter().map(AsRef::as_ref))).arg(tag_set.as_bytes());
        let answer = call.run_fenced(self).await?;
        Ok((call, answer))
    }

    /// Deletes keys without any stamp: for the moment in which none can be had, because Postgres is down.
    pub async fn delete(&self, keys: &[impl AsRef<str>]) -> Result<u64, CacheError> {
        let mut command = redis::cmd("UNLINK");
        for key in keys {
            command.arg(key.as_ref());
        }
        self.command("delete entries", &command).await
    }

    /// Extends entries, each only if no more than the given remaining time is left: a newer store has longer.
    pub async fn extend(
        &self,
        standing: &Standing<'_>,
        entries: &[(String, Duration)],
        life: Duration,
    ) -> Result<Answer<u64>, CacheError> {
        let mut call = Call::fenced(&EXTEND, self, entries.len());
        for (key, _) in entries {
            call.arg(key.as_bytes());
        }
        call.standing(standing);
        call.number(millis(life));
        for (_, left) in entries {
            call.number(millis(*left));
        }
        match call.run_fenced(self).await? {
            Answer::Done(reply) => Ok(Answer::Done(call.read(reply)?)),
            Answer::Gone(gone) => Ok(Answer::Gone(gone)),
        }
    }

    /// The values of keys, each with its remaining lifetime in milliseconds (-1: none).
    pub async fn read(&self, keys: &[impl AsRef<str>]) -> Result<Vec<(Option<Vec<u8>>, i64)>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("GET").arg(key.as_ref()).cmd("PTTL").arg(key.as_ref());
        }
        let mut connection = self.connection.clone();
        let flat: Vec<redis::Value> = pipeline
            .query_async(&mut connection)
            .await
            .map_err(|source| CacheError::new("read entries", source))?;
        let mut values = Vec::with_capacity(keys.len());
        let mut replies = flat.into_iter();
        while let (Some(value), Some(left)) = (replies.next(), replies.next()) {
            let read = redis::from_redis_value::<Option<Vec<u8>>>(value);
            let left = redis::from_redis_value::<i64>(left);
            let malformed =
                |parse: redis::ParsingError| CacheError::unexpected("read entries", &parse.to_string());
            values.push((read.map_err(malformed)?, left.map_err(malformed)?));
        }
        Ok(values)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
