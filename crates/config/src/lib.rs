//! Checked settings. Every value here has passed the check of the configuration file; nothing else reads the file
//! or the environment.
//!
//! What keys there are, what they may hold and what they mean stands in `table.rs`, and only there.

mod admin;
#[cfg(feature = "file")]
mod certificate;
#[cfg(feature = "file")]
mod changes;
#[cfg(feature = "file")]
pub mod check;
pub mod diagnostic;
#[cfg(feature = "file")]
mod environment;
#[cfg(feature = "file")]
mod forms;
#[cfg(feature = "file")]
mod from_file;
#[cfg(feature = "file")]
mod key;
mod postgres;
pub mod postgres_url;
#[cfg(feature = "file")]
mod raw;
mod redis;
mod redis_url;
#[cfg(feature = "file")]
pub mod reference;
#[cfg(feature = "file")]
pub mod schema;
mod secret;
pub mod source;
mod streams;
#[cfg(feature = "file")]
mod syntax;
#[cfg(feature = "file")]
mod table;
#[cfg(feature = "file")]
mod values;
mod words;

use std::time::Duration;

pub use self::admin::Admin;
#[cfg(feature = "file")]
pub use self::certificate::Certificate;
#[cfg(feature = "file")]
pub use self::changes::Change;
#[cfg(feature = "file")]
pub use self::environment::variables;
#[cfg(feature = "file")]
pub use self::forms::log_level_problem;
#[cfg(feature = "file")]
pub use self::from_file::ConfigError;
pub use self::postgres::Postgres;
pub use self::redis::{Redis, Tls, TlsIdentity};
pub use self::redis_url::{AddressFlaw, ClusterNodes, Sentinels};
pub use self::secret::{Password, Secret};
use self::words::words;
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::glob::Glob;
use cachekeeper_protocol::template::Template;

/// The whole configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[service]`
    pub service: Service,
    /// `[postgres]`
    pub postgres: Postgres,
    /// `[redis]`
    pub redis: Redis,
    /// `[admin]`
    pub admin: Admin,
    /// `[feed]`
    pub feed: Feed,
    /// `[invalidation]`
    pub invalidation: Invalidation,
    /// `[writes]`
    pub writes: Writes,
    /// `[log]`
    pub log: Log,
    /// `[dataset.*]`, in the order of their names.
    pub datasets: Vec<Dataset>,
    /// The file's text, so that later problems (a column that the query lacks) can point at it.
    pub source: source::Source,
}

/// `[service]`
#[derive(Clone, Debug)]
pub struct Service {
    /// Prefix of Cachekeeper's own keys.
    pub namespace: String,
    /// Orders definitions before the order in which they were first seen.
    pub release: u64,
    /// How long a stop may take.
    pub shutdown_timeout: Duration,
    /// What happens to entries whose history is unknown.
    pub on_new_epoch: OnNewEpoch,
}

words! {
    /// What happens to the entries of an older epoch.
    pub enum OnNewEpoch {
        /// They stay readable and are loaded again.
        Refresh = "refresh",
        /// They are deleted.
        Drop = "drop",
    }
}

/// `[feed]`
#[derive(Clone, Debug)]
pub struct Feed {
    /// How changes are captured.
    pub mode: FeedMode,
    /// How long consumed changes are kept.
    pub retention: Duration,
    /// Rows of one statement above which its change means the whole table.
    pub max_rows: u64,
    /// Units of 1 KiB in the outbox above which nothing more is captured, so that an absent worker does not fill the disk.
    pub max_outbox: u64,
    /// The watermark's age from which the worker is not ready.
    pub max_lag: Duration,
    /// Entries a second that the background audit compares with the database; 0: none.
    pub audit_rate: u64,
}

words! {
    /// How changes are captured.
    pub enum FeedMode {
        /// By triggers into an outbox.
        Outbox = "outbox",
        /// Not at all: only events, schedules and lifetimes.
        Off = "off",
    }
}

