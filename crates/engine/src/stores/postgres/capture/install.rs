//! Installing a capture: a writer is never kept waiting for longer than a moment.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Postgres as Server, Row as _, Transaction};

use super::function::{CaptureLimits, Definition, WatchedColumn, name, truncate_name};
use super::{DELETE, FOR_EACH_ROW, INSERT, TRUNCATE, TreeMember, TriggerState, UPDATE};
use crate::stores::postgres::{ErrorKind, Postgres, SourceError};

/// What is to be captured of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WantedCapture {
    /// The columns that a change carries.
    pub columns: BTreeSet<String>,
    /// Whether the rows of a statement are captured together. Where two rules differ, it is one by one.
    pub by_statement: bool,
}

/// A capture as it is recorded, and as it is to be.
struct Recorded {
    id: i32,
    columns: Vec<String>,
    version: i32,
    definition: String,
    is_on: bool,
    by_statement: bool,
}

/// How long the lock for triggers may be waited for: whoever writes waits behind us meanwhile.
const LOCK_WITHIN: &str = "set local statement_timeout = '50ms'";
const NO_LIMIT: &str = "set local statement_timeout = 0";
/// Whoever holds a lock for longer than this is not waited for in the lock's queue.
const LONG: Duration = Duration::from_millis(100);
const WHAT: &str = "install the triggers";

/// Who holds locks on these relations that keep triggers from being made.
const HOLDERS: &str = "
    select l.virtualtransaction || ' ' || coalesce(l.pid::text, 'prepared') from pg_locks l
    where l.locktype = 'relation' and l.relation = any($1)
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.mode not in ('AccessShareLock', 'RowShareLock') and l.pid is distinct from pg_backend_pid()";

/// Whoever reads the outbox reads the marker of the capture too.
const READERS: &str = "do $$
    declare held record;
    begin
        for held in select distinct a.grantee::regrole::text as role from pg_class c, aclexplode(c.relacl) a
            where c.oid = 'cachekeeper.outbox'::regclass and a.grantee not in (0, c.relowner) and a.privilege_type = 'SELECT'
        loop
            execute format('grant select on sequence cachekeeper.uncaptured_{capture} to %s', held.role);
        end loop;
    end $$";

const COLUMNS: &str = "
    select a.attname::text, format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null),
        coalesce(nullif(t.typbasetype, 0), t.oid) < 16384
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = $1 and 0 < a.attnum and not a.attisdropped order by a.attnum";

fn error(source: sqlx::Error) -> SourceError {
    SourceError::new(WHAT, source)
}

impl Postgres {
    /// Captures the changes of the tree under `root`: these columns and those that were captured before. Answers how many
    /// triggers were made.
    ///
    /// # Errors
    /// [`SourceError`]: [`ErrorKind::Forbidden`] without being the owner of the tables, [`ErrorKind::Cancelled`] while
    /// somebody else holds one of them.
    pub(crate) async fn install_capture(
        &self,
        members: &[&TreeMember],
        root: u32,
        wanted: &WantedCapture,
        limits: &CaptureLimits,
    ) -> Result<usize, SourceError> {
        // Triggers of a foreign member would keep its server from doing the work of a statement, so such a tree has none.
        let is_foreign = members.iter().any(|member| member.kind == 'f');
        let members: Vec<&TreeMember> =
            members.iter().filter(|member| matches!(member.kind, 'r' | 'p')).copied().collect();
        if let Some(foreign) = members.iter().find(|member| !member.is_ours) {
            let text = format!("{} belongs to another role", foreign.name);
            return Err(SourceError::with(WHAT, ErrorKind::Forbidden, text));
        }
        let mut connection = self.open_unlimited().await?;
        connection.execute("set default_transaction_read_only = off").await.map_err(error)?;
        let mut transaction = connection.begin().await.map_err(error)?;
        let recorded = record(&mut transaction, root).await?;
        let watched = watched_columns(&mut transaction, root, &wanted.columns, &recorded.columns).await?;
        // Functions and triggers change together where they change how rows are captured.
        let is_other = recorded.by_statement != wanted.by_statement;
        let function =
            define(&mut transaction, &recorded, &watched, limits, wanted.by_statement, is_other).await?;
        let by_statement = wanted.by_statement;
        let plan = Plan { id: recorded.id, root, by_statement, is_foreign, function: function.oid };
        let missing: Vec<String> = members.iter().flat_map(|member| plan.statements(member)).collect();
        if !missing.is_empty() {
            lock(&mut transaction, &members).await?;
        }
        for statement in function.statements.iter().chain(&missing) {
            transaction.execute(AssertSqlSafe(statement.clone())).await.map_err(error)?;
        }
        if !function.statements.is_empty() {
            let readers = READERS.replace("{capture}", &recorded.id.to_string());
            transaction.execute(AssertSqlSafe(readers)).await.map_err(error)?;
        }
        transaction.commit().await.map_err(error)?;
        Ok(missing.iter().filter(|statement| statement.starts_with("create")).count())
    }
}

