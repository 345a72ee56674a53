//! Capture: which tables are watched, by which triggers, and whether nothing can slip past them.

mod function;

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row as _};

use super::{ErrorKind, Postgres, SourceError};
pub use function::CaptureLimits;
pub(crate) use function::WatchedColumn;

/// How many triggers a relation needs.
pub(crate) const TRIGGER_COUNT: usize = function::TRIGGERS.len();

/// One relation of the tree that a table belongs to. A statement fires only the triggers of the relation it names, so
/// every one of them needs all four.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeMember {
    /// The table that was asked for.
    pub asked: String,
    /// The top of its tree; none: there is no such table.
    pub root: Option<u32>,
    /// This member.
    pub oid: u32,
    /// Its qualified name.
    pub name: String,
    /// `r`, `p`, `f`, `v`, `m`.
    pub kind: char,
    /// A hash of its columns: statements that rewrite a table fire no trigger.
    pub shape: String,
    /// Its triggers of ours: name, function, mode (`A` always, `O` origin, `D` disabled) and `oid/xmin`.
    pub triggers: Vec<TriggerState>,
}

/// A trigger of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerState {
    /// Its name.
    pub name: String,
    /// The function it calls.
    pub function: u32,
    /// `A`, `O`, `R` or `D`.
    pub mode: char,
    /// Moves whenever anything about it was changed, also for a moment.
    pub version: String,
}

/// A captured tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Its number in the outbox.
    pub id: i32,
    /// The top of the tree.
    pub root: u32,
    /// The columns that a change carries, in this order.
    pub columns: Vec<String>,
    /// Of the columns.
    pub version: i32,
    /// Whether the kill switch has not been used.
    pub is_on: bool,
    /// Transactions that ran at this snapshot of that incarnation may have slipped past the switch.
    pub settling: Option<(String, String)>,
    /// The trigger function and its version, if it is there.
    pub function: Option<(u32, String)>,
}

const TREES: &str = "
    with recursive asked as (select t.name, to_regclass(t.name)::oid as rel from unnest($1::text[]) t(name)),
    up(name, rel) as (
        select name, rel from asked where rel is not null
        union select up.name, i.inhparent from up join pg_inherits i on i.inhrelid = up.rel
    ), down(name, root, rel) as (
        select u.name, u.rel, u.rel from up u where not exists (select from pg_inherits i where i.inhrelid = u.rel)
        union select d.name, d.root, i.inhrelid from down d join pg_inherits i on i.inhparent = d.rel
    )
    select a.name, d.root, d.rel, d.rel::regclass::text, c.relkind::text,
        (select md5(string_agg(a.attname || ' ' || a.atttypid || ' ' || a.atttypmod, ',' order by a.attnum))
         from pg_attribute a where a.attrelid = d.rel and 0 < a.attnum and not a.attisdropped),
        (select array_agg(array[t.tgname::text, t.tgfoid::oid::text, t.tgenabled::text, t.oid || '/' || t.xmin]
                order by t.tgname)
         from pg_trigger t where t.tgrelid = d.rel and not t.tgisinternal and t.tgname like 'cachekeeper\\_%')::text
    from asked a left join down d on d.name = a.name left join pg_class c on c.oid = d.rel
    order by a.name, d.root, d.rel";

const CAPTURES: &str = "
    select c.id, c.root, c.columns, c.is_on, c.settling, c.settling_in, p.oid, p.xmin::text, c.version
    from cachekeeper.capture c
    left join pg_proc p on p.proname = 'capture_' || c.id and p.pronamespace = 'cachekeeper'::regnamespace
    order by c.id";

const COLUMNS: &str = "
    select a.attname::text, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null)
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = $1 and 0 < a.attnum and not a.attisdropped order by a.attnum";

/// How long installing may wait for writers; behind it every other statement on the table waits too.
const LOCK_TIMEOUT: &str = "set lock_timeout = '2s'";

