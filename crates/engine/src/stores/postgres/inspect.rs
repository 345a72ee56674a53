//! What a query reads and calls: the dependencies of a temporary view of it, in a transaction that is rolled back.
//! A plan would leave out pruned partitions.

use std::collections::BTreeSet;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::{CatalogScope, NameKind, Postgres, SourceError};

/// What a query depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What it reads, through views, functions with a parsed body and policies too. Views and composite types are not among them.
    pub relations: Vec<ReadRelation>,
    /// The functions that it calls.
    pub functions: Vec<Function>,
    /// Whether it returns or compares system columns (`ctid`, `xmin` and their kin), which change without any change of a row.
    pub has_system_columns: bool,
    /// Everything in the catalogs that decides what it returns.
    pub scope: CatalogScope,
}

/// A relation that a query reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRelation {
    /// Its qualified name.
    pub name: String,
    /// `r` table, `p` partitioned, `m` materialized view, `f` foreign, `S` sequence.
    pub kind: char,
    /// Whether it is a catalog of the server's.
    pub is_catalog: bool,
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
    /// Whether it may read tables that no dependency names: its body is a text, and it is not immutable.
    pub is_opaque: bool,
}

// Dependencies on built-in objects are not recorded, so what a view uses is read from its rule's tree. A rule of a table is nothing
// that a query of it reads.
const DEPENDENCIES: &str = "
    with recursive object(class, oid) as (
        select 'pg_class'::regclass::oid, 'pg_temp.cachekeeper_inspected'::regclass::oid
        union
        select found.class, found.oid from object o cross join lateral (
            select 'pg_class'::regclass::oid as class, m[1]::oid as oid
            from pg_rewrite r, regexp_matches(r.ev_action::text, ':relid ([0-9]+)', 'g') m
            where o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
            union all
            select 'pg_proc'::regclass, m[1]::oid
            from pg_rewrite r, regexp_matches(r.ev_action::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') m
            where o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
            union all
            select 'pg_type'::regclass, m[1]::oid
            from pg_rewrite r, regexp_matches(r.ev_action::text, ':(?:vartype|consttype|resulttype|funcresulttype|opresulttype|coerceresulttype) ([0-9]+)', 'g') m
            where o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
            union all
            select 'pg_operator'::regclass, m[1]::oid
            from pg_rewrite r, regexp_matches(r.ev_action::text, ':opno ([0-9]+)', 'g') m
            where o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
            union all
            select d.refclassid, d.refobjid from pg_depend d
            where o.class = 'pg_proc'::regclass and d.classid = o.class and d.objid = o.oid
            union all
            select d.refclassid, d.refobjid from pg_policy p
            join pg_class c on c.oid = p.polrelid and c.relrowsecurity
            join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
            where o.class = 'pg_class'::regclass and p.polrelid = o.oid and p.polcmd in ('r', '*')
            union all
            select 'pg_type'::regclass, a.atttypid from pg_attribute a
            where o.class = 'pg_class'::regclass and a.attrelid = o.oid and 0 < a.attnum and not a.attisdropped
            union all
            select part.class, part.oid from pg_type t cross join lateral (
                values ('pg_type'::regclass::oid, t.typelem), ('pg_type'::regclass, t.typbasetype),
                       ('pg_class'::regclass, case when t.typtype = 'c' then t.typrelid end)
                union all
                select 'pg_type'::regclass, g.rngsubtype from pg_range g where t.oid::text in (to_jsonb(g) ->> 'rngtypid', to_jsonb(g) ->> 'rngmultitypid')
            ) part(class, oid)
            where o.class = 'pg_type'::regclass and t.oid = o.oid and 16384 <= t.oid
        ) found
        where found.oid <> 0 and found.class in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass)
    )
    select 'relation' as what, c.oid, c.relname::text as name, c.relkind::text as kind, c.oid::regclass::text as shown,
        n.nspname in ('pg_catalog', 'information_schema') as is_known, c.relrowsecurity as is_special, n.nspname::text as schema
    from object o join pg_class c on o.class = 'pg_class'::regclass and c.oid = o.oid join pg_namespace n on n.oid = c.relnamespace
    where c.oid <> 'pg_temp.cachekeeper_inspected'::regclass and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
    union all
    select 'function', p.oid, p.proname, p.provolatile::text, p.oid::regproc::text,
        to_jsonb(p) ->> 'prosqlbody' is not null, l.lanname not in ('internal', 'c'), n.nspname
    from object o join pg_proc p on o.class = 'pg_proc'::regclass and p.oid = o.oid
    join pg_language l on l.oid = p.prolang join pg_namespace n on n.oid = p.pronamespace
    union all
    select 'type', t.oid, t.typname, t.typtype::text, '', t.oid < 16384, false, n.nspname
    from object o join pg_type t on o.class = 'pg_type'::regclass and t.oid = o.oid
    join pg_namespace n on n.oid = t.typnamespace where 16384 <= t.oid
    union all
    select 'operator', r.oid, r.oprname, '', '', r.oid < 16384, false, n.nspname
    from object o join pg_operator r on o.class = 'pg_operator'::regclass and r.oid = o.oid join pg_namespace n on n.oid = r.oprnamespace
    union all
    select 'system column', null, '', '', '', false, false, ''
    from object o join pg_rewrite r on o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
    where r.ev_action::text ~ ':varattno -[1-5] '
    order by 1, 2";

