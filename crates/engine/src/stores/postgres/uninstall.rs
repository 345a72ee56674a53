//! Removal: one namespace's part of the schema `cachekeeper`, or all of it where nobody else uses it.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::holders::held;
use super::mend::{REPLACED, drop_leftover, drop_on};
use super::schema::is_own;
use super::session::Session;
use super::{ErrorKind, Postgres, SourceError};
use crate::backoff::Backoff;

const ATTEMPTS: usize = 8;
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// In the table of users: the schema itself, whatever is watched.
const SCHEMA: Oid = Oid(0);

/// Who uses what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Whether the schema is there.
    pub is_installed: bool,
    /// Other namespaces, each with the watched tables.
    pub others: BTreeMap<String, Vec<String>>,
    /// Tables with triggers that nobody else has asked for.
    pub own: Vec<String>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Tables whose triggers are gone.
    pub tables: Vec<String>,
    /// Tables that somebody used for so long that their triggers are still there.
    pub busy: Vec<String>,
    /// Who used one of them at the last attempt.
    pub holder: Option<String>,
    /// Whether the schema is gone with everything in it.
    pub has_removed_schema: bool,
}

/// Every table with triggers of ours, with the top of its tree; those of partitions go with their parent's. Who owns the functions but
/// not the table takes the triggers away with them.
const TRIGGERED: &str = "
    with recursive ours as (
        select t.tgrelid, t.tgname, t.tgfoid from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc p on p.oid = t.tgfoid
        join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('cachekeeper', 'cachekeeper_replaced') and not t.tgisinternal and t.tgparentid = 0
    ), up (rel, top) as (
        select distinct tgrelid, tgrelid from ours
        union select u.rel, i.inhparent from up u join pg_catalog.pg_inherits i on i.inhrelid = u.top
    )
    select u.rel, u.top, case when n.nspname = 'public' then '' else quote_ident(n.nspname) || '.' end || quote_ident(c.relname),
        array(select case when pg_has_role(c.relowner, 'usage') then format('drop trigger if exists %I on %I.%I', o.tgname, n.nspname, c.relname)
            else format('drop function if exists %s cascade', o.tgfoid::pg_catalog.regprocedure) end
            from ours o where o.tgrelid = u.rel order by o.tgname)
    from up u join pg_catalog.pg_class c on c.oid = u.rel join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where not exists (select from pg_catalog.pg_inherits i where i.inhrelid = u.top)
    order by 3";

struct Triggered {
    oid: Oid,
    root: Oid,
    name: String,
    drops: Vec<String>,
}

