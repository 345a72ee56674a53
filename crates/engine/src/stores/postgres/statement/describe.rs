//! What a query returns: its columns, and how each of them is written. The driver describes most of them; of what it cannot
//! describe (multiranges, domains over `"char"`, categories of one's own, and whatever is made of them) the catalogs are read.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::postgres::PgColumn;
use sqlx::postgres::types::Oid;
use sqlx::{Column, Either, Executor, Row as _, SqlSafeStr, Statement};

use super::super::session::Session;
use super::columns::quote;
use crate::stores::postgres::transcode::{Kind, QueryColumn, kind_of_catalog_name};
use crate::stores::postgres::{ErrorKind, SourceError};
use cachekeeper_protocol::parameters::ParameterizedSql;

/// What fails where a query cannot be described.
pub(super) const DESCRIBE: &str = "describe a query";
const QUERY: &str = "query";
/// What helps where a query has parameters.
const WITHOUT_PARAMETERS: &str =
    "select every row that Redis may hold; those of a key are chosen around the query";
/// What helps where a column cannot be read.
pub(super) const CAST: &str = "cast the column in the query, for example `column::text as column`";

/// How often the driver is asked. It loses types where several depend on the same ones, and finds them when it is asked again.
const RESOLVED_WITHIN: usize = 16;

/// How many queries were described by this process.
static DESCRIBED: AtomicU64 = AtomicU64::new(0);

/// What is wrong with a dataset once the database has been asked. `setting` is the key in its section.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceProblem {
    /// Which setting: `query`, `key`, `tags.0`.
    pub setting: Cow<'static, str>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Where in the setting's text.
    pub offset: Option<usize>,
}

impl SourceProblem {
    /// A problem with a whole setting.
    #[must_use]
    pub fn new(
        setting: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { setting: setting.into(), message: message.into(), help: help.into(), offset: None }
    }

    /// The same at a byte of the setting's text.
    #[must_use]
    pub fn at(self, offset: Option<usize>) -> Self {
        Self { offset, ..self }
    }
}

/// The columns of a query, and a number that makes the texts of its statements new ones.
pub(super) async fn columns(
    connection: &mut Session,
    query: &str,
) -> Result<Result<(u64, Vec<QueryColumn>), SourceProblem>, SourceError> {
    let mut columns = Vec::new();
    for _ in 0..RESOLVED_WITHIN {
        let number = DESCRIBED.fetch_add(1, Ordering::Relaxed);
        columns = match prepare(connection, query, number).await? {
            Ok(columns) => columns,
            Err(problem) => return Ok(Err(problem)),
        };
        if columns.iter().all(|column| column.is_resolved()) {
            return Ok(Ok((number, columns)));
        }
    }
    let unknown = columns.iter().filter(|column| !column.is_resolved());
    let names: Vec<&str> = unknown.map(|column| column.name.as_str()).collect();
    let message = format!("the types of {} could not be found out", names.join(", "));
    Ok(Err(SourceProblem::new(QUERY, message, CAST)))
}

async fn prepare(
    connection: &mut Session,
    query: &str,
    number: u64,
) -> Result<Result<Vec<QueryColumn>, SourceProblem>, SourceError> {
    // The parentheses make a second statement, or a statement that is no query, a syntax error. The query
    // is on lines of its own, so that a comment at its end ends there.
    // The number makes the text a new one each time: connections keep what they prepared by its text, and after
    // a change of the tables all of that is worthless.
    let opening = format!("/* {number} */ select q.* from (\n");
    let sql = format!("{opening}{query}\n) q");
    let source = match connection.prepare(sqlx::AssertSqlSafe(sql.clone()).into_sql_str()).await {
        Ok(prepared) => {
            let parameters = match prepared.parameters() {
                Some(Either::Left(types)) => types.len(),
                Some(Either::Right(count)) => count,
                None => 0,
            };
            if 0 < parameters {
                let message = "the query has parameters ($1), and nobody gives them values";
                let problem = SourceProblem::new(QUERY, message, WITHOUT_PARAMETERS);
                return Ok(Err(problem.at(ParameterizedSql::parse(query).numbered())));
            }
            let found = prepared.columns().iter();
            let mut columns: Vec<QueryColumn> =
                found.map(|column| QueryColumn::new(column.name(), column.type_info())).collect();
            let origins: Vec<Option<(Oid, i16)>> = prepared.columns().iter().map(origin).collect();
            measure(connection, &mut columns, &origins).await?;
            return Ok(Ok(columns));
        }
        Err(source) => source,
    };
    if matches!(&source, sqlx::Error::ColumnDecode { index, .. } if index.contains("typ")) {
        return read_catalogs(connection, query, number).await.map(Ok);
    }
    let error = SourceError::new(DESCRIBE, source);
    // What is missing on a schema of the application is the dataset's trouble, and nobody else's.
    if error.kind == ErrorKind::Forbidden
        && !error.message().contains("cachekeeper")
        && let Ok(role) =
            sqlx::query_scalar::<_, String>("select current_user::text").fetch_one(&mut *connection).await
    {
        let (message, help) = error.may_not_run(&role);
        return Ok(Err(SourceProblem::new(QUERY, message, help)));
    }
    if error.is_transient() || error.kind == ErrorKind::Forbidden {
        return Err(error);
    }
    let offset = error.position_in(&sql).and_then(|at| at.checked_sub(opening.len()));
    let message = format!("Postgres does not accept the query: {}", error.message());
    Ok(Err(SourceProblem::new(QUERY, message, help_with(query, &error)).at(offset)))
}

