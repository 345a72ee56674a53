//! What Redis records of the current epoch: the metadata, and the revalidations that are pending.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{FromRedisValue, ParsingError, Value};

use super::entries::millis;
use super::revalidation_progress::RevalidationProgress;
use super::script::{
    Call, FINISH_JOB, MARK_PENDING, METADATA, METADATA_COUNTED, PROTOCOL_VERSION, nonce, read_word,
};
use super::{Answer, CacheError, Epoch, Precondition, Redis};
use cachekeeper_protocol::revision::Revision;
use cachekeeper_protocol::stamp::Stamp;

/// What Redis records of the current epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Whether the tables are there and agree with the metadata.
    pub is_whole: bool,
    /// Redis's clock, in Unix milliseconds.
    pub now_ms: u64,
    /// How often the job that asked has been counted.
    pub counted: u64,
    /// The epoch.
    pub epoch: Option<Epoch>,
    /// Whether a later version of Cachekeeper has written it.
    pub is_of_later_version: bool,
    /// The incarnation that the epoch's stamps belong to.
    pub incarnation: Option<String>,
    /// Loads below this are refused.
    pub floor: Option<Stamp>,
    /// The snapshot up to which changes are applied.
    pub cursor: Option<String>,
    /// Datasets whose entries must be revalidated.
    pub pending: BTreeMap<String, PendingRevalidation>,
    /// Datasets of which the entries of some stamp slots must be revalidated, each with why.
    pub slots: BTreeMap<String, PendingSlots>,
    /// How far revalidations are that have begun.
    pub progress: BTreeMap<String, RevalidationProgress>,
    /// The revision of each dataset.
    pub revisions: BTreeMap<String, Revision>,
    /// Where interrupted backfills stopped.
    pub backfills: BTreeMap<String, String>,
    /// Datasets of which Redis is to hold every row and some may be missing, each with the cause that a backfill must have seen.
    pub unfilled: BTreeMap<String, u64>,
    /// Datasets that somebody has paused, each with since when, in Unix milliseconds.
    pub paused: BTreeMap<String, u64>,
    /// The `ttl` of each dataset that no entry has more of left, where that was made sure of.
    pub longest_lives: BTreeMap<String, Duration>,
    /// The last whole backfill of each dataset.
    pub backfilled: BTreeMap<String, Backfilled>,
    /// The number of the newest cause that made a dataset pending (R14a).
    pub causes: u64,
    /// The place of the life that it belongs to, as workers have recorded it.
    pub life: Option<String>,
    /// Since when Postgres has not answered, in Unix milliseconds; it ends also where another worker moves the watermark.
    pub outage_since: Option<u64>,
    /// Since when the entries of datasets cannot be loaded, likewise.
    pub outages: BTreeMap<String, u64>,
}

impl Redis {
    /// Reads the metadata. Where `job` is not empty it is counted, so that a later reader can tell whether Redis was
    /// rolled back in between.
    pub async fn metadata(&self, job: &str) -> Result<Metadata, CacheError> {
        let on = self.keys.metadata();
        let script = if job.is_empty() { &METADATA } else { &METADATA_COUNTED };
        let mut call = Call::new(script, if self.adopted.is_some() { 4 } else { 3 });
        call.arg(&on.meta).arg(&on.stamps).arg(&on.tag_stamps);
        if self.adopted.is_some() {
            call.arg(&on.adopted);
        }
        call.arg(job);
        call.run(self).await
    }

    /// Pauses a dataset for every worker of the namespace, from this moment on; one that is paused stays so since it was.
    pub async fn pause(&self, dataset: &str, now_ms: u64) -> Result<(), CacheError> {
        let meta = &self.keys.metadata().meta;
        let command = redis::cmd("HSETNX").arg(meta).arg(format!("paused:{dataset}")).arg(now_ms).to_owned();
        self.command::<u64>("pause a dataset", &command).await.map(drop)
    }

    /// Resumes a dataset. Whether it was paused.
    pub async fn resume(&self, dataset: &str) -> Result<bool, CacheError> {
        let meta = &self.keys.metadata().meta;
        let command = redis::cmd("HDEL").arg(meta).arg(format!("paused:{dataset}")).to_owned();
        self.command::<u64>("resume a dataset", &command).await.map(|count| 0 < count)
    }

    /// Forgets where a backfill of a dataset was interrupted: it is not to be gone on with.
    pub async fn forget_backfill(&self, dataset: &str) -> Result<(), CacheError> {
        let meta = &self.keys.metadata().meta;
        let command = redis::cmd("HDEL").arg(meta).arg(format!("backfill:{dataset}")).to_owned();
        self.command::<u64>("forget an interrupted backfill", &command).await.map(drop)
    }

