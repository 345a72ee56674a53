//! The texts of a dataset's statements.

use sqlx::postgres::PgTypeInfo;

use super::columns::{KeyColumn, KeyType, null_of, quote, text_of};
use crate::stores::postgres::transcode::{LifetimeKind, Measure, QueryColumn, ReadAs, RowPlan};
use cachekeeper_config::{Dataset, Rows};

/// The id of this server's present life, or null: valid only where the recorded start time and database are this
/// server's (R2). A standby refuses to read it.
pub(crate) const INCARNATION: &str = "(select i.id::text from cachekeeper.incarnation i \
     where i.started = pg_postmaster_start_time() \
     and i.db = (select d.oid from pg_database d where d.datname = current_database()))";

pub(super) struct Statements<'a> {
    pub(super) dataset: &'a Dataset,
    pub(super) columns: &'a [QueryColumn],
    pub(super) loaded: &'a [(String, Option<PgTypeInfo>)],
    pub(super) plan: &'a RowPlan,
    pub(super) keys: &'a [KeyColumn],
    /// Which column says how long an entry lives.
    pub(super) lifetime: Option<(usize, LifetimeKind)>,
}

/// What the server's clock says, in milliseconds.
const CLOCK: &str = "(extract(epoch from pg_catalog.clock_timestamp()) * 1000)::int8";

/// The longest lifetime that a column may say, in milliseconds: a thousand years, which nothing overflows.
const LIFE_MAX_MS: u64 = 31_536_000_000_000;

fn column_of_query(column: &QueryColumn) -> String {
    format!("q.{}", quote(&column.name))
}

/// Of so many measured columns each computes the sum for itself.
const SUMS_IN_PLACE: usize = 8;

/// Rows among which a key is looked for that several have.
pub const SHARED_AMONG: usize = 10_000;

/// Values that take less where they are stored are not measured by their text.
const STORED_SMALL: usize = 256 << 10;

impl Statements<'_> {
    /// At least so many bytes has a value of this column as it is written.
    fn size_of(&self, measure: Measure, column: &str) -> String {
        match measure {
            Measure::Octets => format!("pg_catalog.octet_length({column})"),
            // MessagePack has at least a third of the text: of numbers one byte each instead of digit, comma and blank.
            Measure::Stored => {
                let small = STORED_SMALL.min(self.dataset.max_value_size);
                format!(
                    "(case when {small} < pg_catalog.pg_column_size({column}) then pg_catalog.octet_length({column}::pg_catalog.text) / 3 end)"
                )
            }
        }
    }

    /// The bytes of what is measured of a row.
    fn sum(&self) -> String {
        let sizes = self.columns.iter().filter_map(|column| {
            let size = self.size_of(column.measure?, &column_of_query(column));
            Some(format!(" + coalesce({size}, 0)"))
        });
        // The first makes it a sum of eight bytes.
        format!("0::int8{}", sizes.collect::<String>())
    }

    /// How many columns are measured.
    fn measured(&self) -> usize {
        self.columns.iter().filter(|column| column.measure.is_some()).count()
    }

    /// The sum as it is referred to, and where it is computed beside the rows. Each column looks at it: of many columns it is computed
    /// once, or the statement would grow with their square. (The limit of nothing keeps Postgres from writing it out at each place.)
    fn shared_sum(&self, join: &str) -> (String, String) {
        if self.measured() <= SUMS_IN_PLACE {
            return (self.sum(), String::new());
        }
        let (sum, on) = (self.sum(), if join.starts_with("left") { " on true" } else { "" });
        ("ck_m.ck_sum".to_owned(), format!(" {join} lateral (select {sum} as ck_sum offset 0) ck_m{on}"))
    }
}

