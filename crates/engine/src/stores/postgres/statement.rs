//! The statements of a dataset, made from its query once its columns are known.

mod columns;
mod describe;
mod fit;
mod sql;

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::TypeInfo;
use sqlx::postgres::PgTypeInfo;

use self::columns::{KeyColumn, is_coarse, key_type};
pub use self::describe::SourceProblem;
use self::describe::{CAST, DESCRIBE};
use self::fit::Fit;
use self::sql::Statements;
use super::pool::Pool;
use super::session::Session;
use super::transcode::{LifetimeKind, QueryColumn, ReadAs, RowPlan, base_type};
use super::{Postgres, SourceError};
use cachekeeper_config::Dataset;
use cachekeeper_protocol::template::Alphabet;
pub(super) use columns::{KeyType, quote, type_name};
pub(super) use sql::INCARNATION;
pub use sql::SHARED_AMONG;

/// The texts of a key's placeholders.
pub type KeyValues = Vec<String>;

/// A dataset whose query Postgres has described.
#[derive(Debug)]
pub struct DatasetSource {
    /// The query's columns.
    pub columns: Vec<QueryColumn>,
    /// How a row becomes a value.
    pub plan: RowPlan,
    /// For each placeholder of the key, its column.
    pub key_columns: Vec<usize>,
    /// For each tag, the columns of its placeholders.
    pub tag_columns: Vec<Vec<usize>>,
    /// For each tag, which of its placeholders is a list: the row has a tag for each element.
    pub(crate) tag_lists: Vec<Option<usize>>,
    pub(super) max_value_size: usize,
    /// The columns whose values may be large.
    pub(super) large: Vec<usize>,
    /// Whether rows say how large they are where they are too large to be read.
    pub(crate) is_measured: bool,
    /// What rows say of how long their entries live.
    pub(crate) lifetime: Option<LifetimeKind>,
    pub(super) key_types: Vec<KeyType>,
    /// Names and types of a load's columns; no type: it is read as text or JSON, under another name.
    pub(super) loaded: Vec<(String, Option<PgTypeInfo>)>,
    pub(super) by_key: String,
    pub(super) all: String,
    pub(super) all_behind: String,
    pub(super) first_keys: Option<String>,
    pub(super) keys: String,
    pub(super) keys_behind: String,
    /// The load by key without snapshot and incarnation.
    pub(super) unstamped: String,
    /// Counts, then keys; how many is to be added.
    pub(super) census: String,
    /// A key that several of the first rows have, and how many.
    pub(super) shared: String,
}

impl DatasetSource {
    /// The statement that reads everything, with what its rows hold: where both are the same, so are the rows.
    pub(crate) fn all_with_types(&self) -> String {
        format!("{} {:?}", self.all, self.loaded)
    }

    /// What the placeholder of this name can hold, as its column's type says.
    #[must_use]
    pub fn alphabet(&self, column: &str) -> Alphabet {
        let found = self.columns.iter().find(|found| found.name == column);
        match found.map(|found| base_type(&found.info).name().to_owned()).as_deref() {
            Some("INT2" | "INT4" | "INT8") => Alphabet::Integer,
            Some("UUID") => Alphabet::Uuid,
            Some("BOOL" | "DATE" | "FLOAT4" | "FLOAT8" | "NUMERIC" | "OID") => Alphabet::Segment,
            _ => Alphabet::Any,
        }
    }

    fn is_text(&self, column: usize) -> bool {
        let kind = self.columns.get(column).map(|column| base_type(&column.info));
        kind.is_some_and(|kind| matches!(kind.name(), "TEXT" | "VARCHAR"))
    }

    /// Whether these texts can be the values of a key at all. What cannot is a key of no row.
    #[must_use]
    pub(crate) fn can_hold(&self, values: &[impl AsRef<str>]) -> bool {
        values.len() == self.key_types.len()
            && values.iter().enumerate().all(|(position, text)| self.accepts(position, text.as_ref()))
    }

    fn accepts(&self, position: usize, text: &str) -> bool {
        match self.key_types.get(position) {
            Some(KeyType::Integer) => text.parse::<i64>().is_ok_and(|number| number.to_string() == text),
            Some(KeyType::Cast(name)) if name == "uuid" => {
                text.len() == 36
                    && text.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => byte.is_ascii_hexdigit(),
                    })
            }
            Some(KeyType::Cast(_)) => !text.contains('\0'),
            None => false,
        }
    }
}

impl Postgres {
    /// Asks the database what a dataset's query returns, and makes its statements.
    ///
    /// # Errors
    /// The outer error where the server could not be asked, the inner one where the dataset is wrong.
    pub async fn describe(
        &self,
        dataset: &Dataset,
    ) -> Result<Result<DatasetSource, SourceProblem>, SourceError> {
        self.describe_on(&self.pool, dataset).await
    }

    /// The same, given up after a limit of at most [`super::QUICK_MAX`].
    pub(crate) async fn describe_within(
        &self,
        dataset: &Dataset,
        limit: Duration,
    ) -> Result<Result<DatasetSource, SourceProblem>, SourceError> {
        let describing = self.describe_on(&self.quick, dataset);
        tokio::time::timeout(limit, describing)
            .await
            .unwrap_or_else(|_elapsed| Err(SourceError::slow(DESCRIBE)))
    }

