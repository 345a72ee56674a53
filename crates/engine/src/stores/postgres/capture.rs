//! Capture: which tables are watched, by which triggers, and whether nothing can slip past them.

mod function;
mod install;
mod reliance;
mod statement_function;
mod switch;
mod triggers;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Row as _};

use super::{Postgres, SourceError};
pub use function::CaptureLimits;
pub(crate) use install::WantedCapture;
pub(super) use switch::MARKERS;

/// One relation of the tree that a table belongs to. Row triggers of a partitioned table are those of its partitions too;
/// every member of a tree of inheritance has its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeMember {
    /// The table that was asked for.
    pub asked: String,
    /// The top of its tree; none: there is no such table.
    pub root: Option<u32>,
    /// This member.
    pub oid: u32,
    /// Its name, as short as this role may write it.
    pub name: String,
    /// Its name with the schema, for whoever looks it up otherwise.
    pub path: String,
    /// Whose it is.
    pub owner: String,
    /// `r`, `p`, `f`, `v`, `m`.
    pub kind: char,
    /// Whether it is a partition of another one.
    pub is_partition: bool,
    /// How many generated columns it has.
    pub generated: i64,
    /// Whether this role may make triggers on it.
    pub is_ours: bool,
    /// Whether a transaction has written to it that was prepared in an earlier incarnation: what it captured is lost.
    pub is_prepared: bool,
    /// Its triggers of ours.
    pub triggers: Vec<TriggerState>,
}

/// A trigger of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerState {
    /// Its name.
    pub name: String,
    /// The function it calls.
    pub function: u32,
    /// `A` always, `O` origin, `R` replica or `D` disabled.
    pub mode: char,
    /// What it fires on: `pg_trigger.tgtype`.
    pub events: i16,
    /// Whether a condition or a list of columns keeps it from firing.
    pub is_conditional: bool,
    /// Whether it is a partition's copy of its parent's.
    pub is_clone: bool,
}

/// Bits of `pg_trigger.tgtype` (PostgreSQL's `pg_trigger.h`).
const FOR_EACH_ROW: i16 = 1;
const INSERT: i16 = 4;
const DELETE: i16 = 8;
const UPDATE: i16 = 16;
const TRUNCATE: i16 = 32;

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
    /// Whether by the rows of a statement together instead of one by one.
    pub by_statement: bool,
    /// Whether the kill switch has not been used.
    pub is_on: bool,
    /// Transactions that ran at this snapshot of that incarnation may have slipped past.
    pub settling: Option<(String, String)>,
    /// How often something may have slipped past.
    pub gaps: i64,
    /// Whether its functions are of an earlier form, or were made for columns of other types, and cannot be relied on.
    pub is_outdated: bool,
    /// The trigger function and its version, if it is there.
    pub function: Option<(u32, String)>,
}

impl TreeMember {
    /// Whether every change of its rows is captured.
    #[must_use]
    pub(crate) fn is_captured_by(&self, capture: &Capture) -> bool {
        let Some((function, _)) = &capture.function else { return false };
        let row = if capture.by_statement { 0 } else { FOR_EACH_ROW };
        let live = self.triggers.iter().filter(|trigger| {
            trigger.function == *function
                && trigger.mode == 'A'
                && !trigger.is_conditional
                && trigger.events & FOR_EACH_ROW == row
        });
        let fires_on = live.fold(0, |all, trigger| all | trigger.events);
        fires_on & (INSERT | UPDATE | DELETE) == INSERT | UPDATE | DELETE
    }

    /// Whether a trigger tells that it was emptied.
    pub(crate) fn tells_of_truncate(&self) -> bool {
        self.triggers
            .iter()
            .any(|trigger| trigger.events & TRUNCATE != 0 && trigger.mode == 'A' && !trigger.is_conditional)
    }
}

const LOOK: &str = "look at the watched tables";

