//! Every key of the file, once: its type, what it may hold, its default and its meaning.
//!
//! The checks ([`super::values`]), the overrides from the environment, the JSON Schema ([`super::schema`]) and the
//! commented file ([`super::reference`]) all come from here.

mod admin;
mod inherited;
mod limits;
mod within_dataset;

use super::forms::Form;
use super::key::{Key, Kind};
use super::words::Words;
use super::{FeedMode, LogFormat, OnNewEpoch, Rows, Scope};

use admin::ADMIN;
use inherited::{
    BATCH, COMPRESSION, DEFAULTS, FEED_NEED, FORMAT, MAX_KEY_SIZE, MAX_STALE, MAX_VALUE_SIZE, NEGATIVE_TTL,
    NUMERIC, ON_CHANGE, ON_MISS, REVALIDATION_RATE, TTL, TTL_JITTER,
};
use limits::{DAY, MINUTE, SECOND, TENTH, duration, seconds};
use within_dataset::{REFRESH, WARM, WATCH, WRITE};

/// The key of a setting, for example of `dataset.product.warm.rate` or `dataset.product.watch.0.table`.
pub fn find(path: &str) -> Option<&'static Key> {
    let (mut keys, mut found) = (ROOT, None);
    let mut parts = path.split('.');
    while let Some(part) = parts.next() {
        let key = keys.iter().find(|key| key.name == part)?;
        keys = match key.kind {
            Kind::Table(below) => below,
            // What follows is a name that the user chose, or a position.
            Kind::Named(below) | Kind::Tables(below) => {
                parts.next();
                below
            }
            _ => &[],
        };
        found = Some(key);
    }
    found
}

/// The whole file.
pub(crate) const ROOT: &[Key] = &[
    Key::new("service", Kind::Table(SERVICE), "The worker as a whole."),
    Key::new("postgres", Kind::Table(POSTGRES), "Where values come from: the primary."),
    Key::new("redis", Kind::Table(REDIS), "Where values go: Redis 7.0 or newer, or Valkey."),
    Key::new("admin", Kind::Table(ADMIN), "Health, metrics and status over HTTP."),
    Key::new("feed", Kind::Table(FEED), "How committed changes reach the worker."),
    Key::new("invalidation", Kind::Table(INVALIDATION), "Invalidation events of applications."),
    Key::new("writes", Kind::Table(WRITES), "Write-through commands of applications."),
    Key::new("log", Kind::Table(LOG), "Log lines, on standard error."),
    Key::new("defaults", Kind::Table(DEFAULTS), "What every dataset inherits unless it says otherwise."),
    Key::new("dataset", Kind::Named(DATASET), "A dataset. It needs only `query` and `key`."),
];

const SERVICE: &[Key] = &[
    Key::new(
        "namespace",
        Kind::Text(Form::Namespace),
        "A name for this installation, which Cachekeeper's own keys in Redis contain. Those of one Redis database may not share streams, reply prefixes or keys.",
    )
    .default("shop"),
    Key::new(
        "release",
        Kind::Integer(0, 99_999_999_999_999),
        "Which release of the configuration this is. Where workers have different definitions of a dataset, the highest release with \
         a living worker wins, then the definition that was first seen last. Raise it with each deployment where one may bring an \
         earlier definition back.",
    )
    .default("0"),
    Key::new(
        "shutdown_timeout",
        duration(SECOND, seconds(600)),
        "How long a stop may take. Keep it below your platform's kill delay.",
    )
    .default("25s"),
    Key::new(
        "on_new_epoch",
        Kind::Choice(OnNewEpoch::NAMES),
        "What happens to entries whose history is unknown, because the primary was restored or failed over, or Redis \
         lost data: \"refresh\" keeps them readable while they are loaded again, \"drop\" deletes them.",
    )
    .default("refresh"),
];

const POSTGRES: &[Key] = &[
    Key::new(
        "url",
        Kind::Text(Form::Url(&["postgres", "postgresql"])),
        "Where the primary is, as libpq writes it. Several hosts (a:5432,b:5432) are tried in their order until one is the \
         primary; ?sslmode=verify-full&sslrootcert=… for TLS. What is not supported is refused by name.",
    )
    .default("postgres://cache@localhost/shop"),
    Key::new(
        "url_file",
        Kind::Text(Form::Filled),
        "A file that holds the URL, instead of `url`. It is read again for each new connection.",
    )
    .example("\"/run/secrets/postgres_url\""),
    Key::new(
        "password_file",
        Kind::Text(Form::Filled),
        "A file that holds the password, in one line; it counts where the URL has one too. It is read again for each new connection.",
    )
    .example("\"/run/secrets/postgres_password\""),
    Key::new(
        "max_connections",
        Kind::Integer(1, 1_000),
        "Most connections of one process for loads and commands; the change feed has up to 7 more of its own, and each running backfill one.",
    )
    .default("8"),
    Key::new(
        "statement_timeout",
        duration(SECOND, seconds(3_600)),
        "Time limit for a load by key. Backfills have none, while the server says that it is at work.",
    )
    .default("30s"),
    Key::new(
        "connect_timeout",
        duration(TENTH, MINUTE),
        "Time limit for an attempt to connect to one host, and for waiting for a free connection.",
    )
    .default("5s"),
];