/// Takes the lock that triggers need, on the whole tree, unless somebody holds it for long.
async fn lock(transaction: &mut Transaction<'_, Server>, members: &[&TreeMember]) -> Result<(), SourceError> {
    let oids: Vec<Oid> = members.iter().map(|member| Oid(member.oid)).collect();
    let before = holders(transaction, &oids).await?;
    if !before.is_empty() {
        tokio::time::sleep(LONG).await;
        let after = holders(transaction, &oids).await?;
        if let Some(long) = before.intersection(&after).next() {
            let pid = long.rsplit(' ').next().unwrap_or_default();
            let text = format!("process {pid} has held a lock on the table for some time");
            return Err(SourceError::with(WHAT, ErrorKind::Cancelled, text));
        }
    }
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let lock = format!("lock table {} in share row exclusive mode", names.join(", "));
    transaction.execute(LOCK_WITHIN).await.map_err(error)?;
    transaction.execute(AssertSqlSafe(lock)).await.map_err(error)?;
    transaction.execute(NO_LIMIT).await.map_err(error)?;
    Ok(())
}

async fn holders(connection: &mut PgConnection, oids: &[Oid]) -> Result<HashSet<String>, SourceError> {
    let found: Result<Vec<String>, _> = sqlx::query_scalar(HOLDERS).bind(oids).fetch_all(connection).await;
    Ok(found.map_err(error)?.into_iter().collect())
}

/// Forgets what was captured in the database that this one was copied from: its triggers have the names of other tables.
///
/// # Errors
/// [`SourceError`], for example while somebody writes to one of the tables.
pub(in crate::stores::postgres) async fn forget_copied(
    connection: &mut PgConnection,
) -> Result<(), SourceError> {
    let copied = "delete from cachekeeper.capture c \
         where c.db <> (select d.oid from pg_database d where d.datname = current_database()) returning c.id";
    let mut transaction = connection.begin().await.map_err(error)?;
    let copied: Vec<i32> = sqlx::query_scalar(copied).fetch_all(&mut *transaction).await.map_err(error)?;
    transaction.execute(LOCK_WITHIN).await.map_err(error)?;
    for id in copied {
        for function in [name(id), truncate_name(id)] {
            let drop = format!("drop function if exists {function}() cascade");
            transaction.execute(AssertSqlSafe(drop)).await.map_err(error)?;
        }
    }
    transaction.commit().await.map_err(error)
}

/// Finds or makes the record of a capture, and holds it.
async fn record(transaction: &mut Transaction<'_, Server>, root: u32) -> Result<Recorded, SourceError> {
    let insert = "insert into cachekeeper.capture (root, columns, mode, db) \
         select $1, '{}', '', d.oid from pg_database d where d.datname = current_database() \
         on conflict (root) do update set db = excluded.db, definition = '' where capture.db <> excluded.db";
    sqlx::query(insert).bind(Oid(root)).execute(&mut **transaction).await.map_err(error)?;
    let select = "select id, columns, version, definition, is_on, mode from cachekeeper.capture where root = $1 for update";
    let row = sqlx::query(select).bind(Oid(root)).fetch_one(&mut **transaction).await.map_err(error)?;
    let mode: String = row.try_get(5).map_err(error)?;
    Ok(Recorded {
        id: row.try_get(0).map_err(error)?,
        columns: row.try_get(1).map_err(error)?,
        version: row.try_get(2).map_err(error)?,
        definition: row.try_get(3).map_err(error)?,
        is_on: row.try_get(4).map_err(error)?,
        by_statement: mode == "statement",
    })
}

/// The function that the triggers are to call, and what is to be executed for it.
struct Function {
    /// None: it is only made by the statements.
    oid: Option<u32>,
    statements: Vec<String>,
}

/// Records how the functions are to be, and answers what makes them so. They are replaced only where they differ: a new
/// version means that something may have slipped past.
async fn define(
    transaction: &mut Transaction<'_, Server>,
    recorded: &Recorded,
    watched: &[WatchedColumn],
    limits: &CaptureLimits,
    by_statement: bool,
    is_other: bool,
) -> Result<Function, SourceError> {
    let columns: Vec<&str> = watched.iter().map(|column| column.name.as_str()).collect();
    let version = recorded.version + i32::from(columns != recorded.columns);
    let (capture, is_on) = (recorded.id, recorded.is_on);
    let statements =
        Definition { capture, version, columns: watched, limits, is_on, by_statement }.statements();
    let definition = statements.join(";\n");
    let oid =
        "select p.oid from pg_proc p where p.proname = $1 and p.pronamespace = 'cachekeeper'::regnamespace";
    let oid: Option<Oid> = sqlx::query_scalar(oid)
        .bind(format!("capture_{capture}"))
        .fetch_optional(&mut **transaction)
        .await
        .map_err(error)?;
    let oid = oid.map(|oid| oid.0);
    if oid.is_some() && !is_other && definition == recorded.definition {
        return Ok(Function { oid, statements: Vec::new() });
    }
    let update =
        "update cachekeeper.capture set columns = $2, definition = $3, version = $4, mode = $5 where id = $1";
    let mode = if by_statement { "statement" } else { "row" };
    let update = sqlx::query(update).bind(capture).bind(columns).bind(&definition).bind(version).bind(mode);
    update.execute(&mut **transaction).await.map_err(error)?;
    Ok(Function { oid, statements })
}