impl Postgres {
    /// All relations of the trees that these tables belong to. A table that is not there has one member without a root.
    pub(crate) async fn trees(&self, tables: &[String]) -> Result<Vec<TreeMember>, SourceError> {
        let what = "look at the watched tables";
        let error = |source| SourceError::new(what, source);
        let rows = sqlx::query(TREES).bind(tables).fetch_all(&self.pool).await.map_err(error)?;
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let root: Option<sqlx::postgres::types::Oid> = row.try_get(1).map_err(error)?;
            let oid: Option<sqlx::postgres::types::Oid> = row.try_get(2).map_err(error)?;
            let name: Option<String> = row.try_get(3).map_err(error)?;
            let kind: Option<String> = row.try_get(4).map_err(error)?;
            let shape: Option<String> = row.try_get(5).map_err(error)?;
            let triggers: Option<String> = row.try_get(6).map_err(error)?;
            members.push(TreeMember {
                asked: row.try_get(0).map_err(error)?,
                root: root.map(|root| root.0),
                oid: oid.map(|oid| oid.0).unwrap_or_default(),
                name: name.unwrap_or_default(),
                kind: kind.and_then(|kind| kind.chars().next()).unwrap_or('?'),
                shape: shape.unwrap_or_default(),
                triggers: triggers.as_deref().map(read_triggers).unwrap_or_default(),
            });
        }
        Ok(members)
    }

    /// What is captured.
    pub async fn captures(&self) -> Result<Vec<Capture>, SourceError> {
        let what = "read what is captured";
        let error = |source| SourceError::new(what, source);
        let rows = sqlx::query(CAPTURES).fetch_all(&self.pool).await.map_err(error)?;
        let mut captures = Vec::with_capacity(rows.len());
        for row in rows {
            let root: sqlx::postgres::types::Oid = row.try_get(1).map_err(error)?;
            let settling: (Option<String>, Option<String>) =
                (row.try_get(4).map_err(error)?, row.try_get(5).map_err(error)?);
            let function: (Option<sqlx::postgres::types::Oid>, Option<String>) =
                (row.try_get(6).map_err(error)?, row.try_get(7).map_err(error)?);
            captures.push(Capture {
                id: row.try_get(0).map_err(error)?,
                root: root.0,
                columns: row.try_get(2).map_err(error)?,
                version: row.try_get(8).map_err(error)?,
                is_on: row.try_get(3).map_err(error)?,
                settling: settling.0.zip(settling.1),
                function: function.0.map(|oid| oid.0).zip(function.1),
            });
        }
        Ok(captures)
    }

    /// Captures the changes of the tree under `root`: these columns and those that were captured before. Waits for
    /// writers, but not long: whoever comes behind would wait too. Answers how many triggers were made.
    ///
    /// # Errors
    /// [`SourceError`]: [`ErrorKind::Forbidden`] without being the owner of the tables, [`ErrorKind::Cancelled`] while a
    /// long transaction holds one of them.
    pub(crate) async fn install_capture(
        &self,
        members: &[&TreeMember],
        root: u32,
        columns: &BTreeSet<String>,
        limits: &CaptureLimits,
    ) -> Result<usize, SourceError> {
        let what = "install the triggers";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        connection.execute(LOCK_TIMEOUT).await.map_err(error)?;
        let (id, function) = self.install_function(&mut connection, root, columns, limits).await?;
        let mut made = 0;
        for member in members.iter().filter(|member| matches!(member.kind, 'r' | 'p')) {
            let mut transaction = connection.begin().await.map_err(error)?;
            for (trigger, event, tables) in function::TRIGGERS {
                let found = member.triggers.iter().find(|found| found.name == trigger);
                if found.is_some_and(|found| found.mode == 'A' && Some(found.function) == function) {
                    continue;
                }
                let (table, run) = (&member.name, function::name(id));
                for statement in [
                    format!("drop trigger if exists {trigger} on {table}"),
                    format!(
                        "create trigger {trigger} after {event} on {table} {tables} for each statement execute function {run}()"
                    ),
                    format!("alter table {table} enable always trigger {trigger}"),
                ] {
                    transaction.execute(AssertSqlSafe(statement)).await.map_err(error)?;
                }
                made += 1;
            }
            transaction.commit().await.map_err(error)?;
        }
        Ok(made)
    }

    /// Answers the capture's number and the function that its triggers call; none: it was only just made.
    async fn install_function(
        &self,
        connection: &mut PgConnection,
        root: u32,
        columns: &BTreeSet<String>,
        limits: &CaptureLimits,
    ) -> Result<(i32, Option<u32>), SourceError> {
        let what = "install the trigger function";
        let error = |source| SourceError::new(what, source);
        let oid = sqlx::postgres::types::Oid(root);
        let mut transaction = connection.begin().await.map_err(error)?;
        let insert =
            "insert into cachekeeper.capture (root, columns) values ($1, '{}') on conflict (root) do nothing";
        sqlx::query(insert).bind(oid).execute(&mut *transaction).await.map_err(error)?;
        let select = "select c.id, c.columns, c.definition, c.is_on, p.oid, c.version from cachekeeper.capture c left join pg_proc p \
             on p.proname = 'capture_' || c.id and p.pronamespace = 'cachekeeper'::regnamespace \
             where c.root = $1 for update of c";
        let row = sqlx::query(select).bind(oid).fetch_one(&mut *transaction).await.map_err(error)?;
        let id: i32 = row.try_get(0).map_err(error)?;
        let before: Vec<String> = row.try_get(1).map_err(error)?;
        let definition: String = row.try_get(2).map_err(error)?;
        let is_on: bool = row.try_get(3).map_err(error)?;
        let function: Option<sqlx::postgres::types::Oid> = row.try_get(4).map_err(error)?;
        let mut version: i32 = row.try_get(5).map_err(error)?;
        let watched = watched_columns(&mut transaction, root, columns, &before).await?;
        let names: Vec<&str> = watched.iter().map(|column| column.name.as_str()).collect();
        version += i32::from(names != before);
        let sql = function::create((id, version), &watched, limits, is_on);
        // Replaced only where it differs: a new version means that something may have slipped past.
        if function.is_none() || definition != sql {
            transaction.execute(AssertSqlSafe(sql.clone())).await.map_err(error)?;
            let revoke = format!("revoke all on function {}() from public", function::name(id));
            transaction.execute(AssertSqlSafe(revoke)).await.map_err(error)?;
            let update =
                "update cachekeeper.capture set columns = $2, definition = $3, version = $4 where id = $1";
            let update = sqlx::query(update).bind(id).bind(names).bind(&sql).bind(version);
            update.execute(&mut *transaction).await.map_err(error)?;
        }
        transaction.commit().await.map_err(error)?;
        Ok((id, function.map(|oid| oid.0)))
    }

    /// The kill switch: without any lock on a table the triggers do nothing from now on, or something again.
    pub async fn switch_capture(&self, is_on: bool, limits: &CaptureLimits) -> Result<usize, SourceError> {
        let what = "switch the capture";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        let mut transaction = connection.begin().await.map_err(error)?;
        let captures = sqlx::query(
            "select id, root, columns, version from cachekeeper.capture where is_on <> $1 for update",
        )
        .bind(is_on)
        .fetch_all(&mut *transaction)
        .await
        .map_err(error)?;
        for row in &captures {
            let id: i32 = row.try_get(0).map_err(error)?;
            let root: sqlx::postgres::types::Oid = row.try_get(1).map_err(error)?;
            let columns: Vec<String> = row.try_get(2).map_err(error)?;
            let watched = watched_columns(&mut transaction, root.0, &BTreeSet::new(), &columns).await?;
            let version: i32 = row.try_get(3).map_err(error)?;
            let names: Vec<&str> = watched.iter().map(|column| column.name.as_str()).collect();
            let version = version + i32::from(names != columns);
            let sql = function::create((id, version), &watched, limits, is_on);
            transaction.execute(AssertSqlSafe(sql.clone())).await.map_err(error)?;
            let update = "update cachekeeper.capture set is_on = $2, definition = $3, columns = $4, version = $5, \
                 settling = 'pending', settling_in = null where id = $1";
            let update = sqlx::query(update).bind(id).bind(is_on).bind(&sql).bind(names).bind(version);
            update.execute(&mut *transaction).await.map_err(error)?;
        }
        transaction.commit().await.map_err(error)?;
        if is_on {
            self.note_settling(&mut connection).await?;
        }
        Ok(captures.len())
    }

    /// Notes the transactions that may have begun a statement while the switch was off: those that run now.
    async fn note_settling(&self, connection: &mut PgConnection) -> Result<(), SourceError> {
        let sql = format!(
            "update cachekeeper.capture set settling = pg_current_snapshot()::text, settling_in = {} \
             where is_on and settling is not null",
            super::statement::INCARNATION
        );
        let done = sqlx::query(AssertSqlSafe(sql)).execute(&mut *connection).await;
        done.map(drop).map_err(|source| SourceError::new("note what may have slipped past", source))
    }

    /// Ends the settling of captures: everything that ran when they were switched on has ended.
    pub(crate) async fn settle_captures(&self) -> Result<(), SourceError> {
        let what = "end the settling of a capture";
        let error = |source| SourceError::new(what, source);
        let mut connection = self.pool.acquire().await.map_err(error)?;
        let mut transaction = connection.begin().await.map_err(error)?;
        transaction.execute("set transaction read write").await.map_err(error)?;
        // In another incarnation the noted numbers mean nothing, so the transactions of now are noted instead.
        let stale = format!(
            "update cachekeeper.capture set settling = pg_current_snapshot()::text, settling_in = {} where is_on \
             and settling is not null and settling_in is distinct from {}",
            super::statement::INCARNATION,
            super::statement::INCARNATION
        );
        sqlx::query(AssertSqlSafe(stale)).execute(&mut *transaction).await.map_err(error)?;
        let over = "update cachekeeper.capture set settling = null, settling_in = null where is_on \
             and settling is not null and settling <> 'pending' \
             and pg_snapshot_xmin(pg_current_snapshot()) >= pg_snapshot_xmax(settling::pg_snapshot)";
        sqlx::query(over).execute(&mut *transaction).await.map_err(error)?;
        transaction.commit().await.map_err(error)
    }
}