impl Postgres {
    /// The namespaces whose tables are captured, and the role that owns the schema.
    ///
    /// # Errors
    /// [`SourceError`]
    pub async fn who_uses_captures(&self) -> Result<(Vec<String>, String), SourceError> {
        let sql = "select array(select distinct u.namespace from cachekeeper.used_by u join cachekeeper.capture c using (root) order by 1),
            (select pg_get_userbyid(n.nspowner)::text from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper')";
        let found = sqlx::query_as(sql).fetch_one(&self.pool).await;
        found.map_err(|source| SourceError::new("look who uses the captures", source))
    }

    /// Notes that a namespace uses the schema, and that it watches these tables; those that it does not watch any more are
    /// forgotten.
    ///
    /// # Errors
    /// [`SourceError`], for example without the right.
    pub async fn note_used_by(&self, namespace: &str, tables: &[String]) -> Result<(), SourceError> {
        let error = |source| SourceError::new("note which tables this namespace watches", source);
        let roots = self.trees(tables).await?.into_iter().filter_map(|member| member.root);
        let roots: Vec<Oid> = roots.map(Oid).chain([SCHEMA]).collect();
        let mut transaction = self.begin_write().await?;
        for sql in [
            "delete from cachekeeper.used_by where namespace = $1 and root <> all($2)",
            "insert into cachekeeper.used_by select $1, unnest($2) on conflict do nothing",
        ] {
            let note = sqlx::query(sql).bind(namespace).bind(&roots);
            note.execute(&mut *transaction).await.map_err(error)?;
        }
        transaction.commit().await.map_err(error)
    }

    /// The statements that note the same of these trees.
    #[must_use]
    pub(crate) fn use_script(namespace: &str, roots: impl Iterator<Item = u32>) -> Vec<String> {
        let roots: Vec<String> = roots.chain([SCHEMA.0]).map(|root| root.to_string()).collect();
        let (namespace, roots) = (namespace.replace('\'', "''"), roots.join(", "));
        vec![
            format!(
                "delete from cachekeeper.used_by where namespace = '{namespace}' and root <> all(array[{roots}]::oid[])"
            ),
            format!(
                "insert into cachekeeper.used_by select '{namespace}', unnest(array[{roots}]::oid[]) on conflict do nothing"
            ),
        ]
    }

    /// Who uses the schema beside this namespace, and what only this one does.
    ///
    /// # Errors
    /// [`SourceError`], for example without rights on the schema.
    pub async fn users(&self, namespace: &str) -> Result<Users, SourceError> {
        let mut connection = self.open_for_schema().await?;
        Ok(uses(&mut connection, namespace).await?.0)
    }

    /// Removes what only this namespace uses; where it is the last one, the schema with everything in it. Writers wait for
    /// at most 50 ms at a time; a table that is never free keeps its triggers.
    ///
    /// # Errors
    /// [`SourceError`], for example without being the owner of the tables or of the schema.
    pub async fn uninstall(&self, namespace: &str) -> Result<Removed, SourceError> {
        let mut connection = self.open_for_schema().await?;
        let (users, mut left) = uses(&mut connection, namespace).await?;
        let mut removed = Removed::default();
        if !users.is_installed {
            return Ok(removed);
        }
        let mut pause = Backoff::new(RETRY_MIN, RETRY_MAX);
        for attempt in 0..ATTEMPTS {
            if 0 < attempt {
                pause.wait().await;
            }
            let mut busy = Vec::new();
            removed.holder = None;
            for table in left {
                match drop_on(&mut connection, "drop triggers", table.oid, &table.drops).await {
                    Ok(()) => removed.tables.push(table.name),
                    Err(error) if error.kind == ErrorKind::Cancelled => {
                        let error = held(&mut connection, &[table.oid], error).await;
                        removed.holder = Some(error.message());
                        busy.push(table);
                    }
                    Err(error) => return Err(error),
                }
            }
            left = busy;
            if left.is_empty() {
                break;
            }
        }
        removed.busy = left.into_iter().map(|table| table.name).collect();
        if !removed.busy.is_empty() {
            return Ok(removed);
        }
        if users.others.is_empty() {
            for schema in ["cachekeeper", REPLACED] {
                drop_schema(&mut connection, schema).await?;
            }
            removed.has_removed_schema = true;
        } else {
            forget_namespace(&mut connection, namespace).await?;
        }
        Ok(removed)
    }
}

/// Who uses the schema, and the tables that only this namespace watches.
async fn uses(connection: &mut Session, namespace: &str) -> Result<(Users, Vec<Triggered>), SourceError> {
    let error = |source| SourceError::new("look who uses the schema `cachekeeper`", source);
    let sql = "select exists (select from pg_catalog.pg_namespace where nspname = 'cachekeeper')";
    let is_installed: bool = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.map_err(error)?;
    let mut users = Users { is_installed, ..Users::default() };
    if !is_installed {
        return Ok((users, Vec::new()));
    }
    is_own(connection).await?;
    // A schema of an earlier version does not know, and one that was restored by half may know nothing.
    let sql = "select to_regclass('cachekeeper.used_by') is not null";
    let knows: bool = sqlx::query_scalar(sql).fetch_one(&mut *connection).await.map_err(error)?;
    let mut watched_by_others = Vec::new();
    if knows {
        let sql = "select u.namespace, u.root, case when n.nspname = 'public' then '' else quote_ident(n.nspname) || '.' end || quote_ident(c.relname)
            from (
                select namespace, root from cachekeeper.used_by
                union select namespace, 0 from cachekeeper.writer where namespace <> ''
            ) u left join pg_catalog.pg_class c on c.oid = u.root left join pg_catalog.pg_namespace n on n.oid = c.relnamespace
            where u.namespace <> $1 order by 1, 3";
        let rows = sqlx::query(sql).bind(namespace).fetch_all(&mut *connection).await.map_err(error)?;
        for row in rows {
            let tables = users.others.entry(row.try_get(0).map_err(error)?).or_default();
            watched_by_others.push(row.try_get::<Oid, _>(1).map_err(error)?);
            tables.extend(row.try_get::<Option<String>, _>(2).map_err(error)?);
        }
    }
    let mut own = triggered(connection).await?;
    own.retain(|table| !watched_by_others.contains(&table.root));
    users.own = own.iter().map(|table| table.name.clone()).collect();
    Ok((users, own))
}

/// Nothing of the application's is touched any more; a worker or a backup may use the tables of the schema.
async fn drop_schema(connection: &mut Session, schema: &str) -> Result<(), SourceError> {
    let mut pause = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut attempts = 1;
    loop {
        let dropped =
            connection.execute(AssertSqlSafe(format!("drop schema if exists {schema} cascade"))).await;
        let error = match dropped {
            Ok(_) => return Ok(()),
            Err(source) => SourceError::new("drop the schema `cachekeeper`", source),
        };
        if error.kind != ErrorKind::Cancelled || ATTEMPTS <= attempts {
            return Err(held(connection, &[], error).await);
        }
        attempts += 1;
        pause.wait().await;
    }
}

/// What is recorded of a namespace in tables that others use too, and the captures that nobody else uses.
async fn forget_namespace(connection: &mut Session, namespace: &str) -> Result<(), SourceError> {
    let error = |source| SourceError::new("remove what is recorded of this namespace", source);
    let mut transaction = connection.begin().await.map_err(error)?;
    for table in ["writer", "applied", "used_by", "definition"] {
        let sql = format!("delete from cachekeeper.{table} where namespace = $1");
        let delete = sqlx::query(AssertSqlSafe(sql)).bind(namespace);
        delete.execute(&mut *transaction).await.map_err(error)?;
    }
    // What no trigger fills any more is no capture.
    let unused = "delete from cachekeeper.capture c where not exists (
        select from pg_catalog.pg_trigger t join pg_catalog.pg_proc p on p.oid = t.tgfoid
        join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where t.tgrelid = c.root and n.nspname = 'cachekeeper')";
    transaction.execute(unused).await.map_err(error)?;
    drop_leftover(&mut transaction).await?;
    transaction.commit().await.map_err(error)
}

async fn triggered(connection: &mut Session) -> Result<Vec<Triggered>, SourceError> {
    let error = |source| SourceError::new("look for triggers", source);
    let rows = sqlx::query(TRIGGERED).fetch_all(connection).await.map_err(error)?;
    let read = |row: &sqlx::postgres::PgRow| {
        let (oid, root, name) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok(Triggered { oid, root, name, drops: row.try_get(3)? })
    };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(error)
}