/// Which triggers a tree is to have.
struct Plan {
    id: i32,
    root: u32,
    by_statement: bool,
    is_foreign: bool,
    function: Option<u32>,
}

/// A trigger as it is to be.
struct WantedTrigger {
    name: String,
    /// As in `pg_trigger.tgtype`.
    events: i16,
    event: &'static str,
    how: &'static str,
    run: String,
}

impl Plan {
    /// The names hold the root's oid: a table that is attached to a tree may have triggers of its own.
    fn triggers(&self) -> Vec<WantedTrigger> {
        let base = self.base();
        let one = |suffix: &str, events, event, how| WantedTrigger {
            name: format!("{base}{suffix}"),
            events,
            event,
            how,
            run: if events == TRUNCATE { truncate_name(self.id) } else { name(self.id) },
        };
        let truncate = one("_truncate", TRUNCATE, "truncate", "for each statement");
        let (new, both, old) = (
            "referencing new table as new_rows for each statement",
            "referencing old table as old_rows new table as new_rows for each statement",
            "referencing old table as old_rows for each statement",
        );
        match (self.is_foreign, self.by_statement) {
            (true, _) => Vec::new(),
            (false, true) => vec![
                one("_insert", INSERT, "insert", new),
                one("_update", UPDATE, "update", both),
                one("_delete", DELETE, "delete", old),
                truncate,
            ],
            (false, false) => {
                let events = FOR_EACH_ROW | INSERT | UPDATE | DELETE;
                vec![one("", events, "insert or update or delete", "for each row"), truncate]
            }
        }
    }

    fn base(&self) -> String {
        format!("cachekeeper_{}", self.root)
    }

    fn is_right(&self, found: &TriggerState, wanted: &WantedTrigger) -> bool {
        found.name == wanted.name
            && found.events == wanted.events
            && found.mode == 'A'
            && !found.is_conditional
            && (wanted.events == TRUNCATE || Some(found.function) == self.function)
    }

    /// Whether a trigger is this capture's to judge, and not one of another tree that the table was attached to or detached from.
    /// Earlier versions named theirs after the event.
    fn is_of_this(&self, found: &TriggerState) -> bool {
        let base = self.base();
        let is_named_after_event =
            !found.name.trim_start_matches("cachekeeper_").starts_with(|first: char| first.is_ascii_digit());
        found.name == base
            || found.name.starts_with(&format!("{base}_"))
            || Some(found.function) == self.function
            || is_named_after_event
    }

    /// What makes a member's triggers as they are to be; nothing where they are.
    fn statements(&self, member: &TreeMember) -> Vec<String> {
        let table = &member.name;
        let wanted = self.triggers();
        let mut statements = Vec::new();
        for found in member.triggers.iter().filter(|found| !found.is_clone && self.is_of_this(found)) {
            if !wanted.iter().any(|wanted| self.is_right(found, wanted)) {
                statements.push(format!("drop trigger if exists {} on {table}", found.name));
            }
        }
        for wanted in &wanted {
            if member.triggers.iter().any(|found| self.is_right(found, wanted)) {
                continue;
            }
            let WantedTrigger { name, event, how, run, .. } = wanted;
            // A partition's row trigger is its parent's.
            let is_cloned =
                wanted.events & FOR_EACH_ROW != 0 && member.oid != self.root && member.is_partition;
            if !is_cloned {
                statements.push(format!(
                    "create trigger {name} after {event} on {table} {how} execute function {run}()"
                ));
            } else if !member.triggers.iter().any(|found| found.name == *name) {
                continue;
            }
            statements.push(format!("alter table {table} enable always trigger {name}"));
        }
        statements
    }
}

/// The columns to capture that the table has, in a fixed order.
pub(super) async fn watched_columns(
    connection: &mut PgConnection,
    root: u32,
    wanted: &BTreeSet<String>,
    before: &[String],
) -> Result<Vec<WatchedColumn>, SourceError> {
    let what = "read the columns of a watched table";
    let error = |source| SourceError::new(what, source);
    let rows = sqlx::query(COLUMNS).bind(Oid(root)).fetch_all(&mut *connection).await.map_err(error)?;
    let mut watched = Vec::new();
    for row in rows {
        let name: String = row.try_get(0).map_err(error)?;
        if wanted.contains(&name) || before.contains(&name) {
            let kind = row.try_get(1).map_err(error)?;
            watched.push(WatchedColumn { name, kind, is_built_in: row.try_get(2).map_err(error)? });
        }
    }
    match wanted.iter().find(|name| !watched.iter().any(|column| column.name == **name)) {
        Some(missing) => {
            let text = format!("the watched table has no column {missing}");
            Err(SourceError::with(what, ErrorKind::Statement, text))
        }
        None => Ok(watched),
    }
}