const TREES: &str = "
    with recursive asked as (select t.name, to_regclass(t.name)::oid as rel from unnest($1::text[]) t(name)),
    up(name, rel) as (
        select name, rel from asked where rel is not null
        union select up.name, i.inhparent from up join pg_inherits i on i.inhrelid = up.rel
    ), down(name, root, rel) as (
        select u.name, u.rel, u.rel from up u where not exists (select from pg_inherits i where i.inhrelid = u.rel)
        union select d.name, d.root, i.inhrelid from down d join pg_inherits i on i.inhparent = d.rel
    ), prepared as (
        select l.relation from pg_locks l
        join pg_locks own on own.virtualtransaction = l.virtualtransaction and own.pid is null and own.locktype = 'transactionid'
        join pg_prepared_xacts p on p.transaction = own.transactionid
        where l.pid is null and l.locktype = 'relation' and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and {before}
    )
    select a.name, d.root, d.rel, d.rel::regclass::text, c.relkind::text,
        pg_has_role(c.relowner, 'usage'), d.rel in (select relation from prepared), c.relispartition,
        array(select concat_ws(' ', t.tgfoid, t.tgenabled, t.tgtype,
                t.tgqual is not null or t.tgattr::text <> '', t.tgparentid <> 0, t.tgname)
            from pg_trigger t join pg_proc p on p.oid = t.tgfoid
            where t.tgrelid = d.rel
                and (p.pronamespace = to_regnamespace('cachekeeper') or t.tgname ~ '^cachekeeper_[0-9]+(_truncate)?$') order by t.tgname),
        quote_ident(n.nspname) || '.' || quote_ident(c.relname), pg_get_userbyid(c.relowner)::text,
        (select count(*) from pg_attribute g where g.attrelid = d.rel and 0 < g.attnum and g.attgenerated <> '')
    from asked a left join down d on d.name = a.name left join pg_class c on c.oid = d.rel left join pg_namespace n on n.oid = c.relnamespace
    order by a.name, d.root, d.rel";

/// Whether the transaction `p` of `pg_prepared_xacts` may have been prepared in an earlier incarnation. Its id tells; the server's
/// clock may have been set meanwhile.
const WAS_PREPARED_BEFORE: &str = "pg_snapshot_xmax(pg_current_snapshot())::text::bigint - age(p.transaction) \
    < (select i.first_xid::text::bigint from cachekeeper.incarnation i)";

/// `$1`: what says the form of their functions. An oid of another database, from which this one was copied, means nothing.
const CAPTURES: &str = "
    select c.id, c.root, c.columns, c.is_on, c.settling, c.settling_in, p.oid, p.xmin::text, c.version,
        c.mode = 'statement', c.gaps, c.is_on and p.oid is not null and (strpos(p.prosrc, $1) = 0 or strpos(p.prosrc, concat('types ',
            (select string_agg(a.attnum || ':' || a.atttypid, ' ' order by a.attnum) from pg_attribute a
             where a.attrelid = c.root and 0 < a.attnum and not a.attisdropped and a.attname::text = any(c.columns)), ';')) = 0)
    from cachekeeper.capture c
    left join pg_proc p on p.proname = 'capture_' || c.id and p.pronamespace = 'cachekeeper'::regnamespace
    where c.db = (select d.oid from pg_database d where d.datname = current_database())
    order by c.id";

impl Postgres {
    /// All relations of the trees that these tables belong to. A table that is not there has one member without a root.
    pub(crate) async fn trees(&self, tables: &[String]) -> Result<Vec<TreeMember>, SourceError> {
        self.read_trees(tables, &TREES.replace("{before}", WAS_PREPARED_BEFORE)).await
    }

    /// The same where the schema is not there: no incarnation is known, so nothing was prepared before it.
    pub(crate) async fn trees_without_schema(
        &self,
        tables: &[String],
    ) -> Result<Vec<TreeMember>, SourceError> {
        self.read_trees(tables, &TREES.replace("{before}", "false")).await
    }