impl Statements<'_> {
    /// The entries of given keys, with the snapshot and the incarnation also where no row matches (R1).
    pub(super) fn by_key(&self) -> String {
        self.of_keys(&format!(
            "pg_current_snapshot()::text as ck_snap, {INCARNATION} as ck_inc, {CLOCK} as ck_now"
        ))
    }

    /// The same without them, for whoever only looks: it needs no schema of ours.
    pub(super) fn unstamped(&self) -> String {
        self.of_keys(&format!("null::text as ck_snap, null::text as ck_inc, {CLOCK} as ck_now"))
    }

    fn of_keys(&self, stamped: &str) -> String {
        let parameters: Vec<String> =
            self.keys.iter().enumerate().map(|(index, key)| key.kind.parameter(index + 1)).collect();
        let condition = match (self.keys, parameters.as_slice()) {
            ([key], [parameter]) => format!("q0.{} = any({parameter})", key.name),
            (keys, parameters) => format!(
                "({}) in (select * from unnest({}))",
                keys.iter().map(|key| format!("q0.{}", key.name)).collect::<Vec<_>>().join(", "),
                parameters.join(", ")
            ),
        };
        let (sum, measured) = self.shared_sum("left join");
        format!(
            "select s.ck_snap, s.ck_inc, s.ck_now, {} as ck_size, {} as ck_life, {} from \
             (select {stamped}) s \
             left join (select q0.* from (\n{}\n) q0 where {condition}) q on true{measured}{}",
            self.size(&sum),
            self.life(),
            self.list(&sum),
            self.dataset.query,
            self.order()
        )
    }

    /// Whether rows that are too large are told without being read.
    pub(super) fn is_measured(&self) -> bool {
        self.columns.iter().any(|column| column.measure.is_some())
    }

    /// The bytes of a row, where they are more than a value may have; else null.
    fn size(&self, sum: &str) -> String {
        if !self.is_measured() {
            return "null::int8".to_owned();
        }
        format!("case when {} < {sum} then {sum} end", self.dataset.max_value_size)
    }

    /// How long a row's entry lives, in milliseconds; null: as long as all of them.
    fn life(&self) -> String {
        let Some((at, kind)) = self.lifetime else { return "null::int8".to_owned() };
        let Some(column) = self.columns.get(at).map(column_of_query) else { return "null::int8".to_owned() };
        let seconds = match kind {
            LifetimeKind::Seconds => format!("{column}::numeric"),
            LifetimeKind::Span => format!("extract(epoch from {column})::numeric"),
            // The moment itself: rows may wait until they are stored.
            LifetimeKind::End => format!(
                "case when pg_catalog.isfinite({column}) then extract(epoch from {column})::numeric \
                 when {column} < pg_catalog.clock_timestamp() then 0 end"
            ),
        };
        // `least` and `greatest` leave nulls out, so one has to be kept from them.
        format!(
            "case when ({seconds}) is not null then least(greatest(trunc(({seconds}) * 1000), 0), {LIFE_MAX_MS})::int8 end"
        )
    }

    /// How many keys there are, rows, rows without a key and keys with several rows, and the most rows of a key; then the texts
    /// of keys chosen at random, of which a `limit` and two parentheses are still to come.
    pub(super) fn census(&self) -> String {
        let own = |position: usize| format!("ck_{position}");
        let columns: Vec<String> = self
            .keys
            .iter()
            .enumerate()
            .map(|(position, key)| format!("q.{} as {}", key.name, own(position)))
            .collect();
        let names: Vec<String> = (0..self.keys.len()).map(own).collect();
        let names = names.join(", ");
        let texts: Vec<String> =
            self.keys.iter().enumerate().map(|(position, key)| key.text(&own(position))).collect();
        let nulls = vec!["null::text"; self.keys.len()].join(", ");
        let has_null = format!("0 < pg_catalog.num_nulls({names})");
        format!(
            "with ck_keys as materialized (select {}, count(*) as ck_rows from (\n{}\n) q group by {names}) \
             select count(*) filter (where not {has_null}), coalesce(sum(ck_rows), 0)::bigint, \
             coalesce(sum(ck_rows) filter (where {has_null}), 0)::bigint, \
             count(*) filter (where not {has_null} and 1 < ck_rows), \
             coalesce(max(ck_rows) filter (where not {has_null}), 0), {nulls} from ck_keys \
             union all (select null, null, null, null, null, {} from (select {names} from ck_keys where not {has_null} order by random()",
            columns.join(", "),
            self.dataset.query,
            texts.join(", ")
        )
    }

    /// A key that several of the first rows have, and how many of them: those of the last page may be cut off from their like.
    pub(super) fn shared(&self) -> String {
        let texts: Vec<String> = self.keys.iter().map(|key| key.text(&format!("q.{}", key.name))).collect();
        let places: Vec<String> = (1..=texts.len()).map(|place| place.to_string()).collect();
        let names: Vec<String> = self.keys.iter().map(|key| format!("q.{}", key.name)).collect();
        format!(
            "select {}, count(*) from (select q.* from (\n{}\n) q limit {SHARED_AMONG}) q where pg_catalog.num_nulls({}) = 0 \
             group by {} having 1 < count(*) limit 1",
            texts.join(", "),
            self.dataset.query,
            names.join(", "),
            places.join(", ")
        )
    }

    /// All entries. The first row carries the snapshot and the incarnation and nothing else; a backfill that goes on
    /// after an interruption begins behind a key.
    pub(super) fn all(&self, is_resumed: bool) -> String {
        let nulls: Vec<String> = self
            .loaded
            .iter()
            .enumerate()
            .map(|(at, (name, kind))| match (kind, self.plan.read_as(at)) {
                (Some(kind), _) => format!("{} as {}", null_of(kind), quote(name)),
                (None, ReadAs::Json) => format!("null::pg_catalog.json as {name}"),
                (None, ReadAs::Text | ReadAs::Binary) => format!("null::pg_catalog.text as {name}"),
            })
            .collect();
        // Keys that are equal to it may not have been read yet.
        let comparison = if self.keys.iter().any(|key| key.is_coarse) { ">=" } else { ">" };
        let behind = if is_resumed { self.behind(comparison) } else { String::new() };
        let (sum, measured) = self.shared_sum("cross join");
        format!(
            "select pg_current_snapshot()::text as ck_snap, {INCARNATION} as ck_inc, {CLOCK} as ck_now, \
             null::int8 as ck_size, null::int8 as ck_life, {} \
             union all (select null, null, null, {}, {}, {} from (\n{}\n) q{measured}{behind}{})",
            nulls.join(", "),
            self.size(&sum),
            self.life(),
            self.list(&sum),
            self.dataset.query,
            self.order()
        )
    }

    /// The columns, each as it is read.
    fn list(&self, sum: &str) -> String {
        if self.columns.iter().zip(self.loaded).all(|(column, (loaded, _))| *loaded == column.name) {
            return "q.*".to_owned();
        }
        let columns = self.columns.iter().zip(self.loaded).enumerate();
        let list = columns.map(|(at, (column, (shown, _)))| {
            let value = column_of_query(column);
            let form = match self.plan.read_as(at) {
                ReadAs::Binary if *shown == column.name => return value,
                ReadAs::Binary => value.clone(),
                ReadAs::Text => text_of(&value),
                ReadAs::Json => format!("pg_catalog.to_json({value})"),
            };
            let Some(measure) = column.measure else { return format!("{form} as {shown}") };
            // What is too large is not even sent. The sum is looked at only where this column may have much of it.
            let (size, max) = (self.size_of(measure, &value), self.dataset.max_value_size);
            let share = max / self.measured().max(1);
            format!("case when {share} < {size} and {max} < {sum} then null else {form} end as {shown}")
        });
        list.collect::<Vec<_>>().join(", ")
    }

    /// Rows of one key come together, in the order that the user wants them. Of keys that are equal but for their text, the text
    /// decides which rows are of one key.
    fn order(&self) -> String {
        let mut order: Vec<String> = self.keys.iter().map(|key| format!("q.{}", key.name)).collect();
        let coarse = self.keys.iter().filter(|key| key.is_coarse);
        order.extend(coarse.map(|key| format!("({}) collate \"C\"", text_of(&format!("q.{}", key.name)))));
        if let (Rows::Many, Some(sort)) = (self.dataset.rows, &self.dataset.sort) {
            order.push(sort.clone());
        }
        format!(" order by {}", order.join(", "))
    }

    fn behind(&self, comparison: &str) -> String {
        let names: Vec<String> = self.keys.iter().map(|key| format!("q.{}", key.name)).collect();
        let values: Vec<String> = self
            .keys
            .iter()
            .enumerate()
            .map(|(index, key)| match &key.kind {
                KeyType::Integer => format!("${}::text::int8", index + 1),
                KeyType::Cast(name) => format!("${}::text::{name}", index + 1),
            })
            .collect();
        format!(" where ({}) {comparison} ({})", names.join(", "), values.join(", "))
    }

    /// The texts of all keys, or of those behind one, in their order.
    pub(super) fn keys(&self, is_resumed: bool) -> String {
        let names: Vec<String> = self.keys.iter().map(|key| format!("q.{}", key.name)).collect();
        let texts: Vec<String> = self.keys.iter().map(|key| key.text(&format!("q.{}", key.name))).collect();
        let behind = if is_resumed { self.behind(">") } else { String::new() };
        let names = names.join(", ");
        format!(
            "select {} from (\n{}\n) q{behind} group by {names} order by {names}",
            texts.join(", "),
            self.dataset.query
        )
    }

    /// The texts of the keys of a backfill with a limit, the most wanted first.
    pub(super) fn first_keys(&self) -> Option<String> {
        let warm = self.dataset.warm.as_ref()?;
        let limit = warm.limit?;
        let names: Vec<&str> = self.keys.iter().map(|key| key.name.as_str()).collect();
        let names = names.join(", ");
        let query = &self.dataset.query;
        let keys = match &warm.order_by {
            None => format!("select distinct {names} from (\n{query}\n) q order by {names} limit {limit}"),
            Some(order_by) => format!(
                "select {names} from (select q.*, row_number() over (order by {order_by}) as ck_place from (\n{query}\n) q) q \
                 group by {names} order by min(ck_place) limit {limit}"
            ),
        };
        let texts: Vec<String> = self.keys.iter().map(|key| key.text(&format!("k.{}", key.name))).collect();
        Some(format!("select {} from ({keys}) k", texts.join(", ")))
    }
}
