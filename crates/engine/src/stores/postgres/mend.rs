//! Mending: a schema that is not as the migrations make it is made anew beside the old one, and what the old one knows is taken
//! over; and what is captured of tables that are not there, or not those, is taken away.
//!
//! No application waits: the old schema is renamed, which takes no lock on its tables, and triggers find the new one by name.
//! What transactions under way have written to the old outbox is lost, so the new one says that it was full.

use sqlx::migrate::Migrator;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, Row as _};

use super::SourceError;
use super::holders::{held, wait_shortly};
use super::schema::{NO_FEED, is_feed_empty, relations};
use super::session::Session;
use super::statement::quote;

/// What is known in these tables is kept. Rows of the outbox are not: those of open transactions could not be.
const KEPT: [&str; 6] = ["capture", "writer", "applied", "used_by", "definition", "life"];
/// The old schema, until nobody uses it any more.
pub(super) const REPLACED: &str = "cachekeeper_replaced";

const WHAT: &str = "mend the schema `cachekeeper`";

fn error(source: sqlx::Error) -> SourceError {
    SourceError::new(WHAT, source)
}

/// Makes the schema anew, by the migrations, and takes over what the old one knows.
///
/// # Errors
/// [`SourceError`]: [`super::ErrorKind::Cancelled`] while others use tables of the schema, to be repeated then.
pub(super) async fn rebuild(
    connection: &mut Session,
    migrations: &Migrator,
    mended: &mut Vec<String>,
) -> Result<(), SourceError> {
    drop_replaced(connection).await?;
    connection.plainly(WHAT, async |connection| rebuild_on(connection, migrations, mended).await).await?;
    drop_replaced(connection).await
}

/// The driver's own transaction: those of the migrations nest in it.
async fn rebuild_on(
    connection: &mut PgConnection,
    migrations: &Migrator,
    mended: &mut Vec<String>,
) -> Result<(), SourceError> {
    let mut transaction = connection.begin().await.map_err(error)?;
    let mut kept = Vec::new();
    for table in KEPT {
        if is_table(&mut transaction, "cachekeeper", table).await? {
            // A worker that writes to it goes on with the new one.
            let lock = format!("lock table cachekeeper.{table} in share row exclusive mode");
            transaction.execute(AssertSqlSafe(lock)).await.map_err(error)?;
            kept.push(table);
        }
    }
    set_aside(&mut transaction, mended).await?;
    let rename = format!("alter schema cachekeeper rename to {REPLACED}");
    transaction.execute(AssertSqlSafe(rename)).await.map_err(error)?;
    transaction.execute("create schema cachekeeper").await.map_err(error)?;
    migrations.run_direct(None, &mut *transaction, false).await.map_err(|source| error(source.into()))?;
    for table in kept {
        copy(&mut transaction, table, mended).await?;
    }
    transaction.execute(TAKE_OVER).await.map_err(error)?;
    let roles: Vec<String> =
        sqlx::query_scalar(WITH_RIGHTS).fetch_all(&mut *transaction).await.map_err(error)?;
    for role in &roles {
        for statement in grants(role) {
            transaction.execute(AssertSqlSafe(statement)).await.map_err(error)?;
        }
    }
    // Whoever wrote to the old outbox and has not ended yet is waited for, and then everything is loaded again.
    transaction
        .execute("update cachekeeper.feed set overflow = 'pending', overflow_in = null")
        .await
        .map_err(error)?;
    transaction.commit().await.map_err(error)?;
    mended.push("the schema was made anew; every entry is loaded again".to_owned());
    Ok(())
}

/// What a worker's role needs of the schema: to read it, to record the incarnation, and to keep the outbox small; and to make the
/// temporary view that tells what a query reads, as far as whoever grants may give that. Triggers it cannot make: that takes the tables'
/// owner.
pub(super) fn grants(role: &str) -> Vec<String> {
    // Not again where it is held: that would look as if the schema had been changed.
    let usage = format!(
        "do $$ begin if not has_schema_privilege('{}', 'cachekeeper', 'usage') then grant usage on schema cachekeeper to {}; end if; end $$",
        role.replace('\'', "''"),
        quote(role)
    );
    let temporary = format!(
        "do $$ begin if not has_database_privilege('{}', current_database(), 'temporary') then execute format('grant temporary on database \
         %I to %I', current_database(), '{0}'); end if; exception when insufficient_privilege then null; end $$",
        role.replace('\'', "''"),
    );
    let role = quote(role);
    vec![
        usage,
        temporary,
        format!("grant select on cachekeeper._sqlx_migrations to {role}"),
        format!("grant select, insert, delete on cachekeeper.incarnation to {role}"),
        format!("grant select, insert, delete on cachekeeper.outbox to {role}"),
        format!("grant select, update on cachekeeper.feed, cachekeeper.outbox_count to {role}"),
        format!("grant select on all sequences in schema cachekeeper to {role}"),
        format!("grant select, insert, update on cachekeeper.capture, cachekeeper.writer to {role}"),
        format!("grant select, insert, update, delete on cachekeeper.applied to {role}"),
        format!("grant select, insert, delete on cachekeeper.used_by to {role}"),
        format!("grant select, insert, delete on cachekeeper.definition to {role}"),
        format!("grant select, insert, update on cachekeeper.life to {role}"),
    ]
}

