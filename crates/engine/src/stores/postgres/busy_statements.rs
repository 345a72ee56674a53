//! The statements that take the most of the database's time, as the extension `pg_stat_statements` has counted them.

use sqlx::{AssertSqlSafe, Row as _};

use super::{ErrorKind, Postgres, SourceError};

/// What fails where they cannot be read.
const READ: &str = "read pg_stat_statements";

/// A statement, with its constants taken out.
#[derive(Debug, Clone, PartialEq)]
pub struct BusyStatement {
    /// Its text. A constant stands there as `$1`, like a parameter.
    pub text: String,
    /// How often it ran.
    pub calls: u64,
    /// How long it ran in all, in milliseconds.
    pub total_ms: f64,
}

/// What is known of statements.
#[derive(Debug, Clone, PartialEq)]
pub enum Busy {
    /// Those that read, the one that takes most first; and how many others' texts this role may not see.
    Read(Vec<BusyStatement>, u64),
    /// The extension is not there, or does not count.
    NotInstalled {
        /// Whether it only has to be loaded when the server starts.
        is_created: bool,
    },
}

const EXTENSION: &str = "
    select quote_ident(n.nspname) || '.pg_stat_statements', exists (
        select from pg_catalog.pg_attribute a join pg_catalog.pg_class c on c.oid = a.attrelid
        where c.relname = 'pg_stat_statements' and c.relnamespace = n.oid and a.attname = 'total_exec_time')
    from pg_catalog.pg_extension e join pg_catalog.pg_namespace n on n.oid = e.extnamespace
    where e.extname = 'pg_stat_statements'";

/// What begins a statement that reads, behind comments.
const READS: &str = r"^(\s|\(|/\*.*?\*/|--[^\n]*\n)*(select|with|table|values)\M";

impl Postgres {
    /// The reads of this database that take the most time, at most so many.
    ///
    /// # Errors
    /// [`SourceError`]
    pub async fn busy_statements(&self, most: i64) -> Result<Busy, SourceError> {
        let error = |source| SourceError::new(READ, source);
        let found = sqlx::query(EXTENSION).fetch_optional(&self.pool).await.map_err(error)?;
        let Some(row) = found else { return Ok(Busy::NotInstalled { is_created: false }) };
        let view: String = row.try_get(0).map_err(error)?;
        // Versions before 1.8 of the extension had one time for all.
        let time = if row.try_get(1).map_err(error)? { "total_exec_time" } else { "total_time" };
        let of_database =
            "s.dbid = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())";
        let sql = format!(
            "select min(s.query), sum(s.calls)::bigint, sum(s.{time})::double precision from {view} s
             where {of_database} and s.query ~* $1 and s.query !~ '(cachekeeper\\.|ck_snap|pg_stat_statements|pg_catalog\\.)'
             group by s.queryid order by 3 desc limit $2"
        );
        let rows = sqlx::query(AssertSqlSafe(sql)).bind(READS).bind(most).fetch_all(&self.pool).await;
        let rows = match rows.map_err(error) {
            Ok(rows) => rows,
            Err(error)
                if error.kind == ErrorKind::Statement && error.message().contains("shared_preload") =>
            {
                return Ok(Busy::NotInstalled { is_created: true });
            }
            Err(error) => return Err(error),
        };
        let mut statements = Vec::with_capacity(rows.len());
        for row in rows {
            statements.push(BusyStatement {
                text: row.try_get(0).map_err(error)?,
                calls: u64::try_from(row.try_get::<i64, _>(1).map_err(error)?).unwrap_or_default(),
                total_ms: row.try_get(2).map_err(error)?,
            });
        }
        let hidden = format!(
            "select count(*) from {view} s where {of_database} and s.query = '<insufficient privilege>'"
        );
        let hidden: i64 =
            sqlx::query_scalar(AssertSqlSafe(hidden)).fetch_one(&self.pool).await.map_err(error)?;
        Ok(Busy::Read(statements, u64::try_from(hidden).unwrap_or_default()))
    }
}
