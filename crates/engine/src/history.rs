//! What happened to entries while this worker runs: the newest of it, within a bound of bytes; and the rows that have no entry.

use crate::process::now_ms;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::encode::WithoutKey;
use crate::shown::{cut, cut_name};

/// What is kept, in bytes.
const BYTES_MAX: usize = 8 << 20;
/// What a touch takes beside its texts.
const TOUCH_BYTES: usize = 96;
/// Backfills that are kept, of one dataset.
const BACKFILLS_MAX: usize = 30;
/// Rows without an entry that are named, of one dataset.
const REFUSED_ROWS_MAX: usize = 1_000;
/// And what they take, in bytes.
const REFUSED_BYTES_MAX: usize = 1 << 20;
/// Touches that are taken out at a time, so that whoever notes some never waits.
const CHUNK: usize = 1_024;

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Its value was stored.
    Stored,
    /// It was deleted, because its row is gone.
    Gone,
    /// It was deleted, because somebody asked for that or nothing newer could be stored.
    Deleted,
    /// A value was not stored: something newer had touched its stamp slot.
    Refused,
    /// Its row has no entry; the reason says why.
    Failed,
    /// A backfill has ended, which stores every entry of a dataset: told once, with no key; the reason says how many.
    Filled,
}

impl What {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Gone => "gone",
            Self::Deleted => "deleted",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Filled => "filled",
        }
    }
}

/// Something that happened to an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touch {
    /// Its number: the one before, and one.
    pub number: u64,
    /// When, in Unix milliseconds, by this machine's clock.
    pub at_ms: u64,
    /// The dataset, or `none`.
    #[serde(serialize_with = "as_text")]
    pub dataset: Arc<str>,
    /// The key; empty: of the dataset as a whole.
    pub key: Box<str>,
    /// What happened.
    pub what: What,
    /// Why: the label `cause` of the metrics.
    pub cause: &'static str,
    /// More about it, where there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

impl Touch {
    fn bytes(&self) -> usize {
        TOUCH_BYTES + self.key.len() + self.reason.as_ref().map_or(0, |reason| reason.len())
    }
}

/// A backfill that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EndedBackfill {
    /// When it ended, in Unix milliseconds.
    pub at_ms: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// How many entries it stored.
    pub stored: u64,
    /// How many rows have no entry.
    pub failed: u64,
}

/// A row that has no entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusedRow {
    /// The key that its entry would have.
    pub key: String,
    /// Why.
    pub reason: String,
    /// Since when, in Unix milliseconds, as far as this worker has seen it.
    pub since_ms: u64,
}

/// The rows of a dataset that have no entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RefusedRows {
    /// Those that are named.
    pub rows: Vec<RefusedRow>,
    /// Whether there are, or were, more.
    pub has_more: bool,
    /// Rows that have no entry because their values make no key, as the last backfill has met them.
    pub without_key: Option<RowsWithoutKey>,
}

/// Rows whose values make no key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowsWithoutKey {
    /// How many, and why.
    #[serde(flatten)]
    pub of: WithoutKey,
    /// Since when, in Unix milliseconds, as far as this worker has seen it.
    pub since_ms: u64,
}

/// The newest of what happened.
#[derive(Debug)]
pub struct History {
    began_ms: u64,
    inner: Mutex<Inner>,
}

impl Default for History {
    fn default() -> Self {
        Self { began_ms: now_ms(), inner: Mutex::default() }
    }
}

#[derive(Debug, Default)]
struct Inner {
    touches: VecDeque<Arc<Touch>>,
    bytes: usize,
    last: u64,
    refused: BTreeMap<String, RefusedOfDataset>,
    backfills: BTreeMap<String, VecDeque<EndedBackfill>>,
}

#[derive(Debug, Default)]
struct RefusedOfDataset {
    by_key: BTreeMap<String, (String, u64)>,
    bytes: usize,
    has_more: bool,
    without_key: Option<RowsWithoutKey>,
}

impl History {
    /// Notes what happened to entries of a dataset, all at once.
    pub fn note<'k>(
        &self,
        (dataset, cause): (&str, &'static str),
        touches: impl Iterator<Item = (&'k str, What, Option<&'k str>)>,
    ) {
        let dataset: Arc<str> = dataset.into();
        let at_ms = now_ms();
        let mut inner = self.inner();
        for (key, what, reason) in touches {
            inner.note_refused(&dataset, key, what, reason, at_ms);
            inner.last += 1;
            let touch = Touch {
                number: inner.last,
                at_ms,
                dataset: Arc::clone(&dataset),
                key: key.into(),
                what,
                cause,
                reason: reason.map(|reason| cut(reason).into()),
            };
            inner.bytes += touch.bytes();
            inner.touches.push_back(Arc::new(touch));
        }
        while BYTES_MAX < inner.bytes
            && let Some(oldest) = inner.touches.pop_front()
        {
            inner.bytes -= oldest.bytes();
        }
    }

