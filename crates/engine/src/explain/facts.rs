//! What is known of a key.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::asked::NotAsked;
use super::difference::Difference;
use super::verdict::Verdict;
use crate::catalog::Dataset;
use crate::decoded::decoded_aside;
use crate::history::Touch;
use crate::stores::redis::{SeenEntry, Watermark};
use cachekeeper_config::Format;
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::Stamp;

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
    /// Since when the worker remembers everything, in Unix milliseconds.
    pub touches_since_ms: Option<u64>,
}

/// What stands under the key.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntryFacts {
    /// Its type in Redis: an entry is a `string`, or a `hash` where the dataset's format says so.
    pub kind: String,
    /// The value, decoded; none: it is not shown.
    pub value: Option<Value>,
    /// Why it is not shown.
    pub undecodable: Option<String>,
    /// Its bytes in Redis.
    pub bytes: usize,
    /// The lifetime that is left, in milliseconds; none: without end.
    pub left_ms: Option<u64>,
}

impl EntryFacts {
    /// Of a value that is shown, as the format says or as what it looks like.
    pub async fn shown(entry: &SeenEntry, format: Option<&Format>) -> Self {
        let Some(shape) = entry.shape().filter(|shape| format.is_none_or(|format| format.shape() == *shape))
        else {
            return Self::hidden(entry, format!("a {} is no entry", entry.kind));
        };
        // What is cut has no end that a decoder needs.
        let shown = if entry.is_whole() {
            let format = if shape == Shape::Hash { Some(Format::Hash) } else { format.cloned() };
            decoded_aside(entry.value.clone(), format).await
        } else if shape == Shape::Hash {
            Err("it is too large to be shown".to_owned())
        } else {
            Ok(Value::from(format!("{}…", String::from_utf8_lossy(&entry.value))))
        };
        match shown {
            Ok(shown) => Self { value: Some(shown), ..Self::hidden(entry, String::new()) },
            Err(reason) => Self::hidden(entry, reason),
        }
        .without_empty_reason()
    }

    /// Of one that is not.
    pub(super) fn hidden(entry: &SeenEntry, reason: String) -> Self {
        Self {
            kind: entry.kind.clone(),
            value: None,
            undecodable: Some(reason),
            bytes: entry.bytes,
            left_ms: u64::try_from(entry.left_ms).ok(),
        }
    }

    fn without_empty_reason(self) -> Self {
        Self { undecodable: self.undecodable.filter(|reason| !reason.is_empty()), ..self }
    }
}

/// What Postgres says of the key now.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RowFacts {
    /// Whether there is a row.
    pub exists: Option<bool>,
    /// The value that its entry would have.
    pub value: Option<Value>,
    /// Why that value is not shown.
    pub not_shown: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Why it has no entry.
    pub refused: Option<String>,
    /// Why no row can have this key.
    pub impossible: Option<String>,
    /// What may hide the row from the worker's role.
    pub hidden: Option<String>,
    /// Why Postgres could not be asked.
    pub not_asked: Option<NotAsked>,
    /// The key that the row's entry has, where that is another spelling of the same values.
    pub spelled: Option<String>,
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

impl SlotFacts {
    pub(super) fn new(key: &str, entry: &SeenEntry, floor: Option<Stamp>) -> Self {
        let stamp = (entry.slot != Stamp::ZERO).then(|| entry.slot.to_string());
        Self { number: slot(key.as_bytes()), stamp, floor: floor.map(|floor| floor.to_string()) }
    }
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
