//! What a dataset would be, found out without a load: how many rows and keys, the rows of some keys, and by which way Postgres would
//! come to them. Nothing here needs the schema `cachekeeper`, and every statement has a limit of its own.

mod accesses;

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Row as _};

pub use self::accesses::Access;
use self::accesses::Found;
use super::load::{bind_keys, read_key};
use super::outline::whole;
use super::session::{Session, Transaction};
use super::statement::quote;
use super::{DatasetSource, KeyValues, Postgres, Row, SourceError};
use cachekeeper_config::Dataset;

/// What fails where the rows cannot be counted.
const COUNT: &str = "count the rows of a dataset";
/// What fails where the way to them cannot be told.
const EXPLAIN: &str = "ask how a query would be carried out";

/// How many there are, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Rows of the query.
    pub rows: u64,
    /// Keys, those of no row apart: rows with a null in the key have none.
    pub keys: u64,
    /// Rows without a key.
    pub keyless_rows: u64,
    /// Keys with several rows.
    pub shared_keys: u64,
    /// The most rows that a key has.
    pub rows_max: u64,
    /// Some keys, chosen at random.
    pub sample: Vec<KeyValues>,
}

/// A table that columns of a key come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTable {
    /// Its name as SQL.
    pub path: String,
    /// As in `pg_class`.
    pub kind: char,
    /// The columns that the key's come from, as SQL.
    pub columns: Vec<String>,
    /// The tables that hold its rows, not quoted: itself, its partitions and heirs.
    pub members: Vec<String>,
    /// Whether an index begins with one of the columns.
    pub has_index: bool,
}

const KEY_TABLE: &str = "
    with recursive tree (oid) as (
        select $1::pg_catalog.oid union all select i.inhrelid from tree join pg_catalog.pg_inherits i on i.inhparent = tree.oid
    )
    select quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text,
        array(select quote_ident(a.attname) from unnest($2::int2[]) with ordinality u (number, place)
            join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = u.number order by u.place),
        array(select tn.nspname || '.' || t.relname from tree join pg_catalog.pg_class t using (oid)
            join pg_catalog.pg_namespace tn on tn.oid = t.relnamespace),
        exists (select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisvalid and i.indpred is null
            and i.indkey[0] = any($2))
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = $1";

/// Indexes with their first column; none: it says nothing about what the index can find.
const LEADS: &str = "
    select n.nspname::text, c.relname::text, case when m.amname = 'btree' then a.attname::text end
    from unnest($1::text[], $2::text[]) u (schema, name)
    join pg_catalog.pg_namespace n on n.nspname = u.schema
    join pg_catalog.pg_class c on c.relname = u.name and c.relnamespace = n.oid
    join pg_catalog.pg_am m on m.oid = c.relam
    join pg_catalog.pg_index i on i.indexrelid = c.oid
    left join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and 0 < a.attnum";

/// The definition of a view, and the name of one of its columns.
const VIEW: &str = "
    select pg_get_viewdef(c.oid), a.attname::text from pg_catalog.pg_class c
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = $2 where c.oid = $1 and c.relkind = 'v'";
/// Views of views that are looked through.
const VIEWS_MAX: usize = 16;

/// A plan for any values: not the one for those of an example, which has none.
const GENERIC: &str =
    "set local plan_cache_mode = force_generic_plan; set local enable_partition_pruning = off";

impl Postgres {
    /// Counts rows and keys, and chooses some keys at random, at one snapshot; given up after `within`, when the server ends it.
    ///
    /// # Errors
    /// [`SourceError`]; of [`super::ErrorKind::Cancelled`] where it takes too long.
    pub(crate) async fn census(
        &self,
        source: &DatasetSource,
        sample: usize,
        within: Duration,
    ) -> Result<Census, SourceError> {
        let error = |source| SourceError::new(COUNT, source);
        let sql = format!("{} limit {sample}) k)", source.census);
        let rows = self.within(COUNT, within, async |session| {
            let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(false);
            query.fetch_all(session).await
        });
        let rows = rows.await?;
        let mut census = Census::default();
        for (position, row) in rows.iter().enumerate() {
            if position == 0 {
                let number = |at: usize| -> Result<u64, sqlx::Error> {
                    Ok(u64::try_from(row.try_get::<i64, _>(at)?).unwrap_or_default())
                };
                census.keyless_rows = number(2).map_err(error)?;
                census.rows = number(1).map_err(error)?;
                census.keys = number(0).map_err(error)?;
                census.shared_keys = number(3).map_err(error)?;
                census.rows_max = number(4).map_err(error)?;
                continue;
            }
            let values: Result<Vec<Option<String>>, _> =
                (0..source.key_columns.len()).map(|at| row.try_get(5 + at)).collect();
            let values: Option<KeyValues> = values.map_err(error)?.into_iter().collect();
            census.sample.extend(values);
        }
        Ok(census)
    }