    /// Notes the longest that entries of a dataset may have left.
    pub async fn note_longest_life(&self, dataset: &str, longest: Duration) -> Result<(), CacheError> {
        let meta = &self.keys.metadata().meta;
        let command =
            redis::cmd("HSET").arg(meta).arg(format!("longest:{dataset}")).arg(millis(longest)).to_owned();
        self.command::<u64>("note the longest lifetime", &command).await.map(drop)
    }

    /// Records since when Postgres has been down, or that it is back; with a dataset, that its entries cannot be loaded, or can be
    /// again. The earliest record stays.
    pub async fn note_outage(&self, dataset: Option<&str>, since_ms: Option<u64>) -> Result<(), CacheError> {
        let meta = &self.keys.metadata().meta;
        let field = dataset.map_or_else(|| "outage".to_owned(), |dataset| format!("outage:{dataset}"));
        let command = match since_ms {
            Some(since) => redis::cmd("HSETNX").arg(meta).arg(field).arg(since).to_owned(),
            None => redis::cmd("HDEL").arg(meta).arg(field).to_owned(),
        };
        self.command::<u64>("note an outage", &command).await.map(drop)
    }
}

impl FromRedisValue for Metadata {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let Value::Array(values) = value else { return Err("a list was expected".into()) };
        let mut values = values.into_iter();
        let mut number = || values.next().map_or(Err("a number is missing".into()), u64::from_redis_value);
        let mut metadata =
            Self { is_whole: number()? == 1, counted: number()?, now_ms: number()?, ..Self::default() };
        while let (Some(field), Some(value)) = (values.next(), values.next()) {
            let field = Vec::<u8>::from_redis_value(field)?;
            metadata.add(&String::from_utf8_lossy(&field), Vec::from_redis_value(value)?);
        }
        Ok(metadata)
    }
}

impl Metadata {
    /// The datasets that the watermark leaves out until something is done, each with why.
    pub fn reasons(&self) -> impl Iterator<Item = (&str, &str)> {
        let pending = self.pending.iter().map(|(name, pending)| (name.as_str(), pending.reason()));
        let slots = self.slots.iter().map(|(name, slots)| (name.as_str(), slots.reason()));
        let slots = slots.filter(|(name, _)| !self.pending.contains_key(*name));
        let unfilled = self.unfilled.keys().map(|name| (name.as_str(), "rows may be missing"));
        let unfilled = unfilled.filter(|(name, _)| !self.is_pending(name));
        pending.chain(slots).chain(unfilled)
    }

    /// Whether entries of this dataset must be revalidated, all of them or some.
    #[must_use]
    pub fn is_pending(&self, dataset: &str) -> bool {
        self.pending.contains_key(dataset) || self.slots.contains_key(dataset)
    }

    fn add(&mut self, field: &str, value: Vec<u8>) {
        let text = String::from_utf8_lossy(&value).into_owned();
        match field.split_once(':').unwrap_or((field, "")) {
            ("epoch", _) => self.epoch = value.try_into().ok().map(Epoch::from_bytes),
            ("version", _) => self.is_of_later_version = is_later(&text),
            ("inc", _) => self.incarnation = Some(text),
            ("floor", _) => self.floor = value.try_into().ok().map(Stamp::from_bytes),
            ("cursor", _) => self.cursor = Some(text),
            ("pending", dataset) => drop(self.pending.insert(dataset.to_owned(), PendingRevalidation(text))),
            ("slots", dataset) => drop(self.slots.insert(dataset.to_owned(), PendingSlots(text))),
            ("progress", dataset) => {
                self.progress.extend(text.parse().ok().map(|progress| (dataset.to_owned(), progress)));
            }
            ("rev", dataset) => drop(self.revisions.insert(dataset.to_owned(), text.into())),
            ("backfill", dataset) => drop(self.backfills.insert(dataset.to_owned(), text)),
            ("backfilled", dataset) => {
                if let Some(backfilled) = Backfilled::parse(&text) {
                    self.backfilled.insert(dataset.to_owned(), backfilled);
                }
            }
            ("unfilled", dataset) => {
                // What cannot be read is as new as can be: it stays until a backfill has seen everything.
                self.unfilled.insert(dataset.to_owned(), text.parse().unwrap_or(u64::MAX));
            }
            ("paused", dataset) => {
                self.paused.extend([(dataset.to_owned(), text.parse().unwrap_or_default())]);
            }
            ("longest", dataset) => {
                let longest = text.parse().ok().map(Duration::from_millis);
                self.longest_lives.extend(longest.map(|longest| (dataset.to_owned(), longest)));
            }
            ("causes", _) => self.causes = text.parse().unwrap_or_default(),
            ("life", _) => self.life = text.split_once(' ').map(|(_, place)| place.to_owned()),
            ("outage", "") => self.outage_since = text.parse().ok(),
            ("outage", dataset) => {
                self.outages.extend(text.parse().ok().map(|since| (dataset.to_owned(), since)));
            }
            _ => {}
        }
    }
}

fn is_later(version: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    number(PROTOCOL_VERSION) < number(version)
}