    /// Notes that keys have entries now, without a touch for each: a backfill stores a whole dataset.
    pub(crate) fn note_stored<'k>(&self, dataset: &str, keys: impl Iterator<Item = &'k str>) {
        let mut inner = self.inner();
        if let Some(refused) = inner.refused.get_mut(dataset) {
            keys.for_each(|key| refused.remove(key));
        }
    }

    /// Notes a backfill that has just ended.
    pub(crate) fn note_backfill(&self, dataset: &str, took: Duration, stored: u64, failed: u64) {
        let ended = EndedBackfill {
            at_ms: now_ms(),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            stored,
            failed,
        };
        let mut inner = self.inner();
        let backfills = inner.backfills.entry(dataset.to_owned()).or_default();
        backfills.push_back(ended);
        if BACKFILLS_MAX < backfills.len() {
            backfills.pop_front();
        }
    }

    /// Notes which rows of a whole dataset make no key; none: each makes one.
    pub(crate) fn note_without_key(&self, dataset: &str, without_key: Option<WithoutKey>) {
        let mut inner = self.inner();
        let refused = inner.refused.entry(dataset.to_owned()).or_default();
        let since_ms = refused.without_key.as_ref().map_or_else(now_ms, |before| before.since_ms);
        refused.without_key = without_key.map(|of| RowsWithoutKey { of, since_ms });
    }

    /// The last backfills of a dataset that this worker did, the oldest first.
    #[must_use]
    pub fn backfills(&self, dataset: &str) -> Vec<EndedBackfill> {
        self.inner().backfills.get(dataset).into_iter().flatten().copied().collect()
    }

    /// The last that happened to a key, and to its dataset as a whole, the newest first.
    #[must_use]
    pub fn of_key(&self, dataset: Option<&str>, key: &str, most: usize) -> Vec<Touch> {
        let is_of_all = |touch: &Touch| touch.what == What::Filled && dataset == Some(&*touch.dataset);
        let (touches, _) = self.newest(0, most, |touch| *touch.key == *key || is_of_all(touch));
        touches.into_iter().map(Arc::unwrap_or_clone).collect()
    }

    /// Since when it remembers everything, in Unix milliseconds.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        let inner = self.inner();
        let oldest = inner.touches.front();
        // Something was forgotten.
        oldest.filter(|oldest| 1 < oldest.number).map_or(self.began_ms, |oldest| oldest.at_ms)
    }

    /// The number of the last touch.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.inner().last
    }

    /// What happened after the touch of this number, the oldest first, as far as a filter lets it through; and the last number. Where
    /// there is more than `most`, the newest.
    #[must_use]
    pub fn since(&self, number: u64, most: usize, wanted: impl Fn(&Touch) -> bool) -> (Vec<Arc<Touch>>, u64) {
        let (mut touches, last) = self.newest(number, most, wanted);
        touches.reverse();
        (touches, last)
    }

    /// The newest first. What is looked through is taken out in parts, and looked at while others note.
    fn newest(&self, after: u64, most: usize, wanted: impl Fn(&Touch) -> bool) -> (Vec<Arc<Touch>>, u64) {
        let last = self.last();
        let (mut found, mut upto) = (Vec::new(), last);
        while after < upto && found.len() < most {
            let part = self.inner().before(after, upto);
            let Some(oldest) = part.last() else { break };
            upto = oldest.number.saturating_sub(1);
            let left = most - found.len();
            found.extend(part.into_iter().filter(|touch| wanted(touch)).take(left));
        }
        (found, last)
    }

    /// The rows of a dataset without an entry.
    #[must_use]
    pub fn refused_rows(&self, dataset: &str) -> RefusedRows {
        let inner = self.inner();
        let Some(refused) = inner.refused.get(dataset) else { return RefusedRows::default() };
        let row = |(key, (reason, since_ms)): (&String, &(String, u64))| RefusedRow {
            key: key.clone(),
            reason: reason.clone(),
            since_ms: *since_ms,
        };
        RefusedRows {
            rows: refused.by_key.iter().map(row).collect(),
            has_more: refused.has_more,
            without_key: refused.without_key.clone(),
        }
    }

    /// How many they are.
    #[must_use]
    pub fn count_refused(&self, dataset: &str) -> u64 {
        self.inner().refused.get(dataset).map_or(0, |refused| {
            let without_key = refused.without_key.as_ref().map_or(0, |without| without.of.rows);
            refused.by_key.len() as u64 + without_key
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Touches behind one number and up to another, the newest first: at most a part of them.
    fn before(&self, after: u64, upto: u64) -> Vec<Arc<Touch>> {
        let Some(first) = self.touches.front().map(|touch| touch.number) else { return Vec::new() };
        let place = |number: u64| usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        let end = place(upto.saturating_add(1)).min(self.touches.len());
        let begin = place(after.saturating_add(1)).max(end.saturating_sub(CHUNK)).min(end);
        self.touches.range(begin..end).rev().cloned().collect()
    }

    fn note_refused(&mut self, dataset: &str, key: &str, what: What, reason: Option<&str>, at_ms: u64) {
        match what {
            What::Failed => {
                let refused = self.refused.entry(dataset.to_owned()).or_default();
                refused.add(key, reason.unwrap_or_default(), at_ms);
            }
            What::Stored | What::Gone => {
                if let Some(refused) = self.refused.get_mut(dataset) {
                    refused.remove(key);
                }
            }
            What::Deleted | What::Refused | What::Filled => {}
        }
    }
}

impl RefusedOfDataset {
    fn add(&mut self, key: &str, reason: &str, at_ms: u64) {
        let (name, reason) = (cut_name(key), cut(reason).into_owned());
        let since_ms = self.by_key.get(&*name).map(|(_, since_ms)| *since_ms);
        self.remove(key);
        let bytes = TOUCH_BYTES + name.len() + reason.len();
        let has_room = self.by_key.len() < REFUSED_ROWS_MAX && self.bytes + bytes <= REFUSED_BYTES_MAX;
        if has_room {
            self.bytes += bytes;
            self.by_key.insert(name.into_owned(), (reason, since_ms.unwrap_or(at_ms)));
        } else {
            self.has_more = true;
        }
    }

    fn remove(&mut self, key: &str) {
        let name = cut_name(key);
        if let Some((reason, _)) = self.by_key.remove(&*name) {
            self.bytes = self.bytes.saturating_sub(TOUCH_BYTES + name.len() + reason.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(history: &History, keys: &[&str]) {
        history.note(("t", "change"), keys.iter().map(|key| (*key, What::Stored, None)));
    }

    #[test]
    fn the_newest_is_kept_within_its_bound() {
        let history = History::default();
        let long = "k".repeat(1_000);
        for number in 0..20_000 {
            stored(&history, &[&format!("{long}{number}")]);
        }
        let (touches, last) = history.since(0, usize::MAX, |_| true);
        assert_eq!(last, 20_000);
        let bytes: usize = touches.iter().map(|touch| touch.bytes()).sum();
        assert!(BYTES_MAX - 2_000 < bytes && bytes <= BYTES_MAX, "{bytes}");
        assert_eq!(touches.last().map(|touch| touch.number), Some(20_000));
        let (newer, _) = history.since(19_990, 3, |_| true);
        assert_eq!(newer.iter().map(|touch| touch.number).collect::<Vec<_>>(), [19_998, 19_999, 20_000]);
    }

    #[test]
    fn the_last_thirty_backfills_are_kept() {
        let history = History::default();
        for number in 1..=40 {
            history.note_backfill("t", Duration::from_millis(number), 10 * number, 0);
        }
        let backfills = history.backfills("t");
        assert_eq!(
            backfills.iter().map(|one| one.took_ms).collect::<Vec<_>>(),
            (11..=40).collect::<Vec<_>>()
        );
        assert_eq!((backfills[0].stored, history.backfills("other")), (110, Vec::new()));
    }

    #[test]
    fn what_is_told_of_refused_rows_is_bounded_in_bytes() {
        let history = History::default();
        let reason = "r".repeat(5_000);
        let key = |number: u64| format!("{number}:{}", "k".repeat(5_000));
        for number in 0..3_000 {
            let key = key(number);
            history.note(("t", "change"), [(key.as_str(), What::Failed, Some(reason.as_str()))].into_iter());
        }
        let refused = history.refused_rows("t");
        let bytes: usize = refused.rows.iter().map(|row| row.key.len() + row.reason.len()).sum();
        assert!(refused.has_more && bytes <= REFUSED_BYTES_MAX, "{bytes}");
        assert_eq!(history.count_refused("t"), refused.rows.len() as u64);
        assert!(refused.rows[0].key.contains('…') && refused.rows[0].reason.ends_with('…'));
        stored(&history, &[&key(0)]);
        assert_eq!(history.count_refused("t") + 1, refused.rows.len() as u64);
    }

    #[test]
    fn a_row_is_refused_until_its_entry_is_stored_or_its_row_is_gone() {
        let history = History::default();
        let failed = |key: &'static str| (key, What::Failed, Some("too large"));
        history.note(("t", "backfill"), [failed("a"), failed("b"), failed("c")].into_iter());
        let since = history.refused_rows("t").rows[0].since_ms;
        history.note(("t", "change"), [failed("a")].into_iter());
        stored(&history, &["b"]);
        history.note_stored("t", ["c"].into_iter());
        let refused = history.refused_rows("t");
        let row = RefusedRow { key: "a".into(), reason: "too large".into(), since_ms: since };
        assert_eq!(refused, RefusedRows { rows: vec![row], ..RefusedRows::default() });
        history.note(("t", "change"), [("a", What::Gone, None)].into_iter());
        assert_eq!(history.refused_rows("t"), RefusedRows::default());
        assert_eq!(history.of_key(None, "a", 2).len(), 2);
    }
}