/// `[invalidation]`
#[derive(Clone, Debug)]
pub struct Invalidation {
    /// Pub/sub channels.
    pub channels: Vec<String>,
    /// Stream of durable events.
    pub stream: Option<String>,
    /// Keys of no dataset that events may delete.
    pub keys: Vec<Glob>,
    /// Most events held while Postgres is down.
    pub max_pending: usize,
}

/// `[writes]`
#[derive(Clone, Debug)]
pub struct Writes {
    /// Stream of write commands.
    pub stream: Option<String>,
    /// What the names of lists for replies begin with.
    pub reply_prefix: String,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct Log {
    /// A level, or filters such as `info,cachekeeper::actors=debug`.
    pub level: String,
    /// How lines look.
    pub format: LogFormat,
}

words! {
    /// How log lines look.
    pub enum LogFormat {
        /// `pretty` on a terminal, else `json`.
        Auto = "auto",
        /// For people.
        Pretty = "pretty",
        /// One JSON object a line.
        Json = "json",
    }
}

/// `[dataset.<name>]`
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The name.
    pub name: String,
    /// The SQL that produces the rows.
    pub query: String,
    /// Where each row goes.
    pub key: Template,
    /// One row or many for each key.
    pub rows: Rows,
    /// SQL order of the rows of one key (`rows = "many"`), by output columns.
    pub sort: Option<String>,
    /// The tags of each row.
    pub tags: Vec<Template>,
    /// Which changes touch which entries.
    pub watch: Vec<Watch>,
    /// Tables that functions of the query read, as it is written there: a body that is a text does not tell.
    pub reads: Vec<String>,
    /// The bytes of a value.
    pub format: Format,
    /// How values above a size are compressed.
    pub compression: Option<Compression>,
    /// The longest lifetime.
    pub ttl: Duration,
    /// By which share of `ttl` jitter may shorten a lifetime (0.0 to below 1.0).
    pub ttl_jitter: f64,
    /// The column that says how long each row's entry lives, at most `ttl`; none: all live as long.
    pub ttl_column: Option<String>,
    /// How long past its lifetime an entry may be kept while Postgres is down.
    pub max_stale: Duration,
    /// Lifetime of an explicit null for a key without a row; none: nothing is stored.
    pub negative_ttl: Option<Duration>,
    /// What an event without `op` does, and a change.
    pub on_change: OnChange,
    /// Whether misses of applications are filled.
    pub on_miss: OnMiss,
    /// Whether every relation of the query must be captured.
    pub feed: FeedNeed,
    /// Which rows Redis holds.
    pub scope: Scope,
    /// Refresh-ahead: the last share of a lifetime in which a read entry is loaded again; none: off.
    pub refresh_ahead: Option<f64>,
    /// Warming; none: not warmed.
    pub warm: Option<Warm>,
    /// The write-through statement.
    pub write: Option<String>,
    /// Loads are refused beyond this many keys in one statement.
    pub batch: usize,
    /// Most entries a second that a revalidation loads again; none: as fast as one statement after another goes.
    pub revalidation_rate: Option<u64>,
    /// Larger values are refused, in bytes, before they are compressed.
    pub max_value_size: usize,
    /// Longer keys are refused, in bytes.
    pub max_key_size: usize,
}

impl Dataset {
    /// Unless the configuration says otherwise.
    pub const MAX_VALUE_SIZE: usize = 64 << 20;
    /// Unless the configuration says otherwise.
    pub const MAX_KEY_SIZE: usize = 4 << 10;
}

words! {
    /// One row or many for each key.
    pub enum Rows {
        /// One row a key; two are an error.
        One = "one",
        /// All rows of a key as one list.
        Many = "many",
    }
}

/// A watch rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Watch {
    /// The table, as written.
    pub table: String,
    /// What a changed row of it touches.
    pub target: WatchTarget,
    /// How its changes are captured.
    pub capture: CaptureMode,
}

words! {
    /// How the changes of a table are captured.
    pub enum CaptureMode {
        /// Each row by itself: small writes are slowed least, and everything is captured that changes rows.
        Row = "row",
        /// The rows of a statement together, for tables that are written in bulk.
        Statement = "statement",
    }
}

