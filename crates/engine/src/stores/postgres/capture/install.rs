//! Installing a capture: a writer is never kept waiting for longer than a moment.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::super::session::Session;
use super::TreeMember;
use super::function::{CaptureLimits, Definition, name, truncate_name};
use super::reliance::{WatchedColumn, reliance};
use super::triggers::{Functions, Plan};
use crate::stores::postgres::holders::{OF_READERS, held, wait_shortly};
use crate::stores::postgres::statement::quote;
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

impl Recorded {
    /// Of a capture that is not recorded yet.
    fn new(id: i32) -> Self {
        let (columns, definition) = (Vec::new(), String::new());
        Self { id, columns, version: 0, definition, is_on: true, by_statement: false }
    }
}

/// How long the lock for triggers may be waited for: whoever writes waits behind us meanwhile.
const LOCK_WITHIN: &str = "set local statement_timeout = '50ms'";
const NO_LIMIT: &str = "set local statement_timeout = 0";
const WHAT: &str = "install the triggers";

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
        coalesce(nullif(t.typbasetype, 0), t.oid) < 16384, a.attnum, a.atttypid, a.attgenerated = 'v'
    from pg_attribute a join pg_type t on t.oid = a.atttypid
    where a.attrelid = $1 and 0 < a.attnum and not a.attisdropped order by a.attnum";

fn error(source: sqlx::Error) -> SourceError {
    SourceError::new(WHAT, source)
}

/// SQLSTATE: an object is there that is to be made, or is not there that is to be dropped.
const DUPLICATE: &str = "42710";
const UNDEFINED: &str = "42704";

/// Whoever installs beside another one may find its work done, with what was to be done read before it waited.
fn overtaken(source: sqlx::Error) -> SourceError {
    let code = source.as_database_error().and_then(|error| error.code());
    let is_overtaken = matches!(code.as_deref(), Some(DUPLICATE | UNDEFINED));
    let mut error = error(source);
    if is_overtaken {
        error.kind = ErrorKind::Changed;
    }
    error
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
        let tree = Tree::new(members, root);
        let mut connection = self.open_for_schema().await?;
        match install(&mut connection, &tree, wanted, limits).await {
            Ok(made) => Ok(made),
            Err(error) => Err(held(&mut connection, &tree.oids(), error).await),
        }
    }
}

impl Postgres {
    /// The statements by which [`Self::install_capture`] would capture a tree; none: nothing is to be done. `number` is the
    /// capture's where none is recorded; `is_installed`: whether the schema is there.
    ///
    /// # Errors
    /// [`SourceError`], for example where the table has not the columns.
    pub(crate) async fn capture_script(
        &self,
        (members, root): (&[&TreeMember], u32),
        wanted: &WantedCapture,
        limits: &CaptureLimits,
        number: i32,
        is_installed: bool,
    ) -> Result<Vec<String>, SourceError> {
        let tree = Tree::new(members, root);
        let mut connection = self.open_for_schema().await?;
        let known = if is_installed { recorded(&mut connection, root, "").await? } else { None };
        let mut script = vec!["begin".to_owned()];
        if known.is_none() {
            script.push(format!(
                "insert into cachekeeper.capture (id, root, columns, mode, db) overriding system value select {number}, {root}, '{{}}', '', \
                 d.oid from pg_catalog.pg_database d where d.datname = current_database()"
            ));
            script.push(format!("select setval('cachekeeper.capture_id_seq', {number})"));
        }
        let recorded = known.unwrap_or_else(|| Recorded::new(number));
        let work = work(&mut connection, &tree, &recorded, wanted, limits).await?;
        if work.is_done() {
            return Ok(Vec::new());
        }
        if !work.triggers.is_empty() {
            // Whoever writes waits behind this for a moment at most; where it fails, nothing of the tree is done.
            script.extend([LOCK_WITHIN.to_owned(), lock_statement(&tree.members), NO_LIMIT.to_owned()]);
        }
        script.extend(work.functions);
        script.extend(work.triggers.into_iter().map(|(_, statement)| statement));
        script.push("commit".to_owned());
        Ok(script)
    }

