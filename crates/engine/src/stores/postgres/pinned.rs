//! What every session has, whatever is set for its role or database, and whoever stands before the server: it is set once the
//! connection is there, because a pooler may refuse or drop what comes with its beginning, and it is looked whether it stayed.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

/// What shapes texts and decides what a load sees.
const PINNED: [(&str, &str); 12] = [
    // No load may take part in a write, lock rows, or see its own changes.
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "read committed"),
    // A policy hides rows; it does not make the query fail.
    ("row_security", "on"),
    // The text of a key must not depend on who loads it.
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    // Nobody needs to know which trigger was not there when it was replaced.
    ("client_min_messages", "warning"),
    // The first row of a backfill carries its snapshot, so the parts of its union must run in order.
    ("enable_parallel_append", "off"),
    ("jit", "off"),
];

/// What the names of the application's own sessions mean, for writes.
pub(super) const OWN_NAMES: &str = "select pg_catalog.set_config('search_path', pg_catalog.current_setting('cachekeeper.search_path'), true)";

/// Names are looked up where the role's own setting says, and in temporary tables last: what a trigger has made in a session must
/// not stand for a table of the query.
const TEMPORARY_LAST: &str = r#"
    select pg_catalog.set_config('cachekeeper.search_path', pg_catalog.current_setting('search_path'), false);
    select pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', nullif(p.path, ''), 'pg_temp'), false)
    from (select pg_catalog.regexp_replace(pg_catalog.regexp_replace(pg_catalog.current_setting('search_path'),
        '(^|,)\s*"?pg_temp"?\s*(?=,|$)', '', 'g'), '^[\s,]+', '')) p(path)"#;

/// What the server says about itself before anything is set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// The process of the session.
    pub process: i32,
    pub is_standby: bool,
    /// Whether sessions may not write unless they say so.
    pub is_read_only: bool,
}

/// Sets everything in one message, these settings besides.
///
/// # Errors
/// What the server says.
pub(super) async fn pin(
    connection: &mut PgConnection,
    settings: &[(String, String)],
    token: &str,
) -> Result<Facts, sqlx::Error> {
    let pinned = PINNED.into_iter().chain([("cachekeeper.session", token)]);
    let given = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let set = |(name, value)| format!("pg_catalog.set_config({}, {}, false)", literal(name), literal(value));
    let sets: Vec<String> = given.chain(pinned).map(set).collect();
    let sql = format!(
        "select pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(), \
         pg_catalog.current_setting('default_transaction_read_only') = 'on'; select {};{TEMPORARY_LAST}",
        sets.join(", ")
    );
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    Ok(Facts { process: first.try_get(0)?, is_standby: first.try_get(1)?, is_read_only: first.try_get(2)? })
}

/// Whether the next message reaches the same session, with what was set there.
pub(super) async fn is_kept(
    connection: &mut PgConnection,
    process: i32,
    token: &str,
) -> Result<bool, sqlx::Error> {
    let sql = "select pg_catalog.pg_backend_pid(), coalesce(pg_catalog.current_setting('cachekeeper.session', true), '')";
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    Ok(row.try_get::<i32, _>(0)? == process && row.try_get::<String, _>(1)? == token)
}

/// A text in SQL, whatever the session's `standard_conforming_strings` is.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}
