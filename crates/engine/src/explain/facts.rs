//! What is known of a key.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::difference::Difference;
use super::verdict::Verdict;
use crate::catalog::Dataset;
use crate::decoded::decoded;
use crate::history::Touch;
use crate::stores::redis::Watermark;
use cachekeeper_config::Format;

/// All that is known of a key.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Explanation {
    /// The key.
    pub key: String,
    /// The sentence that follows from the rest.
    pub verdict: Verdict,
    /// The dataset that it belongs to; none: it belongs to none of this configuration.
    pub dataset: Option<String>,
    /// The values of the template's placeholders.
    pub placeholders: BTreeMap<String, String>,
    /// Another worker has a newer definition of the dataset.
    pub is_superseded: bool,
    /// The entry in Redis; none: there is none.
    pub entry: Option<EntryFacts>,
    /// What Postgres says now.
    pub row: RowFacts,
    /// Where both differ, column by column.
    pub differences: Vec<Difference>,
    /// The stamp slot, which orders loads.
    pub slot: SlotFacts,
    /// The watermark; none: no feed has run.
    pub watermark: Option<WatermarkFacts>,
    /// Why changes of the dataset may be missed; none: they are captured.
    pub not_covered: Option<String>,
    /// Why it is to be revalidated.
    pub pending: Vec<String>,
    /// What happened to it while this worker runs, the newest first; none: no worker was asked.
    pub touches: Option<Vec<Touch>>,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntryFacts {
    /// The value, decoded; none: it cannot be.
    pub value: Option<Value>,
    /// Why it cannot be decoded.
    pub undecodable: Option<String>,
    /// Its bytes in Redis.
    pub bytes: usize,
    /// The lifetime that is left, in milliseconds; none: without end.
    pub left_ms: Option<u64>,
}

impl EntryFacts {
    pub(super) fn new(value: &[u8], left: i64, format: Option<&Format>) -> Self {
        let (shown, undecodable) = match decoded(value, format) {
            Ok(shown) => (Some(shown), None),
            Err(reason) => (None, Some(reason)),
        };
        Self { value: shown, undecodable, bytes: value.len(), left_ms: u64::try_from(left).ok() }
    }
}

/// What Postgres says of the key now.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RowFacts {
    /// Whether there is a row.
    pub exists: Option<bool>,
    /// The value that its entry would have.
    pub value: Option<Value>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Why it has no entry.
    pub refused: Option<String>,
    /// Why Postgres could not be asked.
    pub not_asked: Option<String>,
}

/// The stamp slot of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SlotFacts {
    /// Its number.
    pub number: u32,
    /// The newest snapshot that touched a key of it, as `xmax-running`.
    pub stamp: Option<String>,
    /// What is older than this is refused for every key.
    pub floor: Option<String>,
}

/// How fresh entries are promised to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WatermarkFacts {
    /// The database's clock when the snapshot was taken.
    pub as_of: String,
    /// How long ago that is, in milliseconds; none: it does not hold for the dataset.
    pub age_ms: Option<u64>,
}

impl WatermarkFacts {
    pub(super) fn new(watermark: &Watermark, dataset: &Dataset) -> Self {
        let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        Self { as_of: watermark.as_of.clone(), age_ms: watermark.age_for(dataset.name()).map(millis) }
    }
}