/// What to do about a query that the server does not accept.
fn help_with(query: &str, error: &SourceError) -> String {
    let writes = ["insert", "update", "delete", "merge"];
    let first = query.split_whitespace().next().unwrap_or_default().to_lowercase();
    if writes.contains(&first.as_str()) {
        return "a query reads; a statement that writes goes into [dataset.NAME.write]".to_owned();
    }
    let of_template = query.contains(['{', '?']);
    if error.is_of_syntax() && (of_template || ParameterizedSql::parse(query).places().next().is_some()) {
        return format!("a query has no parameters, be it :id, {{id}} or ?: {WITHOUT_PARAMETERS}");
    }
    match error.hint() {
        Some(hint) => format!("Postgres says: {hint}"),
        None if error.is_of_something_missing() => {
            "correct the name; or give back what was renamed, dropped, or moved out of the role's search_path"
                .to_owned()
        }
        None => {
            "the query is used inside a larger statement; try it as `select * from (<query>) q`".to_owned()
        }
    }
}

/// Of which relation a column is, and its number there; none: it is computed.
fn origin(column: &PgColumn) -> Option<(Oid, i16)> {
    column.relation_id().zip(column.relation_attribute_no())
}

/// Texts that are declared no longer than this are not measured.
const SHORT: i32 = 10_000;

/// Says how large columns are measured: those of tables. What is computed is computed twice if it is measured, so it is not.
async fn measure(
    connection: &mut Session,
    columns: &mut [QueryColumn],
    origins: &[Option<(Oid, i16)>],
) -> Result<(), SourceError> {
    let relations: Vec<Oid> = origins.iter().flatten().map(|(relation, _)| *relation).collect();
    if relations.is_empty() || columns.iter().all(|column| column.measure_of_type().is_none()) {
        return Ok(());
    }
    let sql = "select a.attrelid, a.attnum from pg_catalog.pg_class c \
         join pg_catalog.pg_attribute a on a.attrelid = c.oid and 0 < a.attnum \
         where c.oid = any($1) and c.relkind in ('r', 'p', 'm') \
         and not (a.atttypid in ('pg_catalog.varchar'::regtype, 'pg_catalog.bpchar'::regtype) and a.atttypmod between 5 and $2)";
    let found: Vec<(Oid, i16)> = sqlx::query_as(sql)
        .bind(relations)
        .bind(SHORT)
        .fetch_all(connection)
        .await
        .map_err(|source| SourceError::new(DESCRIBE, source))?;
    for (column, origin) in columns.iter_mut().zip(origins) {
        if origin.is_some_and(|origin| found.contains(&origin)) {
            column.measure = column.measure_of_type();
        }
    }
    Ok(())
}

/// Types, and all that they are made of. Of those that are domains, lists or composites: of what.
const TYPES: &str = "
    with recursive part(oid) as (
        select unnest($1)
        union
        select made.oid from part join pg_catalog.pg_type t on t.oid = part.oid cross join lateral (
            select t.typelem where t.typcategory = 'A'
            union all select t.typbasetype where t.typtype = 'd'
            union all select a.atttypid from pg_catalog.pg_attribute a
                where t.typtype = 'c' and a.attrelid = t.typrelid and 0 < a.attnum and not a.attisdropped
        ) made(oid) where made.oid <> 0
    )
    select t.oid, t.typname::text, pg_catalog.format_type(t.oid, null), t.typtype::text, t.typcategory::text, t.typelem, t.typbasetype,
        array(select a.attname::text from pg_catalog.pg_attribute a
            where t.typtype = 'c' and a.attrelid = t.typrelid and 0 < a.attnum and not a.attisdropped order by a.attnum),
        array(select a.atttypid from pg_catalog.pg_attribute a
            where t.typtype = 'c' and a.attrelid = t.typrelid and 0 < a.attnum and not a.attisdropped order by a.attnum)
    from part join pg_catalog.pg_type t on t.oid = part.oid";

/// `\"char\"` itself, which the driver knows, although not its category.
const CHAR: Oid = Oid(18);
/// The kinds and the categories of types that the driver knows.
const KNOWN_KINDS: &str = "bcdepr";
const KNOWN_CATEGORIES: &str = "ABCDEGINPRSTUVX";