const REDIS: &[Key] = &[
    Key::new(
        "url",
        Kind::Text(Form::Url(&["redis", "rediss", "redis+unix", "unix", "redis+sentinel", "rediss+sentinel"])),
        "Where Redis is: redis://host:port/database, rediss:// for TLS, or who knows it: \
         redis+sentinel://host:port,host:port/service/database (rediss+sentinel:// for TLS to both). User and password are those of \
         the server.",
    )
    .default("redis://localhost:6379/0"),
    Key::new("url_file", Kind::Text(Form::Filled), "A file that holds the URL, instead of `url`.")
        .example("\"/run/secrets/redis_url\""),
    Key::new(
        "password_file",
        Kind::Text(Form::Filled),
        "A file that holds the password, in one line; it counts where the URL has one too. It is read for each new connection, so another \
         password needs no restart.",
    )
    .example("\"/run/secrets/redis_password\""),
    Key::new("sentinel_username", Kind::Text(Form::Filled), "The user of the sentinels, where they have users.")
        .example("\"cachekeeper\""),
    Key::new(
        "sentinel_password_file",
        Kind::Text(Form::Filled),
        "A file that holds the password of the sentinels, where they ask for one.",
    )
    .example("\"/run/secrets/sentinel_password\""),
    Key::new(
        "ca_file",
        Kind::Text(Form::Filled),
        "For TLS: the certificates of the authorities to trust (PEM), instead of the system's. Read for each new connection.",
    )
    .example("\"/etc/cachekeeper/redis-ca.pem\""),
    Key::new(
        "cert_file",
        Kind::Text(Form::Filled),
        "For TLS: the certificate by which the server knows this client (PEM); it needs `key_file`. Read for each new connection.",
    )
    .example("\"/etc/cachekeeper/redis-client.pem\""),
    Key::new("key_file", Kind::Text(Form::Filled), "The key of `cert_file` (PEM, not encrypted).")
        .example("\"/etc/cachekeeper/redis-client.key\""),
    Key::new("connect_timeout", duration(TENTH, MINUTE), "Time limit for a connection attempt.")
        .default("2s"),
    Key::new("response_timeout", duration(TENTH, MINUTE), "Time limit for the reply to one command.")
        .default("5s"),
];

const FEED: &[Key] = &[
    Key::new(
        "mode",
        Kind::Choice(FeedMode::NAMES),
        "\"outbox\": committed changes are captured by triggers, which `migrate` (or `run`, as the tables' owner) \
         makes; \"off\": only events, schedules and lifetimes.",
    )
    .default("outbox"),
    Key::new(
        "retention",
        duration(MINUTE, seconds(30 * 86_400)),
        "How long applied changes are kept, for a Redis that is rolled back to an older state. Run `migrate` after \
         changing it.",
    )
    .default("1h"),
    Key::new(
        "max_rows",
        Kind::Integer(1, 1_000_000),
        "A statement that changes more rows than this is taken for a change of the whole table: the writer pays less, \
         and every cached entry of the table is loaded again.",
    )
    .default("10000"),
    Key::new(
        "max_outbox",
        Kind::Integer(1, 1_000_000_000),
        "Units of 1 KiB that wait in the outbox while no worker applies them; a changed row takes at least one. Beyond \
         it nothing more is written, so that an absent worker does not fill the disk; once it is back, the entries of \
         what was left out are revalidated. The trigger functions have the limits of the last `migrate`.",
    )
    .default("5000000"),
    Key::new(
        "audit_rate",
        Kind::Integer(0, 1_000_000),
        "Entries a second that the background audit compares with the database, all the time; 0 for none.",
    )
    .default("20"),
    Key::new(
        "max_lag",
        duration(SECOND, DAY),
        "The worker is not ready when the watermark has not moved for longer.",
    )
    .default("30s"),
];

const INVALIDATION: &[Key] = &[
    Key::new("channels", Kind::Texts(Form::Filled), "Pub/sub channels that events come on.")
        .default("cache:invalidation"),
    Key::new(
        "stream",
        Kind::Text(Form::Stream),
        "The same events, durable, on a stream; \"\" for none.",
    )
    .default("cache:invalidation:log"),
    Key::new(
        "keys",
        Kind::Texts(Form::Glob),
        "Patterns of Redis (\"page:*\"): keys of no dataset that events may delete. Others they may not, but those of \
         applications with the library, which make the beginnings of their keys known.",
    )
    .default(""),
    Key::new(
        "max_pending",
        Kind::Integer(1, 10_000_000),
        "Most events that are held while Postgres is down. More count as a gap: then everything is revalidated.",
    )
    .default("10000"),
];

