//! What the engine's values look like in answers, for the description of the API. The engine, which applications link too, knows nothing of
//! it; a test holds real answers against these.
#![expect(dead_code, reason = "only their shape is of use")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// Something that happened to an entry.
#[derive(Serialize, JsonSchema)]
pub(super) struct Touch {
    /// Its number: the one before, and one.
    number: u64,
    /// When, in Unix milliseconds, by the worker's clock.
    at_ms: u64,
    /// The dataset, or `none`.
    dataset: String,
    key: String,
    what: What,
    /// Why: `change`, `write`, `event`, `revalidation`, `refresh`, `miss`, `backfill`, `audit`.
    cause: String,
    /// More about it, where there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What happened.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Its value was stored.
    Stored,
    /// It was deleted, because its row is gone.
    Gone,
    /// It was deleted, because somebody asked for that or nothing newer could be stored.
    Deleted,
    /// A value was not stored: something newer was there.
    Refused,
    /// Its row has no entry; the reason says why.
    Failed,
    /// A backfill of a whole dataset has ended: told once, with an empty key; the reason says how many entries.
    Filled,
}

/// A backfill that ended.
#[derive(Serialize, JsonSchema)]
pub(super) struct EndedBackfill {
    /// When it ended, in Unix milliseconds.
    at_ms: u64,
    took_ms: u64,
    stored: u64,
    /// How many rows have no entry.
    failed: u64,
}

/// Rows that have no entry.
#[derive(Serialize, JsonSchema)]
pub(super) struct RowsWithoutEntry {
    rows: Vec<RefusedRow>,
    /// Whether there are, or were, more.
    has_more: bool,
    /// Rows whose values make no key, as the last backfill has met them; null: none.
    without_key: Option<RowsWithoutKey>,
}

/// Rows whose values make no key.
#[derive(Serialize, JsonSchema)]
struct RowsWithoutKey {
    rows: u64,
    /// Why the first of them has none.
    reason: String,
    /// Since when, in Unix milliseconds, as far as this worker has seen it.
    since_ms: u64,
}

/// A row that has no entry.
#[derive(Serialize, JsonSchema)]
pub(super) struct RefusedRow {
    /// The key that its entry would have.
    key: String,
    reason: String,
    /// Since when, in Unix milliseconds, as far as this worker has seen it.
    since_ms: u64,
}

/// A relation of a dataset.
#[derive(Serialize, JsonSchema)]
pub(super) struct Relation {
    name: String,
    /// The query reads it, as far as can be told.
    is_read: bool,
    /// A rule of the dataset watches it.
    is_watched: bool,
    /// Every change of it is captured.
    is_captured: bool,
    /// What is wrong with it; null: nothing.
    flaw: Option<String>,
}

/// What is left to some entries.
#[derive(Serialize, JsonSchema)]
pub(super) struct Lifetimes {
    /// Of each that ends, in milliseconds, the shortest first.
    left_ms: Vec<u64>,
    /// How many have no end.
    endless: u64,
    /// All keys of the dataset were looked at.
    is_whole: bool,
}

/// What some entries take: 500 at most, met among 20,000 keys at most.
#[derive(Serialize, JsonSchema)]
pub(super) struct Sample {
    /// Entries that were looked at.
    entries: u64,
    /// The bytes of their keys and values, without what Redis needs beside them.
    bytes: u64,
    /// All keys of the dataset were looked at.
    is_whole: bool,
}

/// A row as it would be stored.
#[derive(Serialize, JsonSchema)]
pub(super) struct RowAsStored {
    key: String,
    value: Option<Value>,
    tags: Vec<String>,
    /// The bytes of its value.
    bytes: u64,
    /// Why it would have no entry.
    refused: Option<String>,
}

/// What every entry is at least as fresh as, but for the datasets it names.
#[derive(Serialize, JsonSchema)]
pub(super) struct Watermark {
    epoch: String,
    /// The incarnation that the snapshot belongs to.
    incarnation: String,
    /// As `pg_current_snapshot()` prints it.
    snapshot: String,
    /// The database's clock when the snapshot was taken (RFC 3339).
    as_of: String,
    not_covered: Vec<String>,
}

/// Why a key has its value.
#[derive(Serialize, JsonSchema)]
pub(super) struct Explanation {
    key: String,
    verdict: Verdict,
    /// The dataset that it belongs to; null: it belongs to none.
    dataset: Option<String>,
    /// The values of the template's placeholders.
    placeholders: BTreeMap<String, String>,
    /// Another worker has a newer definition of the dataset.
    is_superseded: bool,
    /// The entry in Redis; null: there is none.
    entry: Option<EntryFacts>,
    row: RowFacts,
    /// Where both differ, column by column.
    differences: Vec<Difference>,
    slot: SlotFacts,
    watermark: Option<WatermarkFacts>,
    /// Why changes of the dataset may be missed; null: they are captured.
    not_covered: Option<String>,
    /// Why it is to be revalidated.
    pending: Vec<String>,
    /// What happened to it while this worker runs, the newest first.
    touches: Option<Vec<Touch>>,
    /// Since when the worker remembers everything, in Unix milliseconds.
    touches_since_ms: Option<u64>,
}

/// The verdict, which follows from the rest.
#[derive(Serialize, JsonSchema)]
struct Verdict {
    state: VerdictState,
    /// In one sentence.
    sentence: String,
}

/// The verdict in one word.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum VerdictState {
    /// Redis has what Postgres says.
    Right,
    /// Redis has nothing, and nothing is promised.
    Absent,
    /// It differs, and that is known: it will be seen to.
    Behind,
    /// It differs, and nothing says that it will be seen to.
    Wrong,
    /// It is not known.
    Unknown,
    /// It belongs to no dataset.
    Foreign,
}

/// What stands under the key in Redis.
#[derive(Serialize, JsonSchema)]
struct EntryFacts {
    /// Its type in Redis.
    kind: String,
    /// The value, decoded; null: it is not shown.
    value: Option<Value>,
    /// Why it is not shown.
    undecodable: Option<String>,
    bytes: u64,
    /// The lifetime that is left, in milliseconds; null: without end.
    left_ms: Option<u64>,
}

/// What Postgres says now.
#[derive(Serialize, JsonSchema)]
struct RowFacts {
    exists: Option<bool>,
    /// The value that its entry would have.
    value: Option<Value>,
    /// Why that value is not shown.
    not_shown: Option<String>,
    tags: Vec<String>,
    /// Why it has no entry.
    refused: Option<String>,
    /// Why no row can have this key.
    impossible: Option<String>,
    /// What may hide the row from the worker's role.
    hidden: Option<String>,
    /// Why Postgres could not be asked.
    not_asked: Option<String>,
    /// The key that the row's entry has, where that is another spelling of the same values.
    spelled: Option<String>,
}

/// A column that differs.
#[derive(Serialize, JsonSchema)]
struct Difference {
    column: String,
    /// In Redis; null: missing, or hidden.
    redis: Option<Value>,
    /// In Postgres; null: missing, or hidden.
    postgres: Option<Value>,
}

/// The stamp slot of the key.
#[derive(Serialize, JsonSchema)]
struct SlotFacts {
    number: u32,
    /// The newest snapshot that touched a key of it.
    stamp: Option<String>,
    /// What is older than this is refused for every key.
    floor: Option<String>,
}

/// How fresh the entry is promised to be.
#[derive(Serialize, JsonSchema)]
struct WatermarkFacts {
    /// The database's clock when the snapshot was taken.
    as_of: String,
    /// How long ago that is, in milliseconds; null: it does not hold for the dataset.
    age_ms: Option<u64>,
}