/// The columns to capture that the table has, in a fixed order.
async fn watched_columns(
    connection: &mut PgConnection,
    root: u32,
    wanted: &BTreeSet<String>,
    before: &[String],
) -> Result<Vec<WatchedColumn>, SourceError> {
    let what = "read the columns of a watched table";
    let error = |source| SourceError::new(what, source);
    let oid = sqlx::postgres::types::Oid(root);
    let rows = sqlx::query(COLUMNS).bind(oid).fetch_all(&mut *connection).await.map_err(error)?;
    let mut watched = Vec::new();
    for row in rows {
        let name: String = row.try_get(0).map_err(error)?;
        if wanted.contains(&name) || before.contains(&name) {
            watched.push(WatchedColumn { name, kind: row.try_get(1).map_err(error)? });
        }
    }
    match wanted.iter().find(|name| !watched.iter().any(|column| column.name == **name)) {
        Some(missing) => Err(SourceError::with(
            what,
            ErrorKind::Statement,
            format!("the watched table has no column {missing}"),
        )),
        None => Ok(watched),
    }
}

/// `{{name,function,mode,version},…}`: none of the parts can hold a comma, a brace or a quote.
fn read_triggers(text: &str) -> Vec<TriggerState> {
    let parts: Vec<&str> = text.split(['{', '}', ',']).filter(|part| !part.is_empty()).collect();
    parts
        .chunks_exact(4)
        .filter_map(|parts| match parts {
            [name, function, mode, version] => Some(TriggerState {
                name: (*name).to_owned(),
                function: function.parse().ok()?,
                mode: mode.chars().next()?,
                version: (*version).to_owned(),
            }),
            _ => None,
        })
        .collect()
}