/// The functions and markers of captures are those that triggers call; numbers of captures are not used twice.
const TAKE_OVER: &str = "do $$
    declare object record;
    begin
        for object in
            select 'function ' || p.oid::pg_catalog.regprocedure::pg_catalog.text as name from pg_catalog.pg_proc p
            where p.pronamespace = 'cachekeeper_replaced'::pg_catalog.regnamespace and p.proname ~ '^(capture|truncate)_[1-9][0-9]*$'
            union all
            select 'sequence ' || c.oid::pg_catalog.regclass::pg_catalog.text from pg_catalog.pg_class c
            where c.relnamespace = 'cachekeeper_replaced'::pg_catalog.regnamespace and c.relkind = 'S' and c.relname ~ '^(uncaptured|whole)_[1-9][0-9]*$'
        loop
            execute 'alter ' || object.name || ' set schema cachekeeper';
        end loop;
        perform setval(pg_get_serial_sequence('cachekeeper.capture', 'id'), m.last, true)
        from (select max(n) as last from (
            select c.id as n from cachekeeper.capture c
            union all select substring(p.proname from '[0-9]+$')::pg_catalog.int4 from pg_catalog.pg_proc p
            where p.pronamespace = 'cachekeeper'::pg_catalog.regnamespace and p.proname ~ '^(capture|truncate)_[1-9][0-9]{0,8}$') n) m
        where m.last is not null;
    end $$";

/// Whoever had rights on the old schema's tables has those of a worker.
const WITH_RIGHTS: &str = "
    select distinct pg_get_userbyid(a.grantee)::text from pg_catalog.pg_class c cross join aclexplode(c.relacl) a
    where c.relnamespace = 'cachekeeper_replaced'::pg_catalog.regnamespace and a.grantee not in (0, c.relowner)
        and c.relkind = 'r' and a.privilege_type = 'INSERT'";

async fn is_table(connection: &mut PgConnection, schema: &str, name: &str) -> Result<bool, SourceError> {
    let sql = "select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = $1 and c.relname = $2 and c.relkind = 'r')";
    sqlx::query_scalar(sql).bind(schema).bind(name).fetch_one(connection).await.map_err(error)
}

/// Takes over the rows of a table, as far as it has the columns.
async fn copy(
    connection: &mut PgConnection,
    table: &str,
    mended: &mut Vec<String>,
) -> Result<(), SourceError> {
    let sql = "select string_agg(quote_ident(n.attname), ', '),
            count(*) filter (where o.attname is null and n.attnotnull and not n.atthasdef and n.attidentity = '') = 0
        from pg_catalog.pg_attribute n
        left join pg_catalog.pg_attribute o on o.attrelid = $2::regclass and o.attname = n.attname and o.atttypid = n.atttypid
            and 0 < o.attnum and not o.attisdropped
        where n.attrelid = $1::regclass and 0 < n.attnum and not n.attisdropped and (o.attname is not null or n.attnotnull)";
    let row = sqlx::query(sql)
        .bind(format!("cachekeeper.{table}"))
        .bind(format!("{REPLACED}.{table}"))
        .fetch_one(&mut *connection)
        .await
        .map_err(error)?;
    let columns: Option<String> = row.try_get(0).map_err(error)?;
    let is_whole: bool = row.try_get(1).map_err(error)?;
    let Some(columns) = columns.filter(|_| is_whole) else {
        mended.push(format!("what table {table} knew is lost"));
        return Ok(());
    };
    let copy = format!(
        "insert into cachekeeper.{table} ({columns}) overriding system value \
         select {columns} from {REPLACED}.{table} on conflict do nothing"
    );
    connection.execute(AssertSqlSafe(copy)).await.map(drop).map_err(error)
}