    /// The first keys in their order.
    ///
    /// # Errors
    /// As [`Self::census`].
    pub(crate) async fn some_keys(
        &self,
        source: &DatasetSource,
        count: usize,
        within: Duration,
    ) -> Result<Vec<KeyValues>, SourceError> {
        let sql = format!("{} limit {count}", source.keys);
        let rows = self.within(COUNT, within, async |session| {
            sqlx::query(AssertSqlSafe(sql.clone())).persistent(false).fetch_all(session).await
        });
        let rows = rows.await?;
        let keys = rows.iter().map(|row| read_key(COUNT, row, source)).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().flatten().collect())
    }

    /// A key that several of the first rows have, and how many.
    ///
    /// # Errors
    /// As [`Self::census`].
    pub async fn shared_key(
        &self,
        source: &DatasetSource,
        within: Duration,
    ) -> Result<Option<(KeyValues, u64)>, SourceError> {
        let error = |source| SourceError::new(COUNT, source);
        let found = self.within(COUNT, within, async |session| {
            let query = sqlx::query(AssertSqlSafe(source.shared.clone())).persistent(false);
            query.fetch_optional(session).await
        });
        let Some(row) = found.await? else { return Ok(None) };
        let places = source.key_columns.len();
        let values: Result<KeyValues, _> = (0..places).map(|at| row.try_get(at)).collect();
        let count: i64 = row.try_get(places).map_err(error)?;
        Ok(Some((values.map_err(error)?, u64::try_from(count).unwrap_or_default())))
    }

    /// How many different tags the rows have, of the tag at this position.
    ///
    /// # Errors
    /// As [`Self::census`].
    pub(crate) async fn count_tags(
        &self,
        dataset: &Dataset,
        source: &DatasetSource,
        tag: usize,
        within: Duration,
    ) -> Result<u64, SourceError> {
        let columns = source.tag_columns.get(tag).into_iter().flatten();
        let mut names: Vec<String> = columns
            .filter_map(|at| source.columns.get(*at))
            .map(|column| format!("q.{}", quote(&column.name)))
            .collect();
        if names.is_empty() {
            return Ok(1);
        }
        let list = source.tag_lists.get(tag).copied().flatten().and_then(|place| names.get_mut(place));
        let elements = list.map(|name| {
            let column = std::mem::replace(name, "ck_list.ck_element".to_owned());
            format!(" cross join lateral pg_catalog.unnest({column}) ck_list(ck_element)")
        });
        let list = names.join(", ");
        let sql = format!(
            "select count(*) from (select distinct {list} from (\n{}\n) q{} where pg_catalog.num_nulls({list}) = 0) t",
            dataset.query,
            elements.unwrap_or_default()
        );
        let counted = self.within(COUNT, within, async |session| {
            sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.clone()))
                .persistent(false)
                .fetch_one(session)
                .await
        });
        Ok(u64::try_from(counted.await?).unwrap_or_default())
    }

    /// The rows of these keys, as a load has them, but without snapshot and incarnation: they can be stored nowhere.
    ///
    /// # Errors
    /// As [`Self::census`].
    pub(crate) async fn look_at_rows(
        &self,
        source: &DatasetSource,
        keys: &[KeyValues],
        within: Duration,
    ) -> Result<Vec<Row>, SourceError> {
        let what = "read the rows of some keys";
        let mut rows = self
            .within(what, within, async |session| {
                let arguments = bind_keys(source, keys)?;
                let sql = AssertSqlSafe(source.unstamped.clone());
                // By a name: for a type that it does not know the driver asks the server in between, which ends the unnamed statement.
                let rows = sqlx::query_with(sql, arguments).fetch(session);
                Ok(source.bounded(what, keys.len(), rows).await)
            })
            .await??;
        rows.retain(|row| source.has_key(row));
        Ok(rows)
    }

    /// How many rows the planner takes the query to have.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn estimated_rows(&self, dataset: &Dataset) -> Result<Option<u64>, SourceError> {
        let sql = format!("explain (format json) select q.* from (\n{}\n) q", dataset.query);
        let mut session = self.open_unlimited().await?;
        let plan = explained(&mut session, &sql).await.map_err(|source| SourceError::new(EXPLAIN, source))?;
        Ok(plan.get("Plan Rows").and_then(serde_json::Value::as_f64).and_then(whole))
    }

    /// What a load by key reads, whatever the keys. With `is_forced`, no table is read as a whole that has an index for it.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn path_of_load(
        &self,
        source: &DatasetSource,
        is_forced: bool,
    ) -> Result<Vec<Access>, SourceError> {
        let error = |source| SourceError::new(EXPLAIN, source);
        let mut session = self.open_unlimited().await?;
        let mut transaction = session.begin().await.map_err(error)?;
        let settings = if is_forced { "; set local enable_seqscan = off" } else { "" };
        let nulls = vec!["null"; source.key_columns.len()].join(", ");
        let prepare = format!("{GENERIC}{settings}; prepare cachekeeper_planned as {}", source.unstamped);
        sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *transaction).await.map_err(error)?;
        let sql = format!("explain (format json, verbose) execute cachekeeper_planned ({nulls})");
        let plan = explained(&mut transaction, &sql).await.map_err(error)?;
        let after = sqlx::raw_sql("deallocate cachekeeper_planned").execute(&mut *transaction).await;
        after.map_err(error)?;
        transaction.rollback().await.map_err(error)?;
        let mut found = accesses::of_plan(&plan);
        let indexes = found.iter().flat_map(Found::indexes);
        let (schemas, names): (Vec<String>, Vec<String>) = indexes.unzip();
        let leads = sqlx::query_as(LEADS).bind(schemas).bind(names).fetch_all(&self.pool).await;
        let leads: Vec<(String, String, Option<String>)> = leads.map_err(error)?;
        Ok(found.drain(..).map(|found| found.judged(&leads)).collect())
    }

    /// The tables that the columns of the key come from; empty where they are expressions.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn key_tables(
        &self,
        dataset: &Dataset,
        source: &DatasetSource,
    ) -> Result<Vec<KeyTable>, SourceError> {
        let error = |source| SourceError::new("find the tables of a key", source);
        let names = source.key_columns.iter().filter_map(|at| source.columns.get(*at));
        let mut origins: Vec<(Oid, Vec<i16>)> = Vec::new();
        for name in names.map(|column| column.name.as_str()) {
            let Some((relation, number)) = self.origin(&dataset.query, name).await.map_err(error)? else {
                return Ok(Vec::new());
            };
            match origins.iter_mut().find(|(known, _)| *known == relation) {
                Some((_, numbers)) => numbers.push(number),
                None => origins.push((relation, vec![number])),
            }
        }
        let mut tables = Vec::new();
        for (relation, numbers) in origins {
            let found = sqlx::query(KEY_TABLE).bind(relation).bind(numbers).fetch_one(&self.pool).await;
            tables.push(read_key_table(&found.map_err(error)?).map_err(error)?);
        }
        Ok(tables)
    }

    /// The column of a table that a column of a query is, through views; none: it is an expression.
    async fn origin(&self, query: &str, name: &str) -> Result<Option<(Oid, i16)>, sqlx::Error> {
        let (mut query, mut name) = (query.to_owned(), name.to_owned());
        for _ in 0..VIEWS_MAX {
            // Sent as text: what the driver knows of a prepared one may be out of date. No row is read.
            let sql = format!("select q.{} from (select) s left join (\n{query}\n) q on false", quote(&name));
            let row = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&self.pool).await?;
            let Some(column) = sqlx::Row::columns(&row).first() else { return Ok(None) };
            let origin = column.relation_id().zip(column.relation_attribute_no());
            let Some((relation, number)) = origin else { return Ok(None) };
            let view: Option<(String, String)> =
                sqlx::query_as(VIEW).bind(relation).bind(number).fetch_optional(&self.pool).await?;
            let Some((definition, column)) = view else { return Ok(Some((relation, number))) };
            (query, name) = (definition.trim_end().trim_end_matches(';').to_owned(), column);
        }
        Ok(None)
    }

    /// Something that the server gives up after a while.
    async fn within<T>(
        &self,
        what: &'static str,
        within: Duration,
        act: impl AsyncFnOnce(&mut Session) -> Result<T, sqlx::Error>,
    ) -> Result<T, SourceError> {
        let error = |source| SourceError::new(what, source);
        let mut session = self.open_unlimited().await?;
        let mut transaction: Transaction<&mut Session> = session.begin().await.map_err(error)?;
        let limit = within.as_millis().max(1);
        let set = format!("set local statement_timeout = {limit}; set local lock_timeout = {limit}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut *transaction).await.map_err(error)?;
        let done = act(&mut transaction).await.map_err(error)?;
        transaction.rollback().await.map_err(error)?;
        Ok(done)
    }
}

fn read_key_table(row: &PgRow) -> Result<KeyTable, sqlx::Error> {
    let kind: String = row.try_get(1)?;
    Ok(KeyTable {
        path: row.try_get(0)?,
        kind: kind.chars().next().unwrap_or('?'),
        columns: row.try_get(2)?,
        members: row.try_get(3)?,
        has_index: row.try_get(4)?,
    })
}

/// The top of a plan.
async fn explained(session: &mut Session, sql: &str) -> Result<serde_json::Value, sqlx::Error> {
    let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(session).await?;
    let text: String = row.try_get_unchecked(0)?;
    let plan: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(plan.pointer("/0/Plan").cloned().unwrap_or_default())
}