    /// Everything that is wrong with a dataset as far as its query's columns tell; of a query that is not accepted only that.
    ///
    /// # Errors
    /// [`SourceError`] where the server could not be asked.
    pub async fn problems_of(&self, dataset: &Dataset) -> Result<Vec<SourceProblem>, SourceError> {
        let acquired = self.pool.acquire().await;
        let mut connection = acquired.map_err(|source| SourceError::new(DESCRIBE, source))?;
        Ok(match columns_of(&mut connection, &dataset.query).await? {
            Ok((_, columns)) => Fit::of(dataset, &columns).err().unwrap_or_default(),
            Err(problem) => vec![problem],
        })
    }

    async fn describe_on(
        &self,
        pool: &Pool,
        dataset: &Dataset,
    ) -> Result<Result<DatasetSource, SourceProblem>, SourceError> {
        let what = DESCRIBE;
        let mut connection = pool.acquire().await.map_err(|source| SourceError::new(what, source))?;
        let (number, columns) = match columns_of(&mut connection, &dataset.query).await? {
            Ok(described) => described,
            Err(problem) => return Ok(Err(problem)),
        };
        match first(make_source(dataset, columns, number, &BTreeSet::new())) {
            // Only texts have collations, and only those that take different texts for equal make a difference.
            Ok(source) if source.key_columns.iter().any(|column| source.is_text(*column)) => {
                let coarse = coarse_columns(&mut connection, dataset, &source).await?;
                Ok(first(make_source(dataset, source.columns, number, &coarse)))
            }
            made => Ok(made),
        }
    }
}

/// The columns of a query, and a number that makes the texts of its statements new ones.
pub(super) async fn columns_of(
    connection: &mut Session,
    query: &str,
) -> Result<Result<(u64, Vec<QueryColumn>), SourceProblem>, SourceError> {
    describe::columns(connection, query).await
}

/// The columns of the key whose collation takes different texts for equal.
async fn coarse_columns(
    connection: &mut Session,
    dataset: &Dataset,
    source: &DatasetSource,
) -> Result<BTreeSet<usize>, SourceError> {
    let texts: Vec<usize> =
        source.key_columns.iter().copied().filter(|column| source.is_text(*column)).collect();
    let names = texts.iter().filter_map(|column| source.columns.get(*column));
    let collations: Vec<String> =
        names.map(|column| format!("pg_collation_for(q.{})", quote(&column.name))).collect();
    // No row is read: the collation is the column's.
    let sql = format!(
        "select array(select exists (select from pg_collation c where c.oid = to_regcollation(n.name) \
         and not c.collisdeterministic) from unnest(array[{}]) with ordinality n (name, place) order by n.place) \
         from (select) s left join (\n{}\n) q on false",
        collations.join(", "),
        dataset.query
    );
    let read = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_one(connection).await;
    let is_coarse: Vec<bool> = read.map_err(|source| SourceError::new(DESCRIBE, source))?;
    Ok(texts
        .into_iter()
        .zip(is_coarse)
        .filter_map(|(column, is_coarse)| is_coarse.then_some(column))
        .collect())
}

/// `coarse`: columns whose collation takes different texts for equal.
fn make_source(
    dataset: &Dataset,
    columns: Vec<QueryColumn>,
    number: u64,
    coarse: &BTreeSet<usize>,
) -> Result<DatasetSource, Vec<SourceProblem>> {
    let Fit { key_columns, tag_columns, tag_lists, plan, lifetime } = Fit::of(dataset, &columns)?;
    let loaded: Vec<(String, Option<PgTypeInfo>)> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| match plan.read_as(at) {
            // Another name where it is not the column as it is, so that the sorting of a list means the column itself.
            ReadAs::Binary if column.measure.is_some() && !key_columns.contains(&at) => {
                (shown(at), Some(column.info.clone()))
            }
            ReadAs::Binary => (column.name.clone(), Some(column.info.clone())),
            ReadAs::Text | ReadAs::Json => (shown(at), None),
        })
        .collect();
    let keys: Vec<KeyColumn> = key_columns
        .iter()
        .filter_map(|at| {
            let QueryColumn { name, info, .. } = columns.get(*at)?;
            let is_coarse = coarse.contains(at) || is_coarse(info);
            Some(KeyColumn { name: quote(name), kind: key_type(info), is_coarse })
        })
        .collect();
    let statements =
        Statements { dataset, columns: &columns, loaded: &loaded, plan: &plan, keys: &keys, lifetime };
    Ok(DatasetSource {
        by_key: format!("/* {number} */ {}", statements.by_key()),
        all: statements.all(false),
        all_behind: statements.all(true),
        first_keys: statements.first_keys(),
        keys: statements.keys(false),
        keys_behind: statements.keys(true),
        unstamped: statements.unstamped(),
        census: statements.census(),
        shared: statements.shared(),
        max_value_size: dataset.max_value_size,
        large: (0..columns.len())
            .filter(|at| columns.get(*at).is_some_and(QueryColumn::can_be_large))
            .collect(),
        is_measured: statements.is_measured(),
        lifetime: lifetime.map(|(_, kind)| kind),
        key_types: keys.into_iter().map(|key| key.kind).collect(),
        loaded,
        plan,
        key_columns,
        tag_columns,
        tag_lists,
        columns,
    })
}

/// Where there are problems, the first one.
fn first<T>(made: Result<T, Vec<SourceProblem>>) -> Result<T, SourceProblem> {
    made.map_err(|problems| {
        let first = problems.into_iter().next();
        first.unwrap_or_else(|| SourceProblem::new("query", "the dataset does not fit its query", CAST))
    })
}

fn shown(column: usize) -> String {
    format!("ck_shown_{column}")
}