/// Where a schema that was replaced earlier holds things of somebody's own, it is kept under another name.
async fn set_aside(connection: &mut PgConnection, mended: &mut Vec<String>) -> Result<(), SourceError> {
    let free = "select $1 || '_' || n from generate_series(2, 1000) n
        where exists (select from pg_catalog.pg_namespace s where s.nspname = $1)
            and not exists (select from pg_catalog.pg_namespace s where s.nspname = $1 || '_' || n) order by n limit 1";
    let name: Option<String> =
        sqlx::query_scalar(free).bind(REPLACED).fetch_optional(&mut *connection).await.map_err(error)?;
    let Some(name) = name else { return Ok(()) };
    let rename = format!("alter schema {REPLACED} rename to {name}");
    connection.execute(AssertSqlSafe(rename)).await.map_err(error)?;
    mended.push(format!("the schema {REPLACED} holds things that are not ours, and is called {name} now"));
    Ok(())
}

/// Takes the old schema away, unless somebody has things of his own in it.
///
/// # Errors
/// [`super::ErrorKind::Cancelled`] while somebody uses it, with whom.
pub(super) async fn drop_replaced(connection: &mut Session) -> Result<(), SourceError> {
    let left = "select exists (select from pg_catalog.pg_namespace n where n.nspname = $1)
        and not exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where n.nspname = $1 and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relname <> all($2)
                and c.relname !~ '^((uncaptured|whole)_[1-9][0-9]*|capture_id_seq)$')
        and not exists (select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
            where n.nspname = $1 and p.proname not in ('token', 'sendable', 'outbox_is_sound', 'begin_capture', 'begin_capture_in_old_snapshot', 'move_marker'))";
    let ours: Vec<&str> = relations().collect();
    let is_left: bool = sqlx::query_scalar(left)
        .bind(REPLACED)
        .bind(ours)
        .fetch_one(&mut *connection)
        .await
        .map_err(error)?;
    if !is_left {
        return Ok(());
    }
    let dropped = connection.execute(AssertSqlSafe(format!("drop schema {REPLACED} cascade"))).await;
    match dropped.map_err(error) {
        Ok(_) => Ok(()),
        Err(error) => Err(held(connection, &[], error).await),
    }
}

/// Mends what is in the tables: the one row of `feed`, and rows of the outbox that no transaction of this server has written.
pub(super) async fn mend_rows(connection: &mut Session, mended: &mut Vec<String>) -> Result<(), SourceError> {
    if is_feed_empty(connection).await? {
        // What was captured meanwhile was read by nobody.
        let insert = "insert into cachekeeper.feed (overflow) values ('pending') on conflict do nothing";
        connection.execute(insert).await.map_err(error)?;
        mended.push(NO_FEED.to_owned());
    }
    // A row that this statement sees, of a transaction that it does not, was not written here.
    let foreign = "select exists (select from cachekeeper.outbox o where o.xid >= pg_snapshot_xmax(pg_current_snapshot()))";
    let is_foreign: bool = sqlx::query_scalar(foreign).fetch_one(&mut *connection).await.map_err(error)?;
    if is_foreign {
        let delete =
            "delete from cachekeeper.outbox o where o.xid >= pg_snapshot_xmax(pg_current_snapshot())";
        let deleted = connection.execute(delete).await.map_err(error)?;
        mended.push(format!("{} rows of the outbox came from another server", deleted.rows_affected()));
    }
    Ok(())
}

