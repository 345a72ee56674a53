//! The keys of the tables within a dataset's.

use crate::CaptureMode;
use crate::forms::Form;
use crate::key::{Key, Kind};
use crate::words::{CodecName, Words};

pub(super) const COMPRESSION_KEYS: &[Key] = &[
    Key::new(
        "codec",
        Kind::Choice(CodecName::NAMES),
        "\"zstd\" (RFC 8878), \"lz4\" (frame format 1.6), or \"none\".",
    )
    .default("zstd"),
    Key::new("min_size", Kind::Size(0, u64::MAX), "Values below this stay as they are.").default("1KiB"),
];

pub(super) const WATCH: &[Key] = &[
    Key::new("table", Kind::Text(Form::Filled), "The watched table.").required().example("\"products\""),
    Key::new(
        "key",
        Kind::Mapping,
        "From every placeholder of the dataset's key to a column of the watched table.",
    )
    .example("{ id = \"id\" }"),
    Key::new(
        "tag",
        Kind::Text(Form::Template),
        "A tag with columns of the watched table: the entries that have it are touched.",
    )
    .example("\"category:{id}\""),
    Key::new("dataset", Kind::Boolean, "true: any change touches the whole dataset.").default("false"),
    Key::new(
        "capture",
        Kind::Choice(CaptureMode::NAMES),
        "\"row\": row triggers, which slow small writes least; \"statement\": transition tables, for tables that are \
         written in bulk (not for targets of logical replication, trees with foreign members, or under temp_file_limit). \
         Where two rules of a table differ, it is \"row\".",
    )
    .default("row"),
];

pub(super) const REFRESH: &[Key] = &[Key::new(
    "ahead",
    Kind::Share(1, 90),
    "The last share of a lifetime in which an entry that was read is loaded again.",
)
.default("20%")];

pub(super) const WARM: &[Key] = &[
    Key::new("on_start", Kind::Boolean, "Whether a backfill runs when the worker starts.").default("true"),
    Key::new(
        "schedule",
        Kind::Text(Form::Schedule),
        "When backfills run: cron with five fields, or six with seconds first, and Unix weekdays; or @hourly, @daily, \
         @weekly, @monthly, @yearly.",
    )
    .example("\"0 */5 * * * *\""),
    Key::new("timezone", Kind::Text(Form::Filled), "The zone of the schedule, a name of the IANA database.")
        .default("UTC"),
    Key::new("order_by", Kind::Text(Form::Filled), "SQL order by output columns, for `limit`.")
        .example("\"sold desc\""),
    Key::new("limit", Kind::Integer(1, 1_000_000_000), "Only so many entries. Absent: all.").example("100"),
    Key::new("rate", Kind::Integer(1, 1_000_000_000), "Most entries a second. Absent: `revalidation_rate`, or as fast as it goes.")
        .example("10000"),
];

pub(super) const WRITE: &[Key] = &[Key::new(
    "statement",
    Kind::Text(Form::Filled),
    "One insert, update or delete, with :named parameters; Postgres types them.",
)
.required()
.example("\"update products set price_cents = :price_cents where id = :id\"")];