const WRITES: &[Key] = &[
    Key::new(
        "stream",
        Kind::Text(Form::Stream),
        "Write-through commands, durable, on a stream; \"\" for none.",
    )
    .default("cache:writes"),
    Key::new(
        "reply_prefix",
        Kind::Text(Form::ReplyPrefix),
        "What the names of lists for replies begin with. A command that names another list is rejected.",
    )
    .default("cache:reply:"),
];

const LOG: &[Key] = &[
    Key::new(
        "level",
        Kind::Text(Form::LogLevel),
        "A level (off, error, warn, info, debug, trace), or filters such as \"info,cachekeeper::actors=debug\".",
    )
    .default("info"),
    Key::new(
        "format",
        Kind::Choice(LogFormat::NAMES),
        "\"auto\": \"pretty\" on a terminal, else \"json\", one object a line.",
    )
    .default("auto"),
];

const DATASET: &[Key] = &[
    Key::new(
        "query",
        Kind::Text(Form::Filled),
        "The SQL that produces the rows. It must not call volatile functions, or read foreign tables.",
    )
    .required()
    .example("\"select p.id, p.name, p.price_cents, p.category_id, p.sold from products p\""),
    Key::new(
        "key",
        Kind::Text(Form::Key),
        "Where each row goes: text with {column}s of the query; {{ and }} stand for braces. It begins with a prefix of \
         its own, and text separates the columns, so that a key can be read back.",
    )
    .required()
    .example("\"product:{id}\""),
    Key::new("rows", Kind::Choice(Rows::NAMES), "\"one\" row a key, or \"many\" as one list.").default("one"),
    Key::new(
        "sort",
        Kind::Text(Form::Filled),
        "SQL order of the rows of one key, by output columns; for rows = \"many\".",
    )
    .example("\"id desc\""),
    Key::new(
        "value",
        Kind::Text(Form::Filled),
        "The column whose bytes are the value, for format = \"raw\" only.",
    )
    .example("\"body\""),
    Key::new(
        "tags",
        Kind::Texts(Form::Template),
        "The tags of each row: texts with {column}s of the query, by which entries are invalidated together.",
    )
    .example("[\"category:{category_id}\"]"),
    Key::new(
        "watch",
        Kind::Tables(WATCH),
        "Which changes touch which entries. A rule has a `table`, and one of `key`, `tag` and `dataset`.",
    )
    .example(
        "[\n  { table = \"products\", key = { id = \"id\" } },\n  \
         { table = \"categories\", tag = \"category:{id}\" },\n]",
    ),
    Key::new(
        "reads",
        Kind::Texts(Form::Filled),
        "Tables that functions of the query read whose body is a text. Without it, a dataset that calls such a function is \
         not covered, unless the function is immutable or its body is `begin atomic`.",
    )
    .example("[\"prices\"]"),
    Key::new(
        "scope",
        Kind::Choice(Scope::NAMES),
        "\"all\": Redis holds every row (the default where `warm` has no limit); \"cached\": only what was warmed or \
         asked for.",
    )
    .example("\"cached\""),
    Key::new(
        "refresh",
        Kind::Table(REFRESH),
        "Refresh-ahead: entries that are read are loaded again before they expire. Absent: off.",
    ),
    Key::new("warm", Kind::Table(WARM), "Warming: backfills of the whole dataset. Absent: the dataset is not warmed."),
    Key::new(
        "write",
        Kind::Table(WRITE),
        "Write-through: how the library, `cachekeeper write` and commands of the stream write. Absent: they cannot.",
    ),
    FORMAT.inherited(),
    NUMERIC.inherited(),
    COMPRESSION.inherited(),
    TTL.inherited(),
    TTL_JITTER.inherited(),
    Key::new(
        "ttl_column",
        Kind::Text(Form::Filled),
        "A column of the query that says how long each row's entry lives, at most `ttl`: a number of seconds, an interval, or \
         a timestamptz at which it ends. Null: `ttl`. What has ended has no entry. No jitter, and no longer while Postgres is down.",
    )
    .example("\"expires_at\""),
    MAX_STALE.inherited(),
    NEGATIVE_TTL.inherited(),
    ON_CHANGE.inherited(),
    ON_MISS.inherited(),
    FEED_NEED.inherited(),
    BATCH.inherited(),
    REVALIDATION_RATE.inherited(),
    MAX_VALUE_SIZE.inherited(),
    MAX_KEY_SIZE.inherited(),
];