/// A type as the catalogs have it.
struct CatalogType {
    name: String,
    shown: String,
    /// As in `pg_type`.
    kind: String,
    category: String,
    element: Oid,
    base: Oid,
    fields: Vec<(String, Oid)>,
}

/// The columns where the driver fails at one of them.
async fn read_catalogs(
    connection: &mut Session,
    query: &str,
    number: u64,
) -> Result<Vec<QueryColumn>, SourceError> {
    let error = |source| SourceError::new(DESCRIBE, source);
    // Sent as text, which the driver describes without looking at the types. No row is read.
    let sql = format!("/* {number} */ select q.* from (select) s left join (\n{query}\n) q on false");
    let row = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *connection).await.map_err(error)?;
    let found: Vec<(String, Oid)> = row
        .columns()
        .iter()
        .filter_map(|column| Some((column.name().to_owned(), column.type_info().oid()?)))
        .collect();
    let types = read_types(connection, &found).await.map_err(error)?;
    // Two of one name are refused by whoever asked, and cannot be told apart here.
    let is_only = |name: &str| found.iter().filter(|(other, _)| other == name).count() == 1;
    let known: Vec<&str> = found
        .iter()
        .filter(|(name, oid)| is_known(&types, *oid) && is_only(name))
        .map(|(name, _)| name.as_str())
        .collect();
    let mut described: HashMap<String, QueryColumn> = HashMap::new();
    if !known.is_empty() {
        let list: Vec<String> = known.iter().map(|name| format!("q.{}", quote(name))).collect();
        let sql = format!("/* {number} */ select {} from (\n{query}\n) q", list.join(", "));
        let prepared = connection.prepare(sqlx::AssertSqlSafe(sql).into_sql_str()).await.map_err(error)?;
        for column in prepared.columns() {
            described.insert(column.name().to_owned(), QueryColumn::new(column.name(), column.type_info()));
        }
    }
    let column = |(name, oid): &(String, Oid)| match described.get(name) {
        Some(column) => column.clone(),
        None => {
            let shown = types.get(&oid.0).map_or("?", |found| found.shown.as_str());
            QueryColumn::of_kind(name, shown, kind_of(&types, *oid))
        }
    };
    Ok(found.iter().map(column).collect())
}

async fn read_types(
    connection: &mut Session,
    columns: &[(String, Oid)],
) -> Result<BTreeMap<u32, CatalogType>, sqlx::Error> {
    let oids: Vec<Oid> = columns.iter().map(|(_, oid)| *oid).collect();
    let mut types = BTreeMap::new();
    for row in sqlx::query(TYPES).bind(oids).fetch_all(connection).await? {
        let (names, oids): (Vec<String>, Vec<Oid>) = (row.try_get(7)?, row.try_get(8)?);
        let found = CatalogType {
            name: row.try_get(1)?,
            shown: row.try_get(2)?,
            kind: row.try_get(3)?,
            category: row.try_get(4)?,
            element: row.try_get(5)?,
            base: row.try_get(6)?,
            fields: names.into_iter().zip(oids).collect(),
        };
        types.insert(row.try_get::<Oid, _>(0)?.0, found);
    }
    Ok(types)
}

/// Whether the driver can describe a type and all that it is made of.
fn is_known(types: &BTreeMap<u32, CatalogType>, oid: Oid) -> bool {
    let Some(found) = types.get(&oid.0) else { return false };
    let is_itself = oid == CHAR
        || (KNOWN_KINDS.contains(found.kind.as_str()) && KNOWN_CATEGORIES.contains(found.category.as_str()));
    is_itself && parts(found).all(|part| is_known(types, part))
}

fn parts(found: &CatalogType) -> impl Iterator<Item = Oid> {
    let element = (found.category == "A").then_some(found.element);
    let base = (found.kind == "d").then_some(found.base);
    let fields = found.fields.iter().map(|(_, oid)| *oid);
    element.into_iter().chain(base).chain(fields).filter(|oid| oid.0 != 0)
}

/// How a type is written that the driver cannot describe, or a part of one; none: not at all.
fn kind_of(types: &BTreeMap<u32, CatalogType>, oid: Oid) -> Option<Kind> {
    let found = types.get(&oid.0)?;
    match found.kind.as_str() {
        "m" | "r" => Some(Kind::Shown),
        "e" => Some(Kind::Text),
        // Its bytes would come with the domain.
        "d" if found.base == CHAR => Some(Kind::Shown),
        "d" => kind_of(types, found.base),
        "c" => {
            let field = |(name, oid): &(String, Oid)| Some((name.clone(), kind_of(types, *oid)?));
            found.fields.iter().map(field).collect::<Option<_>>().map(Kind::Composite)
        }
        "b" if found.category == "A" && found.element.0 != 0 => {
            kind_of(types, found.element).map(|element| Kind::Array(Box::new(element)))
        }
        "b" => kind_of_catalog_name(&found.name),
        _ => None,
    }
}