/// Captures of another database, from which this one was copied, and of tables that are not there.
const DEAD: &str = "
    select c.id, c.db <> (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
    from cachekeeper.capture c where c.db <> (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
        or not exists (select from pg_catalog.pg_class r where r.oid = c.root) order by c.id";

/// Triggers that call a capture's function on a table which is not in that capture's tree.
const STRAY: &str = "
    with recursive ours as (
        select t.tgrelid, t.tgname, p.proname from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc p on p.oid = t.tgfoid join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'cachekeeper' and not t.tgisinternal and t.tgparentid = 0
    ), up(rel, top) as (
        select distinct o.tgrelid, o.tgrelid from ours o
        union select u.rel, i.inhparent from up u join pg_catalog.pg_inherits i on i.inhrelid = u.top
    )
    select o.tgrelid, quote_ident(n.nspname) || '.' || quote_ident(r.relname), array_agg(quote_ident(o.tgname) order by o.tgname),
        pg_has_role(r.relowner, 'usage'), pg_get_userbyid(r.relowner)::text
    from ours o join pg_catalog.pg_class r on r.oid = o.tgrelid join pg_catalog.pg_namespace n on n.oid = r.relnamespace
    where not exists (select from cachekeeper.capture c join up u on u.rel = o.tgrelid and u.top = c.root
        where o.proname in ('capture_' || c.id, 'truncate_' || c.id))
    group by 1, 2, 4, 5 order by 2";

/// What belongs to captures that are not there, and that no trigger calls.
const LEFTOVER: &str = "
    select 'function cachekeeper.' || p.proname || '()' from pg_catalog.pg_proc p
    where p.pronamespace = 'cachekeeper'::regnamespace and p.proname ~ '^(capture|truncate)_[1-9][0-9]*$' and pg_has_role(p.proowner, 'usage')
        and not exists (select from cachekeeper.capture c where p.proname in ('capture_' || c.id, 'truncate_' || c.id))
        and not exists (select from pg_catalog.pg_trigger t where t.tgfoid = p.oid)
    union all
    select 'sequence cachekeeper.' || s.relname from pg_catalog.pg_class s
    where s.relnamespace = 'cachekeeper'::regnamespace and s.relkind = 'S' and s.relname ~ '^(uncaptured|whole)_[1-9][0-9]*$' and pg_has_role(s.relowner, 'usage')
        and not exists (select from cachekeeper.capture c where s.relname in ('uncaptured_' || c.id, 'whole_' || c.id))";

/// Takes away captures, triggers and functions that belong to no table here: tables have other numbers after a restore.
///
/// # Errors
/// [`SourceError`]: [`super::ErrorKind::Cancelled`] while somebody uses one of the tables, to be repeated then.
pub(super) async fn drop_strays(
    connection: &mut Session,
    mended: &mut Vec<String>,
) -> Result<(), SourceError> {
    let dead = sqlx::query(DEAD).fetch_all(&mut *connection).await.map_err(error)?;
    for row in dead {
        let (id, is_copied): (i32, bool) = (row.try_get(0).map_err(error)?, row.try_get(1).map_err(error)?);
        let delete = sqlx::query("delete from cachekeeper.capture where id = $1").bind(id);
        delete.execute(&mut *connection).await.map_err(error)?;
        mended.push(match is_copied {
            true => format!("capture {id} was captured in another database"),
            false => format!("capture {id} was captured under the number of a table that is not there"),
        });
    }
    let strays = sqlx::query(STRAY).fetch_all(&mut *connection).await.map_err(error)?;
    for row in strays {
        let (oid, table): (Oid, String) = (row.try_get(0).map_err(error)?, row.try_get(1).map_err(error)?);
        let triggers: Vec<String> = row.try_get(2).map_err(error)?;
        let drops: Vec<String> =
            triggers.iter().map(|trigger| format!("drop trigger if exists {trigger} on {table}")).collect();
        let is_ours: bool = row.try_get(3).map_err(error)?;
        if !is_ours {
            let owner: String = row.try_get(4).map_err(error)?;
            mended.push(format!("{table} has triggers of another table; as {owner}: {}", drops.join("; ")));
            continue;
        }
        drop_on(connection, WHAT, oid, &drops).await?;
        mended.push(format!("{table} had triggers of another table"));
    }
    drop_leftover(connection).await
}

/// Drops the functions and markers of captures that are not recorded, as far as this role may.
pub(super) async fn drop_leftover(connection: &mut Session) -> Result<(), SourceError> {
    let leftover: Vec<String> =
        sqlx::query_scalar(LEFTOVER).fetch_all(&mut *connection).await.map_err(error)?;
    for object in leftover {
        connection.execute(AssertSqlSafe(format!("drop {object}"))).await.map_err(error)?;
    }
    Ok(())
}

/// Drops triggers of one table, all or none, unless somebody uses it for long.
pub(super) async fn drop_on(
    connection: &mut Session,
    what: &'static str,
    table: Oid,
    drops: &[String],
) -> Result<(), SourceError> {
    let error = |source| SourceError::new(what, source);
    let mut transaction = connection.begin().await.map_err(error)?;
    wait_shortly(&mut transaction, what, &[table], &[]).await?;
    for drop in drops {
        transaction.execute(AssertSqlSafe(drop.clone())).await.map_err(error)?;
    }
    transaction.commit().await.map_err(error)
}
