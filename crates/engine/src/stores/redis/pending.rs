//! Pending revalidations, and the end of the counted jobs that run them.

use redis::{FromRedisValue, ParsingError, Value};

use super::precondition::read_word;
use super::script::{Call, FINISH_JOB, MARK_PENDING};
use super::{Answer, CacheError, Epoch, Precondition, Redis};
use cachekeeper_protocol::stamp::Stamp;

/// Why a dataset's entries must be revalidated, and a number that tells this revalidation from the next one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingRevalidation(pub(super) String);

impl PendingRevalidation {
    /// A revalidation for this reason (one word or a few), pending since this moment of Redis's clock: a backfill that
    /// began later has filled what was missing then.
    #[must_use]
    pub fn new(reason: &str, since_ms: u64) -> Self {
        Self(format!("{reason} {since_ms}-{:016x}", rand::random::<u64>()))
    }

    /// Since when it is pending, in Unix milliseconds of Redis's clock.
    #[must_use]
    pub fn since_ms(&self) -> Option<u64> {
        self.0.rsplit_once(' ')?.1.split_once('-')?.0.parse().ok()
    }

    /// The reason alone.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.0.rsplit_once(' ').map_or(self.0.as_str(), |(reason, _)| reason)
    }
}

/// What a finished job has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled<'a> {
    /// Nothing that is written down.
    Nothing,
    /// A revalidation.
    Revalidation(&'a PendingRevalidation),
    /// A backfill, so that other workers need not repeat it.
    Backfill {
        /// When it began, in Unix milliseconds of Redis's clock.
        began_ms: u64,
    },
}

/// How the claim that every step of a job is in Redis ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is so.
    Accepted,
    /// Steps are missing: Redis was rolled back.
    RolledBack,
}

impl FromRedisValue for Claim {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        read_word(&value, &[("FINISHED", Self::Accepted), ("ROLLED_BACK", Self::RolledBack)])
    }
}

impl Redis {
    /// Records that the entries of these datasets must be revalidated. With `floor`, which is what a change of a whole
    /// table asks for, no older load is stored any more; `job` is counted, if it is not empty.
    pub async fn mark_pending(
        &self,
        (epoch, incarnation): (&Epoch, &str),
        pending: &PendingRevalidation,
        datasets: &[String],
        floor: Option<Stamp>,
        job: &str,
    ) -> Result<Answer<u64>, CacheError> {
        let mut call = Call::namespace(&MARK_PENDING, self, &Precondition::of_epoch(epoch, incarnation));
        call.arg(&pending.0);
        match floor {
            Some(stamp) => call.arg(stamp.to_bytes()),
            None => call.arg(""),
        };
        call.arg(job);
        for dataset in datasets {
            call.arg(dataset);
        }
        call.run(self).await
    }

    /// Ends a counted job; what it has settled is written down.
    pub(crate) async fn finish_job(
        &self,
        precondition: &Precondition<'_>,
        job: &str,
        count: u64,
        settled: Settled<'_>,
    ) -> Result<Answer<Claim>, CacheError> {
        let (revalidated, began) = match settled {
            Settled::Nothing => ("", String::new()),
            Settled::Revalidation(pending) => (pending.0.as_str(), String::new()),
            Settled::Backfill { began_ms } => ("", began_ms.to_string()),
        };
        let mut call = Call::namespace(&FINISH_JOB, self, precondition);
        call.arg(job).number(count).arg(revalidated).arg(began);
        call.run(self).await
    }
}
