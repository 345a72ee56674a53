//! Every key that the configuration knows: one table for the check of unknown keys and for the JSON Schema.

use serde_json::{Value, json};

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Text.
    Text,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A list of texts.
    Texts,
    /// A table with these keys.
    Table(&'static [Key]),
    /// Tables with names that the user chooses, each with these keys.
    Named(&'static [Key]),
    /// A list of tables with these keys.
    Tables(&'static [Key]),
    /// A table from names to texts.
    Mapping,
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it may hold.
    pub shape: Shape,
    /// What it means.
    pub help: &'static str,
}

const fn key(name: &'static str, shape: Shape, help: &'static str) -> Key {
    Key { name, shape, help }
}

/// The whole file.
pub const ROOT: &[Key] = &[
    key("service", Shape::Table(SERVICE), "The worker as a whole"),
    key("postgres", Shape::Table(POSTGRES), "The source: the primary"),
    key("redis", Shape::Table(REDIS), "The cache"),
    key("admin", Shape::Table(ADMIN), "Health, metrics, status"),
    key("feed", Shape::Table(FEED), "Capture of committed changes"),
    key("invalidation", Shape::Table(INVALIDATION), "Events"),
    key("writes", Shape::Table(WRITES), "Write-through commands"),
    key("log", Shape::Table(LOG), "Log lines"),
    key("defaults", Shape::Table(DEFAULTS), "What every dataset inherits"),
    key("dataset", Shape::Named(DATASET), "A dataset"),
];

const SERVICE: &[Key] = &[
    key("namespace", Shape::Text, "Prefix of Cachekeeper's own keys, ck:{namespace:0}:…"),
    key("shutdown_timeout", Shape::Text, "How long a stop may take"),
    key(
        "on_new_epoch",
        Shape::Text,
        "refresh: entries of unknown history stay readable while they are loaded again; drop: they are deleted",
    ),
];

const POSTGRES: &[Key] = &[
    key("url", Shape::Text, "postgres://user@host:port/database"),
    key("url_file", Shape::Text, "A file with the URL"),
    key("password_file", Shape::Text, "A file with the password"),
    key("max_connections", Shape::Integer, "Most connections of one process"),
    key("statement_timeout", Shape::Text, "Time limit for a load by key"),
    key("connect_timeout", Shape::Text, "Time limit for a connection attempt"),
];

const REDIS: &[Key] = &[
    key("url", Shape::Text, "redis://host:port/database or rediss://…"),
    key("url_file", Shape::Text, "A file with the URL"),
    key("password_file", Shape::Text, "A file with the password"),
    key("connect_timeout", Shape::Text, "Time limit for a connection attempt"),
    key("response_timeout", Shape::Text, "Time limit for the reply to one command"),
];

const ADMIN: &[Key] = &[key("listen", Shape::Text, "Address of /livez, /readyz, /metrics; empty: off")];

const FEED: &[Key] = &[
    key("mode", Shape::Text, "outbox: changes are captured by triggers; off: not at all"),
    key("retention", Shape::Text, "How long consumed changes are kept"),
    key("max_rows", Shape::Integer, "Rows of one statement above which the whole table is meant"),
    key("max_outbox", Shape::Integer, "Keys in the outbox above which nothing more is captured"),
    key("audit_rate", Shape::Integer, "Entries a second that the background audit compares; 0: none"),
    key("max_lag", Shape::Text, "The watermark's age from which the worker is not ready"),
];

const INVALIDATION: &[Key] = &[
    key("channels", Shape::Texts, "Pub/sub channels"),
    key("stream", Shape::Text, "Stream of durable events; empty: none"),
    key("max_pending", Shape::Integer, "Most events held while Postgres is down"),
];

const WRITES: &[Key] = &[key("stream", Shape::Text, "Stream of write commands; empty: none")];

const LOG: &[Key] = &[
    key("level", Shape::Text, "A level, or filters such as info,cachekeeper::actors=debug"),
    key("format", Shape::Text, "auto, pretty or json"),
];

const DEFAULTS: &[Key] = &[
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
];

const FORMAT: Key = key("format", Shape::Text, "msgpack, json or raw");
const NUMERIC: Key = key("numeric", Shape::Text, "How numeric columns are written: text (exact) or number");
const COMPRESSION: Key =
    key("compression", Shape::Table(COMPRESSION_KEYS), "Compression of large values, as standard frames");
const TTL: Key = key("ttl", Shape::Text, "The longest lifetime");
const TTL_JITTER: Key = key("ttl_jitter", Shape::Text, "By which share a lifetime may be shortened");
const MAX_STALE: Key =
    key("max_stale", Shape::Text, "How long past its lifetime an entry is kept while Postgres is down");
const NEGATIVE_TTL: Key =
    key("negative_ttl", Shape::Text, "Lifetime of an explicit null for a key without a row");
const ON_CHANGE: Key = key("on_change", Shape::Text, "refresh or delete");
const ON_MISS: Key = key("on_miss", Shape::Text, "ignore, or load what applications missed");
const FEED_NEED: Key =
    key("feed", Shape::Text, "wanted, or required: not ready unless every relation is captured");
const BATCH: Key = key("batch", Shape::Integer, "Most keys of one load");

const DATASET: &[Key] = &[
    key("query", Shape::Text, "The SQL that produces the rows"),
    key("key", Shape::Text, "Where each row goes: text with {column}s"),
    key("rows", Shape::Text, "one row a key, or many as one list"),
    key("sort", Shape::Text, "SQL order of the rows of one key, by output columns"),
    key("tags", Shape::Texts, "The tags of each row: texts with {column}s"),
    key("watch", Shape::Tables(WATCH), "Which changes touch which entries"),
    key("value", Shape::Text, "The column whose bytes are the value (format = \"raw\")"),
    key("scope", Shape::Text, "all: Redis holds every row; cached: only what was warmed or asked for"),
    key("refresh", Shape::Table(REFRESH), "Refresh-ahead"),
    key("warm", Shape::Table(WARM), "Warming"),
    key("write", Shape::Table(WRITE), "Write-through"),
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
];

const COMPRESSION_KEYS: &[Key] = &[
    key("codec", Shape::Text, "none, zstd or lz4"),
    key("min_size", Shape::Text, "Values below this stay as they are"),
];

const WATCH: &[Key] = &[
    key("table", Shape::Text, "The watched table"),
    key("key", Shape::Mapping, "From each placeholder of the key to a column of the watched table"),
    key("tag", Shape::Text, "A tag with columns of the watched table"),
    key("dataset", Shape::Boolean, "true: any change touches the whole dataset"),
];

const REFRESH: &[Key] =
    &[key("ahead", Shape::Text, "The last share of a lifetime in which a read entry is loaded again")];

const WARM: &[Key] = &[
    key("on_start", Shape::Boolean, "Whether a pass runs when the worker starts"),
    key("schedule", Shape::Text, "Cron expression of five or six fields"),
    key("timezone", Shape::Text, "Zone of the schedule"),
    key("order_by", Shape::Text, "SQL order by output columns, for limit"),
    key("limit", Shape::Integer, "Only so many entries"),
    key("rate", Shape::Integer, "Most entries a second"),
];

const WRITE: &[Key] = &[key("statement", Shape::Text, "The statement, with :named parameters")];

/// The JSON Schema of the file, for editors.
#[must_use]
#[expect(
    clippy::indexing_slicing,
    reason = "`table` makes an object, and assigning to a field of one adds it"
)]
pub fn json_schema() -> Value {
    let mut schema = table(ROOT);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Cachekeeper");
    schema
}

#[expect(
    clippy::indexing_slicing,
    reason = "`shape` makes an object, and assigning to a field of one adds it"
)]
fn table(keys: &[Key]) -> Value {
    let properties: serde_json::Map<String, Value> = keys
        .iter()
        .map(|key| {
            let mut value = shape(key.shape);
            value["description"] = json!(key.help);
            (key.name.to_owned(), value)
        })
        .collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties })
}

fn shape(shape: Shape) -> Value {
    match shape {
        Shape::Text => json!({ "type": "string" }),
        Shape::Integer => json!({ "type": "integer" }),
        Shape::Boolean => json!({ "type": "boolean" }),
        Shape::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Shape::Mapping => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        Shape::Table(keys) => table(keys),
        Shape::Tables(keys) => json!({ "type": "array", "items": table(keys) }),
        Shape::Named(keys) => json!({ "type": "object", "additionalProperties": table(keys) }),
    }
}
