//! The metadata: what Redis records of the current epoch.

use std::collections::BTreeMap;

use redis::{FromRedisValue, ParsingError, Value};

use super::script::{Call, METADATA, METADATA_COUNTED};
use super::{CacheError, Epoch, PendingRevalidation, Redis};
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
    /// The incarnation that the epoch's stamps belong to.
    pub incarnation: Option<String>,
    /// Loads below this are refused.
    pub floor: Option<Stamp>,
    /// The snapshot up to which changes are applied.
    pub cursor: Option<String>,
    /// Datasets whose entries must be revalidated.
    pub pending: BTreeMap<String, PendingRevalidation>,
    /// The revision of each dataset.
    pub revisions: BTreeMap<String, String>,
    /// Where interrupted backfills stopped.
    pub backfills: BTreeMap<String, String>,
    /// When the last whole backfill of a dataset began, in Unix milliseconds.
    pub backfilled: BTreeMap<String, u64>,
    /// Incarnations that are over.
    pub retired: Vec<String>,
    /// Since when Postgres has not answered, in Unix milliseconds.
    pub outage_since: Option<u64>,
}

impl Redis {
    /// Reads the metadata. Where `job` is not empty it is counted, so that a later reader can tell whether Redis was
    /// rolled back in between.
    pub async fn metadata(&self, job: &str) -> Result<Metadata, CacheError> {
        let on = self.keys.metadata();
        let mut call = Call::new(if job.is_empty() { &METADATA } else { &METADATA_COUNTED }, 3);
        call.arg(&on.meta).arg(&on.stamps).arg(&on.tag_stamps).arg(job);
        call.run(self).await
    }

    /// Records since when Postgres has been down, or that it is back. The earliest record stays.
    pub async fn note_outage(&self, since_ms: Option<u64>) -> Result<(), CacheError> {
        let meta = &self.keys.metadata().meta;
        let command = match since_ms {
            Some(since) => redis::cmd("HSETNX").arg(meta).arg("outage").arg(since).to_owned(),
            None => redis::cmd("HDEL").arg(meta).arg("outage").to_owned(),
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
    fn add(&mut self, field: &str, value: Vec<u8>) {
        let text = String::from_utf8_lossy(&value).into_owned();
        match field.split_once(':').unwrap_or((field, "")) {
            ("epoch", _) => self.epoch = value.try_into().ok().map(Epoch::from_bytes),
            ("inc", _) => self.incarnation = Some(text),
            ("floor", _) => self.floor = value.try_into().ok().map(Stamp::from_bytes),
            ("cursor", _) => self.cursor = Some(text),
            ("pending", dataset) => drop(self.pending.insert(dataset.to_owned(), PendingRevalidation(text))),
            ("rev", dataset) => drop(self.revisions.insert(dataset.to_owned(), text)),
            ("backfill", dataset) => drop(self.backfills.insert(dataset.to_owned(), text)),
            ("backfilled", dataset) => {
                if let Ok(began) = text.parse() {
                    self.backfilled.insert(dataset.to_owned(), began);
                }
            }
            ("retired", incarnation) => self.retired.push(incarnation.to_owned()),
            ("outage", _) => self.outage_since = text.parse().ok(),
            _ => {}
        }
    }
}
