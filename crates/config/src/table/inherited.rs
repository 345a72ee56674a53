//! The keys that a dataset may inherit from `[defaults]`.

use super::limits::{NONE, SECOND, YEAR, duration};
use super::within_dataset::COMPRESSION_KEYS;
use crate::key::{Key, Kind};
use crate::words::{FormatName, Words};
use crate::{FeedNeed, Numeric, OnChange, OnMiss};

pub(super) const FORMAT: Key = Key::new(
    "format",
    Kind::Choice(FormatName::NAMES),
    "The bytes of a value: a \"msgpack\" map or a \"json\" object with the column names, or \"raw\", the bytes of the \
     column that `value` names. Or \"hash\": each entry is a Redis hash with a field for each column that is not null, as \
     its text.",
)
.default("msgpack");
pub(super) const NUMERIC: Key = Key::new(
    "numeric",
    Kind::Choice(Numeric::NAMES),
    "How numeric columns are written: \"text\", exactly, or \"number\", which readers may round.",
)
.default("text");
pub(super) const COMPRESSION: Key = Key::new(
    "compression",
    Kind::Table(COMPRESSION_KEYS),
    "Compression of large values, as standard frames. Absent: values stay as they are.",
);
pub(super) const TTL: Key =
    Key::new("ttl", duration(SECOND, YEAR), "The longest lifetime; jitter only shortens it.").default("1h");
pub(super) const TTL_JITTER: Key = Key::new(
    "ttl_jitter",
    Kind::Share(0, 90),
    "By which share a lifetime may be shortened, so that many entries do not expire together.",
)
.default("10%");
pub(super) const MAX_STALE: Key = Key::new(
    "max_stale",
    duration(NONE, YEAR),
    "How long past its lifetime an entry is kept while Postgres is down.",
)
.default("1h");
pub(super) const NEGATIVE_TTL: Key = Key::new(
    "negative_ttl",
    duration(SECOND, YEAR),
    "Lifetime of an explicit null for a key without a row. Absent: nothing is stored for it.",
)
.example("\"30s\"");
pub(super) const ON_CHANGE: Key = Key::new(
    "on_change",
    Kind::Choice(OnChange::NAMES),
    "What an event without `op`, and a change, does to an entry: \"refresh\" loads it again, and readers see the old \
     value until then; \"delete\" deletes it.",
)
.default("refresh");
pub(super) const ON_MISS: Key = Key::new(
    "on_miss",
    Kind::Choice(OnMiss::NAMES),
    "\"load\": keys that applications missed are filled, by Redis's key-miss events; \"ignore\": they are not.",
)
.default("ignore");
pub(super) const FEED_NEED: Key = Key::new(
    "feed",
    Kind::Choice(FeedNeed::NAMES),
    "\"required\": not ready unless changes of every relation of the query are captured; \"wanted\": a warning.",
)
.default("wanted");
pub(super) const BATCH: Key =
    Key::new("batch", Kind::Integer(1, 5_000), "Most keys of one load (Lua unpacks no more at once).")
        .default("500");

pub(super) const REVALIDATION_RATE: Key = Key::new(
    "revalidation_rate",
    Kind::Integer(1, 1_000_000_000),
    "Most entries a second that a revalidation loads again (after a rollout, DDL, a new epoch), those in use first. Absent: one \
     statement after another. Backfills without a rate of their own have this one.",
)
.example("5000");

pub(super) const MAX_VALUE_SIZE: Key = Key::new(
    "max_value_size",
    Kind::Size(1 << 10, 512 << 20),
    "Rows whose value is larger, before it is compressed, are refused and listed: they have no entry.",
)
.default("64MiB");
pub(super) const MAX_KEY_SIZE: Key = Key::new(
    "max_key_size",
    Kind::Size(16, 64 << 10),
    "Rows whose key is longer are refused and listed: they have no entry.",
)
.default("4KiB");

pub(super) const DEFAULTS: &[Key] = &[
    FORMAT,
    NUMERIC,
    COMPRESSION,
    TTL,
    TTL_JITTER,
    MAX_STALE,
    NEGATIVE_TTL,
    ON_CHANGE,
    ON_MISS,
    FEED_NEED,
    BATCH,
    REVALIDATION_RATE,
    MAX_VALUE_SIZE,
    MAX_KEY_SIZE,
];