/// Where names are looked up.
const SCHEMAS: &str = "
    select case when s.name = '$user' then session_user::text else s.name end
    from (select btrim(btrim(part), '\"') as name from unnest(string_to_array(current_setting('search_path'), ',')) part) s
    where s.name <> ''";

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
        let rows =
            sqlx::query(DEPENDENCIES).persistent(false).fetch_all(&mut *transaction).await.map_err(error)?;
        let schemas: Vec<String> = sqlx::query_scalar(SCHEMAS)
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await
            .map_err(error)?;
        transaction.rollback().await.map_err(error)?;
        let mut inspection = Inspection::default();
        inspection.scope.schemas.extend(schemas);
        for row in rows {
            inspection.add(Dependency {
                what: row.try_get(0).map_err(error)?,
                oid: row.try_get::<Option<Oid>, _>(1).map_err(error)?.map_or(0, |oid| oid.0),
                name: row.try_get(2).map_err(error)?,
                kind: row.try_get::<String, _>(3).map_err(error)?.chars().next().unwrap_or('?'),
                shown: row.try_get(4).map_err(error)?,
                is_known: row.try_get(5).map_err(error)?,
                is_special: row.try_get(6).map_err(error)?,
                schema: row.try_get(7).map_err(error)?,
            });
        }
        Ok(inspection)
    }
}

/// A row of [`DEPENDENCIES`].
struct Dependency {
    what: String,
    oid: u32,
    name: String,
    kind: char,
    shown: String,
    /// Of a relation: whether it is a catalog; of a function: whether its body is parsed.
    is_known: bool,
    /// Of a relation: whether it has row security; of a function: whether it may read tables.
    is_special: bool,
    schema: String,
}

/// Objects below this came with the server, and do not change.
const FIRST_USER_OID: u32 = 16_384;

impl Inspection {
    fn add(&mut self, found: Dependency) {
        let scope = &mut self.scope;
        let is_user = FIRST_USER_OID <= found.oid;
        if is_user {
            scope.schemas.insert(found.schema);
        }
        match found.what.as_str() {
            "relation" => {
                scope.relations.insert(found.oid);
                if found.kind != 'c' {
                    scope.names.insert((NameKind::Relation, found.name));
                    scope.has_row_security |= found.is_special;
                }
                if !matches!(found.kind, 'v' | 'c') || found.is_known {
                    let (name, kind, is_catalog) = (found.shown, found.kind, found.is_known);
                    self.relations.push(ReadRelation { name, kind, is_catalog });
                }
            }
            "function" => {
                if is_user {
                    scope.functions.insert(found.oid);
                }
                scope.names.insert((NameKind::Function, found.name));
                let is_opaque = is_user && found.is_special && !found.is_known && found.kind != 'i';
                self.functions.push(Function {
                    name: found.shown,
                    volatility: found.kind,
                    may_read_tables: found.is_special,
                    is_opaque,
                });
            }
            "type" => {
                scope.types.insert(found.oid);
                scope.names.insert((NameKind::Type, found.name));
            }
            "operator" => drop(scope.names.insert((NameKind::Operator, found.name))),
            _ => self.has_system_columns = true,
        }
    }

    /// The names of the tables that it reads, each once.
    #[must_use]
    pub fn tables(&self) -> BTreeSet<&str> {
        self.relations.iter().map(|relation| relation.name.as_str()).collect()
    }
}