/// What a changed row touches.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum WatchTarget {
    /// The entry whose placeholders have the values of these columns: (placeholder, column of the watched table).
    Key(Vec<(String, String)>),
    /// The members of this tag, whose columns are those of the watched table.
    Tag(Template),
    /// The whole dataset.
    Dataset,
}

/// The bytes of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// A MessagePack map with the column names.
    MessagePack {
        /// How `numeric` columns are written.
        numeric: Numeric,
    },
    /// A JSON object with the column names.
    Json {
        /// How `numeric` columns are written.
        numeric: Numeric,
    },
    /// The bytes of one column.
    Raw {
        /// Which.
        column: String,
    },
    /// A Redis hash with a field for each column that is not null, its text as `raw` has it.
    Hash,
}

impl Format {
    /// Its name in the configuration, and in the directory.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessagePack { .. } => "msgpack",
            Self::Json { .. } => "json",
            Self::Raw { .. } => "raw",
            Self::Hash => "hash",
        }
    }

    /// As what entries stand in Redis.
    #[must_use]
    pub fn shape(&self) -> Shape {
        match self {
            Self::MessagePack { .. } | Self::Json { .. } | Self::Raw { .. } => Shape::String,
            Self::Hash => Shape::Hash,
        }
    }
}

words! {
    /// How `numeric` columns are written.
    pub enum Numeric {
        /// As text, exactly (the default).
        Text = "text",
        /// As a number; readers may round it.
        Number = "number",
    }
}

/// `compression = { … }`
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Compression {
    /// Which frames.
    pub codec: Codec,
    /// Values below this many bytes stay as they are.
    pub min_size: usize,
}

/// A standard frame format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Codec {
    /// RFC 8878.
    Zstd,
    /// LZ4 frame format 1.6.
    Lz4,
}

words! {
    /// What a change does to an entry.
    pub enum OnChange {
        /// It is loaded again; the old value stays readable until then.
        Refresh = "refresh",
        /// It is deleted.
        Delete = "delete",
    }
}

words! {
    /// Whether misses of applications are filled.
    pub enum OnMiss {
        /// Not by the worker.
        Ignore = "ignore",
        /// By Redis's key-miss events.
        Load = "load",
    }
}

words! {
    /// Whether every relation of the query must be captured.
    pub enum FeedNeed {
        /// A warning otherwise.
        Wanted = "wanted",
        /// Not ready otherwise.
        Required = "required",
    }
}

words! {
    /// Which rows Redis holds.
    pub enum Scope {
        /// Every row.
        All = "all",
        /// Only what was warmed, filled or asked for.
        Cached = "cached",
    }
}

/// `warm = { … }`
#[derive(Clone, Debug)]
pub struct Warm {
    /// Whether a backfill runs when the worker starts.
    pub on_start: bool,
    /// When backfills run.
    pub schedule: Option<ScheduleText>,
    /// SQL order by output columns, for `limit`.
    pub order_by: Option<String>,
    /// Only so many entries.
    pub limit: Option<u64>,
    /// Most entries a second.
    pub rate: Option<u64>,
}

/// A schedule as it was written. The worker makes times out of it; the library only carries it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScheduleText {
    /// Cron, five or six fields, or a shorthand such as `@daily`.
    pub expression: String,
    /// A name of the IANA database.
    pub timezone: String,
}

/// The part of a schedule that is wrong, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScheduleProblem {
    /// The expression.
    Expression(String),
    /// The name of the zone.
    TimeZone(String),
}

/// Says everything that is wrong with a schedule. The loader takes it as an argument, because only the worker knows cron.
#[cfg(feature = "file")]
pub(crate) type ScheduleCheck = fn(&ScheduleText) -> Vec<ScheduleProblem>;

impl Config {
    /// The dataset of this name.
    #[must_use]
    pub fn dataset(&self, name: &str) -> Option<&Dataset> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }
}