    async fn read_trees(&self, tables: &[String], sql: &str) -> Result<Vec<TreeMember>, SourceError> {
        let error = |source| SourceError::new(LOOK, source);
        let read = async |tables: &[String]| {
            let query = sqlx::query(AssertSqlSafe(sql.to_owned())).bind(tables).fetch_all(&self.pool);
            query.await.map_err(error)
        };
        let rows = match read(tables).await {
            Err(refused) if refused.is_of_a_name() => read(&self.only_names(tables).await?).await?,
            rows => rows?,
        };
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let root: Option<Oid> = row.try_get(1).map_err(error)?;
            let oid: Option<Oid> = row.try_get(2).map_err(error)?;
            let name: Option<String> = row.try_get(3).map_err(error)?;
            let kind: Option<String> = row.try_get(4).map_err(error)?;
            let is_ours: Option<bool> = row.try_get(5).map_err(error)?;
            let is_prepared: Option<bool> = row.try_get(6).map_err(error)?;
            let is_partition: Option<bool> = row.try_get(7).map_err(error)?;
            let triggers: Vec<String> = row.try_get(8).map_err(error)?;
            let path: Option<String> = row.try_get(9).map_err(error)?;
            let generated: Option<i64> = row.try_get(11).map_err(error)?;
            members.push(TreeMember {
                asked: row.try_get(0).map_err(error)?,
                root: root.map(|root| root.0),
                oid: oid.map(|oid| oid.0).unwrap_or_default(),
                name: name.unwrap_or_default(),
                path: path.unwrap_or_default(),
                owner: row.try_get::<Option<String>, _>(10).map_err(error)?.unwrap_or_default(),
                kind: kind.and_then(|kind| kind.chars().next()).unwrap_or('?'),
                is_partition: is_partition.unwrap_or_default(),
                generated: generated.unwrap_or_default(),
                is_ours: is_ours.unwrap_or_default(),
                is_prepared: is_prepared.unwrap_or_default(),
                triggers: triggers.iter().filter_map(|text| read_trigger(text)).collect(),
            });
        }
        Ok(members)
    }

    /// Those of these texts that can be names of tables. What cannot is told where the rule stands, and is no table.
    async fn only_names(&self, texts: &[String]) -> Result<Vec<String>, SourceError> {
        let mut names = Vec::new();
        for text in texts {
            let asked = sqlx::query("select to_regclass($1)").bind(text).execute(&self.pool).await;
            match asked.map_err(|source| SourceError::new(LOOK, source)) {
                Err(error) if error.is_of_a_name() => {}
                asked => {
                    asked?;
                    names.push(text.clone());
                }
            }
        }
        Ok(names)
    }

    /// Captured tables whose trigger functions run with the rights of another role than the table's owner: the table, its owner, and
    /// that role.
    ///
    /// # Errors
    /// [`SourceError`]
    pub async fn captures_by_others(&self) -> Result<Vec<(String, String, String)>, SourceError> {
        let sql = "select c.root::regclass::text, pg_get_userbyid(r.relowner)::text, pg_get_userbyid(p.proowner)::text
            from cachekeeper.capture c join pg_catalog.pg_class r on r.oid = c.root
            join pg_catalog.pg_proc p on p.proname = 'capture_' || c.id
            join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname = 'cachekeeper'
            where p.proowner <> r.relowner and c.db = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
            order by 1";
        let found = sqlx::query_as(sql).fetch_all(&self.pool).await;
        found.map_err(|source| SourceError::new("look whose rights the triggers have", source))
    }

    /// What is captured.
    pub async fn captures(&self) -> Result<Vec<Capture>, SourceError> {
        let what = "read what is captured";
        let error = |source| SourceError::new(what, source);
        let rows = sqlx::query(CAPTURES).bind(reliance::FORM).fetch_all(&self.pool).await.map_err(error)?;
        let mut captures = Vec::with_capacity(rows.len());
        for row in rows {
            let root: Oid = row.try_get(1).map_err(error)?;
            let settling: (Option<String>, Option<String>) =
                (row.try_get(4).map_err(error)?, row.try_get(5).map_err(error)?);
            let function: (Option<Oid>, Option<String>) =
                (row.try_get(6).map_err(error)?, row.try_get(7).map_err(error)?);
            captures.push(Capture {
                id: row.try_get(0).map_err(error)?,
                root: root.0,
                columns: row.try_get(2).map_err(error)?,
                version: row.try_get(8).map_err(error)?,
                by_statement: row.try_get(9).map_err(error)?,
                is_on: row.try_get(3).map_err(error)?,
                settling: settling.0.zip(settling.1),
                gaps: row.try_get(10).map_err(error)?,
                is_outdated: row.try_get(11).map_err(error)?,
                function: function.0.map(|oid| oid.0).zip(function.1),
            });
        }
        Ok(captures)
    }
}

/// `function mode events is_conditional is_clone name`.
fn read_trigger(text: &str) -> Option<TriggerState> {
    let mut parts = text.splitn(6, ' ');
    Some(TriggerState {
        function: parts.next()?.parse().ok()?,
        mode: parts.next()?.chars().next()?,
        events: parts.next()?.parse().ok()?,
        is_conditional: parts.next()? == "t",
        is_clone: parts.next()? == "t",
        name: parts.next()?.to_owned(),
    })
}
