//! What a query reads and calls: the dependencies of a temporary view of it, in a transaction that is rolled back.
//! A plan would leave out pruned partitions.

use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::{Postgres, SourceError};

/// What a query depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Relations, through views too: qualified name and kind (`r` table, `p` partitioned, `m` materialized view,
    /// `f` foreign).
    pub relations: Vec<(String, char)>,
    /// Functions that are not immutable, or are written in SQL or PL/pgSQL.
    pub functions: Vec<Function>,
    /// A hash of the definitions of all views that it reads through; empty: none.
    pub views: String,
}

/// A function that a query calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `v` volatile, `s` stable, `i` immutable.
    pub volatility: char,
    /// Whether it may read tables: its language is neither C nor internal.
    pub may_read_tables: bool,
}

const RELATIONS: &str = "
    with recursive used(oid) as (
        select d.refobjid from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        where r.ev_class = 'pg_temp.cachekeeper_inspected'::regclass
          and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
        union
        select d.refobjid from used u join pg_rewrite r on r.ev_class = u.oid
        join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        where d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
    )
    select c.oid::regclass::text, c.relkind::text from used join pg_class c on c.oid = used.oid
    where c.relkind in ('r', 'p', 'm', 'f') order by 1";

/// The temporary view and every view behind it.
macro_rules! used {
    () => {
        "
    with recursive used(oid) as (
        select 'pg_temp.cachekeeper_inspected'::regclass::oid
        union
        select d.refobjid from used u join pg_rewrite r on r.ev_class = u.oid
        join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        where d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class
    )"
    };
}

// Calls of built-in functions are not recorded as dependencies, so they are read from the rule's tree.
const FUNCTIONS: &str = concat!(
    used!(),
    ", called as (
        select distinct m[1]::oid as oid from used u join pg_rewrite r on r.ev_class = u.oid,
        lateral regexp_matches(r.ev_action::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') m
    )
    select p.oid::regproc::text, p.provolatile::text, l.lanname not in ('internal', 'c')
    from called join pg_proc p on p.oid = called.oid join pg_language l on l.oid = p.prolang
    where p.provolatile <> 'i' or l.lanname not in ('internal', 'c') order by 1"
);

const VIEWS: &str = concat!(used!(), "
    select md5(string_agg(r.ev_action::text, ',' order by r.oid)) from used u join pg_rewrite r on r.ev_class = u.oid
    where u.oid <> 'pg_temp.cachekeeper_inspected'::regclass::oid");

impl Postgres {
    /// Finds out what a query reads and calls.
    ///
    /// # Errors
    /// [`SourceError`], for example without the right to create temporary views.
    pub async fn inspect(&self, query: &str) -> Result<Inspection, SourceError> {
        let what = "find out what a query reads";
        let error = |source| SourceError::new(what, source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        transaction.execute("set transaction read write").await.map_err(error)?;
        let view = format!("create temporary view cachekeeper_inspected as select q.* from (\n{query}\n) q");
        transaction.execute(AssertSqlSafe(view)).await.map_err(error)?;
        let mut inspection = Inspection::default();
        for row in
            sqlx::query(RELATIONS).persistent(false).fetch_all(&mut *transaction).await.map_err(error)?
        {
            let name: String = row.try_get(0).map_err(error)?;
            let kind: String = row.try_get(1).map_err(error)?;
            inspection.relations.push((name, kind.chars().next().unwrap_or('r')));
        }
        for row in
            sqlx::query(FUNCTIONS).persistent(false).fetch_all(&mut *transaction).await.map_err(error)?
        {
            let volatility: String = row.try_get(1).map_err(error)?;
            inspection.functions.push(Function {
                name: row.try_get(0).map_err(error)?,
                volatility: volatility.chars().next().unwrap_or('v'),
                may_read_tables: row.try_get(2).map_err(error)?,
            });
        }
        let views: Option<String> =
            sqlx::query_scalar(VIEWS).persistent(false).fetch_one(&mut *transaction).await.map_err(error)?;
        inspection.views = views.unwrap_or_default();
        transaction.rollback().await.map_err(error)?;
        Ok(inspection)
    }
}