    /// The number that the next capture gets.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn next_capture(&self) -> Result<i32, SourceError> {
        let sql = "select (last_value + is_called::int4)::int4 from cachekeeper.capture_id_seq";
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.map_err(error)
    }
}

fn lock_statement(members: &[&TreeMember]) -> String {
    let names: Vec<&str> = members.iter().map(|member| member.path.as_str()).collect();
    format!("lock table {} in share row exclusive mode", names.join(", "))
}

/// The tables of a tree that triggers are to be made on.
struct Tree<'a> {
    root: u32,
    members: Vec<&'a TreeMember>,
    /// Triggers of a foreign member would keep its server from doing the work of a statement, so such a tree has none.
    is_foreign: bool,
}

impl<'a> Tree<'a> {
    fn new(members: &[&'a TreeMember], root: u32) -> Self {
        let is_foreign = members.iter().any(|member| member.kind == 'f');
        let members = members.iter().filter(|member| matches!(member.kind, 'r' | 'p')).copied().collect();
        Self { root, members, is_foreign }
    }

    fn oids(&self) -> Vec<Oid> {
        self.members.iter().map(|member| Oid(member.oid)).collect()
    }
}

/// What is to be done for a tree: the functions, and then the triggers.
struct Work {
    capture: i32,
    /// Statements that record the definition, and make the functions.
    functions: Vec<String>,
    /// Statements that make triggers, each with the owner of its table.
    triggers: Vec<(String, String)>,
    /// Whether triggers that are there would call functions that are not meant for them, until they are replaced.
    is_other: bool,
}

/// Installs a capture in one transaction: all or nothing. Where nothing is to be done, nothing is written or locked.
async fn install(
    connection: &mut Session,
    tree: &Tree<'_>,
    wanted: &WantedCapture,
    limits: &CaptureLimits,
) -> Result<usize, SourceError> {
    let mut transaction = connection.begin().await.map_err(error)?;
    let known = match recorded(&mut transaction, tree.root, "").await? {
        Some(recorded) => Some(work(&mut transaction, tree, &recorded, wanted, limits).await?),
        None => None,
    };
    if known.as_ref().is_some_and(Work::is_done) {
        return Ok(0);
    }
    let stranger = tree.members.iter().find(|member| !member.is_ours);
    let needs_functions = known.is_none_or(|work| !work.functions.is_empty());
    if (stranger.is_some() || needs_functions)
        && let Some(owner) = owner_of_schema(&mut transaction).await?
    {
        let (whose, owner) = match stranger {
            Some(stranger) => (stranger.name.as_str(), &stranger.owner),
            None => ("the schema `cachekeeper`", &owner),
        };
        let text = format!(
            "only the owner of {whose} may make them: run `cachekeeper migrate` as that user ({owner})"
        );
        return Err(SourceError::with(WHAT, ErrorKind::Forbidden, text));
    }
    let held = record(&mut transaction, tree.root).await?;
    let work = work(&mut transaction, tree, &held, wanted, limits).await?;
    let is_left_to_owners = stranger.is_some() && !work.triggers.is_empty();
    if is_left_to_owners && work.is_other {
        let text = "only the owners of all its tables may replace them: run `cachekeeper migrate` as a member of their roles";
        return Err(SourceError::with(WHAT, ErrorKind::Forbidden, text.to_owned()));
    }
    if !work.triggers.is_empty() && !is_left_to_owners {
        lock(&mut transaction, &tree.members).await?;
    }
    let triggers = work.triggers.iter().filter(|_| !is_left_to_owners).map(|(_, statement)| statement);
    for statement in work.functions.iter().chain(triggers) {
        transaction.execute(AssertSqlSafe(statement.clone())).await.map_err(overtaken)?;
    }
    if is_left_to_owners {
        let text = leave_to_owners(&mut transaction, tree, &work).await?;
        transaction.commit().await.map_err(error)?;
        return Err(SourceError::with(WHAT, ErrorKind::Forbidden, text));
    }
    transaction.commit().await.map_err(error)?;
    Ok(work.triggers.iter().filter(|(_, statement)| statement.starts_with("create")).count())
}

/// Whose the schema is, where this role may not make functions in it.
async fn owner_of_schema(connection: &mut Session) -> Result<Option<String>, SourceError> {
    let sql = "select pg_get_userbyid(n.nspowner)::text from pg_namespace n \
         where n.nspname = 'cachekeeper' and not has_schema_privilege(n.oid, 'create')";
    sqlx::query_scalar(sql).fetch_optional(connection).await.map_err(error)
}

/// Lets the owners of the tables make the triggers that are missing; says by which statements.
async fn leave_to_owners(
    connection: &mut Session,
    tree: &Tree<'_>,
    work: &Work,
) -> Result<String, SourceError> {
    let mut by_owner: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (owner, statement) in &work.triggers {
        by_owner.entry(owner).or_default().push(statement);
    }
    let mut parts = Vec::new();
    for (owner, statements) in by_owner {
        let (capture, truncate) = (name(work.capture), truncate_name(work.capture));
        let grant = format!("grant execute on function {capture}(), {truncate}() to {}", quote(owner));
        connection.execute(AssertSqlSafe(grant)).await.map_err(error)?;
        parts.push(format!("as {owner}, run: set lock_timeout = '50ms'; {}", statements.join("; ")));
    }
    let table = tree.members.first().map_or("", |member| member.name.as_str());
    Ok(format!(
        "only the owner of {table} may make them; their functions are made; {}",
        parts.join("; then ")
    ))
}

impl Work {
    fn is_done(&self) -> bool {
        self.functions.is_empty() && self.triggers.is_empty()
    }
}

/// What is to be done that a tree is captured as it is wanted.
async fn work(
    connection: &mut Session,
    tree: &Tree<'_>,
    recorded: &Recorded,
    wanted: &WantedCapture,
    limits: &CaptureLimits,
) -> Result<Work, SourceError> {
    let watched = watched_columns(connection, tree.root, &wanted.columns, &recorded.columns).await?;
    let by_statement = wanted.by_statement;
    let columns: Vec<&str> = watched.iter().map(|column| column.name.as_str()).collect();
    let version = recorded.version + i32::from(columns != recorded.columns);
    let (capture, is_on) = (recorded.id, recorded.is_on);
    let defined = Definition { capture, version, columns: &watched, limits, is_on, by_statement };
    let statements = defined.statements();
    let definition = statements.join(";\n");
    // What was captured by functions that cannot be relied on may have slipped past, and whoever wrote meanwhile may still be open.
    let (calls, is_whole) = functions_of(connection, recorded).await?;
    let is_reliable = is_whole && recorded.definition.contains(&reliance(&watched));
    let is_unsure = !is_reliable && !recorded.definition.is_empty();
    let settling = if is_unsure { ", gaps = gaps + 1, settling = 'pending', settling_in = null" } else { "" };
    // Functions and triggers change together where they change how rows are captured.
    let is_other = recorded.by_statement != by_statement;
    let mut functions = Vec::new();
    // They are replaced only where they differ: a new version means that something may have slipped past.
    let is_replaced = !is_whole || is_other || definition != recorded.definition;
    if is_replaced {
        let columns: Vec<String> = columns.iter().map(|column| literal(column)).collect();
        functions.push(format!(
            "update cachekeeper.capture set columns = array[{}]::pg_catalog.text[], definition = {}, version = {version}, mode = {}{settling} \
             where id = {capture}",
            columns.join(", "),
            literal(&definition),
            literal(if by_statement { "statement" } else { "row" })
        ));
        functions.extend(statements);
        functions.push(READERS.replace("{capture}", &capture.to_string()));
    }
    let plan = Plan { id: capture, root: tree.root, by_statement, is_foreign: tree.is_foreign, calls };
    let statements = |member: &&TreeMember| {
        let owner = member.owner.clone();
        plan.statements(member).into_iter().map(move |statement| (owner.clone(), statement))
    };
    let triggers = tree.members.iter().flat_map(statements).collect();
    Ok(Work { capture, functions, triggers, is_other: is_other && !recorded.columns.is_empty() })
}

/// The functions of a capture; and whether all that belongs to it is there, with the text that is recorded.
async fn functions_of(
    connection: &mut Session,
    recorded: &Recorded,
) -> Result<(Functions, bool), SourceError> {
    let sql = "select p.oid, t.oid, 0 < strpos($2, p.prosrc) and 0 < strpos($2, t.prosrc)
            and 2 = (select count(*) from pg_class s where s.relname in ('uncaptured_' || $1::int4, 'whole_' || $1::int4) and s.relnamespace = n.oid)
         from pg_namespace n join pg_proc p on p.pronamespace = n.oid and p.proname = 'capture_' || $1::int4
         join pg_proc t on t.pronamespace = n.oid and t.proname = 'truncate_' || $1::int4 where n.nspname = 'cachekeeper'";
    let found: Option<(Oid, Oid, bool)> = sqlx::query_as(sql)
        .bind(recorded.id)
        .bind(&recorded.definition)
        .fetch_optional(connection)
        .await
        .map_err(error)?;
    let is_whole = found.as_ref().is_some_and(|(_, _, is_whole)| *is_whole);
    Ok((found.map(|(rows, truncate, _)| (rows.0, truncate.0)), is_whole))
}

/// Takes the lock that triggers need, on the whole tree, unless somebody holds it for long.
async fn lock(transaction: &mut Session, members: &[&TreeMember]) -> Result<(), SourceError> {
    let oids: Vec<Oid> = members.iter().map(|member| Oid(member.oid)).collect();
    wait_shortly(transaction, WHAT, &oids, &OF_READERS).await?;
    transaction.execute(LOCK_WITHIN).await.map_err(error)?;
    transaction.execute(AssertSqlSafe(lock_statement(members))).await.map_err(error)?;
    transaction.execute(NO_LIMIT).await.map_err(error)?;
    Ok(())
}

/// Finds or makes the record of a capture, and holds it.
async fn record(transaction: &mut Session, root: u32) -> Result<Recorded, SourceError> {
    let insert = "insert into cachekeeper.capture (root, columns, mode, db) \
         select $1, '{}', '', d.oid from pg_database d where d.datname = current_database() \
         on conflict (root) do update set db = excluded.db, definition = '' where capture.db <> excluded.db";
    sqlx::query(insert).bind(Oid(root)).execute(&mut *transaction).await.map_err(error)?;
    let found = recorded(transaction, root, "for update").await?;
    found.ok_or_else(|| error(sqlx::Error::RowNotFound))
}

/// The record of a capture of this database.
async fn recorded(
    connection: &mut Session,
    root: u32,
    lock: &'static str,
) -> Result<Option<Recorded>, SourceError> {
    let select = format!(
        "select id, columns, version, definition, is_on, mode from cachekeeper.capture where root = $1 \
         and db = (select d.oid from pg_database d where d.datname = current_database()) {lock}"
    );
    let row = sqlx::query(AssertSqlSafe(select)).bind(Oid(root)).fetch_optional(connection).await;
    let Some(row) = row.map_err(error)? else { return Ok(None) };
    let mode: String = row.try_get(5).map_err(error)?;
    Ok(Some(Recorded {
        id: row.try_get(0).map_err(error)?,
        columns: row.try_get(1).map_err(error)?,
        version: row.try_get(2).map_err(error)?,
        definition: row.try_get(3).map_err(error)?,
        is_on: row.try_get(4).map_err(error)?,
        by_statement: mode == "statement",
    }))
}

/// A text in a statement, whatever the server takes a backslash for.
fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The columns to capture that the table has and triggers see, in a fixed order. A dataset that asks for another one is refused for that,
/// and keeps nobody else from being covered.
pub(super) async fn watched_columns(
    connection: &mut Session,
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
        let is_virtual: bool = row.try_get(5).map_err(error)?;
        if !is_virtual && (wanted.contains(&name) || before.contains(&name)) {
            let place = (row.try_get(3).map_err(error)?, row.try_get::<Oid, _>(4).map_err(error)?.0);
            let (kind, is_built_in) = (row.try_get(1).map_err(error)?, row.try_get(2).map_err(error)?);
            watched.push(WatchedColumn { name, place, kind, is_built_in });
        }
    }
    Ok(watched)
}