/// When a whole backfill began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backfilled {
    /// In Unix milliseconds of Redis's clock.
    pub began_ms: u64,
    /// The newest cause then.
    pub cause: u64,
}

impl Backfilled {
    fn parse(text: &str) -> Option<Self> {
        let (began, cause) = text.split_once(' ')?;
        Some(Self { began_ms: began.parse().ok()?, cause: cause.parse().ok()? })
    }
}

/// Why a dataset's entries must be revalidated: a reason, and the number of the cause. Only work that began later settles it
/// (R14a).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingRevalidation(String);

impl PendingRevalidation {
    /// The reason alone, one word or a few.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.0.rsplit_once(' ').map_or(self.0.as_str(), |(reason, _)| reason)
    }

    /// The number of the newest cause. One that cannot be read is newer than all others.
    #[must_use]
    pub fn cause(&self) -> u64 {
        self.0.rsplit_once(' ').and_then(|(_, cause)| cause.parse().ok()).unwrap_or(u64::MAX)
    }
}

/// Which loads must not be stored any more once something is pending, or the revalidation could be undone by an older one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OlderLoads {
    /// Those below this stamp, of all datasets: the floor is raised. For what a snapshot orders.
    Below(Stamp),
    /// Those of the pending datasets that have begun: the revisions change. For what no snapshot orders (R14a).
    OfDatasets,
}

/// Why the entries of some stamp slots must be revalidated: the numbers of at most two causes, and a reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingSlots(String);

impl PendingSlots {
    /// The reason alone, a few words.
    #[must_use]
    pub fn reason(&self) -> &str {
        self.0.split_once(' ').map_or("", |(_, reason)| reason)
    }
}

/// What a finished job has settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Nothing that is written down.
    Nothing,
    /// A revalidation, of all causes up to this one.
    Revalidation {
        /// The newest cause when it began.
        cause: u64,
        /// What is done for the rows that have no entry.
        missing: Missing,
    },
    /// A revalidation of the pending stamp slots, of all causes up to this one.
    Slots {
        /// The newest cause when it began.
        cause: u64,
    },
    /// A backfill, so that other workers need not repeat it.
    Backfill(Backfilled),
}

/// What a revalidation has done for rows that have no entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Nothing: Redis need not hold them.
    NotWanted,
    /// Nothing: a backfill must follow.
    Unfilled,
    /// A backfill of the same job has stored every row; when it began (Unix milliseconds).
    Filled(u64),
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
    /// A number for a cause that is recorded later: work that begins from now on has seen it.
    pub async fn next_cause(&self) -> Result<u64, CacheError> {
        let command = redis::cmd("HINCRBY").arg(&self.keys.metadata().meta).arg("causes").arg(1).to_owned();
        self.command("number a cause", &command).await
    }

    /// Records that the entries of these datasets must be revalidated, for a reason (one word or a few). A `cause` is the number
    /// of an earlier moment; none: now. What is `refused` from now on is not stored any more; `job` is counted, if it is not empty.
    pub async fn mark_pending(
        &self,
        (epoch, incarnation): (&Epoch, &str),
        (reason, cause): (&str, Option<u64>),
        datasets: &[String],
        refused: OlderLoads,
        job: &str,
    ) -> Result<Answer<u64>, CacheError> {
        let mut call = Call::namespace(&MARK_PENDING, self, &Precondition::of_epoch(epoch, incarnation));
        call.arg(reason);
        match cause {
            Some(cause) => call.number(cause),
            None => call.arg(""),
        };
        match refused {
            OlderLoads::Below(stamp) => call.arg(stamp.to_bytes()).arg(""),
            OlderLoads::OfDatasets => call.arg("").arg(nonce()),
        };
        call.arg(job);
        for dataset in datasets {
            call.arg(dataset);
        }
        call.run(self).await
    }

    /// Ends a counted job; what it has settled is written down.
    pub async fn finish_job(
        &self,
        precondition: &Precondition<'_>,
        job: &str,
        count: u64,
        settled: Settled,
    ) -> Result<Answer<Claim>, CacheError> {
        let mut call = Call::namespace(&FINISH_JOB, self, precondition);
        call.arg(job).number(count);
        match settled {
            Settled::Nothing => call.arg("").arg("").arg("").arg(""),
            Settled::Revalidation { cause, missing } => {
                call.arg("revalidation").number(cause);
                match missing {
                    Missing::NotWanted => call.arg("").arg(""),
                    Missing::Unfilled => call.arg("all").arg(""),
                    Missing::Filled(began_ms) => call.arg("filled").number(began_ms),
                }
            }
            Settled::Slots { cause } => call.arg("slots").number(cause).arg("").arg(""),
            Settled::Backfill(Backfilled { began_ms, cause }) => {
                call.arg("backfill").number(cause).arg("").number(began_ms)
            }
        };
        call.arg(&self.keys.metadata().pending_prefix);
        call.run(self).await
    }
}
