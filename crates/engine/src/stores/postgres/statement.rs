//! The statements of a dataset, made from its query once its columns are known.

mod columns;
mod sql;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::PgTypeInfo;
use sqlx::{Column, Executor, PgConnection, PgPool, SqlSafeStr, Statement, TypeInfo};

use self::columns::{KeyColumn, base_type, is_coarse, key_type};
use self::sql::Statements;
use super::transcode::{ReadAs, RowPlan};
use super::{Postgres, SourceError};
use cachekeeper_config::Dataset;
use cachekeeper_protocol::template::{Alphabet, Template};
pub(super) use columns::{KeyType, quote, type_name};
pub(super) use sql::INCARNATION;

/// What fails where a query cannot be described.
const DESCRIBE: &str = "describe a query";
/// What helps where a column cannot be read.
const CAST: &str = "cast the column in the query, for example `column::text as column`";

/// The driver's name of a type that it has not looked up. It loses some where several depend on the same ones, and finds them when
/// it is asked again.
const UNRESOLVED: &str = "?";
/// How often it is asked.
const RESOLVED_WITHIN: usize = 16;

/// How many queries were described by this process.
static DESCRIBED: AtomicU64 = AtomicU64::new(0);

/// Names and types of a query's columns.
type Columns = Vec<(String, PgTypeInfo)>;

/// The texts of a key's placeholders.
pub type KeyValues = Vec<String>;

/// A dataset whose query Postgres has described.
#[derive(Debug)]
pub struct DatasetSource {
    /// Names and types of the query's columns.
    pub columns: Vec<(String, PgTypeInfo)>,
    /// How a row becomes a value.
    pub plan: RowPlan,
    /// For each placeholder of the key, its column.
    pub key_columns: Vec<usize>,
    /// For each tag, the columns of its placeholders.
    pub tag_columns: Vec<Vec<usize>>,
    pub(super) key_types: Vec<KeyType>,
    /// Names and types of a load's columns; no type: it is read as text or JSON, under another name.
    pub(super) loaded: Vec<(String, Option<PgTypeInfo>)>,
    pub(super) by_key: String,
    pub(super) all: String,
    pub(super) all_behind: String,
    pub(super) first_keys: Option<String>,
    pub(super) keys: String,
    pub(super) keys_behind: String,
}

/// What is wrong with a dataset once the database has been asked. `setting` is the key in its section.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceProblem {
    /// Which setting: `query`, `key`, `tags`.
    pub setting: &'static str,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Where in the setting's text.
    pub offset: Option<usize>,
}

impl DatasetSource {
    /// What the placeholder of this name can hold, as its column's type says.
    #[must_use]
    pub fn alphabet(&self, column: &str) -> Alphabet {
        let found = self.columns.iter().find(|(name, _)| name == column);
        match found.map(|(_, kind)| base_type(kind).name().to_owned()).as_deref() {
            Some("INT2" | "INT4" | "INT8") => Alphabet::Integer,
            Some("UUID") => Alphabet::Uuid,
            _ => Alphabet::Any,
        }
    }

    fn is_text(&self, column: usize) -> bool {
        let kind = self.columns.get(column).map(|(_, kind)| base_type(kind));
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

    async fn describe_on(
        &self,
        pool: &PgPool,
        dataset: &Dataset,
    ) -> Result<Result<DatasetSource, SourceProblem>, SourceError> {
        let what = DESCRIBE;
        let mut connection = pool.acquire().await.map_err(|source| SourceError::new(what, source))?;
        let mut tries = 0;
        let (number, columns) = loop {
            let number = DESCRIBED.fetch_add(1, Ordering::Relaxed);
            let columns = match prepare(&mut connection, dataset, number).await? {
                Ok(columns) => columns,
                Err(problem) => return Ok(Err(problem)),
            };
            let mut unknown = columns.iter().filter(|(_, kind)| kind.name() == UNRESOLVED).peekable();
            if unknown.peek().is_none() {
                break (number, columns);
            }
            tries += 1;
            if tries == RESOLVED_WITHIN {
                let names: Vec<&str> = unknown.map(|(name, _)| name.as_str()).collect();
                return Ok(Err(SourceProblem {
                    setting: "query",
                    message: format!("the types of {} could not be found out", names.join(", ")),
                    help: CAST.to_owned(),
                    offset: None,
                }));
            }
        };
        match make_source(dataset, columns, number, &BTreeSet::new()) {
            // Only texts have collations, and only those that take different texts for equal make a difference.
            Ok(source) if source.key_columns.iter().any(|column| source.is_text(*column)) => {
                let coarse = coarse_columns(&mut connection, dataset, &source).await?;
                Ok(make_source(dataset, source.columns, number, &coarse))
            }
            made => Ok(made),
        }
    }
}

/// What the query returns.
async fn prepare(
    connection: &mut PgConnection,
    dataset: &Dataset,
    number: u64,
) -> Result<Result<Columns, SourceProblem>, SourceError> {
    // The parentheses make a second statement, or a statement that is no query, a syntax error. The query
    // is on lines of its own, so that a comment at its end ends there.
    // The number makes the text a new one each time: connections keep what they prepared by its text, and after
    // a change of the tables all of that is worthless.
    let opening = format!("/* {number} */ select q.* from (\n");
    let sql = format!("{opening}{}\n) q", dataset.query);
    let source = match connection.prepare(sqlx::AssertSqlSafe(sql.clone()).into_sql_str()).await {
        Ok(prepared) => {
            let columns = prepared.columns().iter();
            return Ok(Ok(columns
                .map(|column| (column.name().to_owned(), column.type_info().clone()))
                .collect()));
        }
        Err(source) => source,
    };
    // The driver knows no type of that kind.
    if matches!(&source, sqlx::Error::ColumnDecode { index, .. } if index.contains("typ")) {
        return Ok(Err(SourceProblem {
            setting: "query",
            message: "the query returns a multirange or a domain over \"char\", which cannot be read"
                .to_owned(),
            help: CAST.to_owned(),
            offset: None,
        }));
    }
    let error = SourceError::new(DESCRIBE, source);
    if error.is_transient() || error.kind == super::ErrorKind::Forbidden {
        return Err(error);
    }
    let offset = error.position_in(&sql).and_then(|at| at.checked_sub(opening.len()));
    Ok(Err(SourceProblem {
        setting: "query",
        message: format!("Postgres does not accept the query: {}", error.message()),
        help: "the query is used inside a larger statement; try it as `select * from (<query>) q`".to_owned(),
        offset,
    }))
}

/// The columns of the key whose collation takes different texts for equal.
async fn coarse_columns(
    connection: &mut PgConnection,
    dataset: &Dataset,
    source: &DatasetSource,
) -> Result<BTreeSet<usize>, SourceError> {
    let texts: Vec<usize> =
        source.key_columns.iter().copied().filter(|column| source.is_text(*column)).collect();
    let names = texts.iter().filter_map(|column| source.columns.get(*column));
    let collations: Vec<String> =
        names.map(|(name, _)| format!("pg_collation_for(q.{})", quote(name))).collect();
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
    columns: Vec<(String, PgTypeInfo)>,
    number: u64,
    coarse: &BTreeSet<usize>,
) -> Result<DatasetSource, SourceProblem> {
    for (index, (name, _)) in columns.iter().enumerate() {
        if columns.iter().take(index).any(|(earlier, _)| earlier == name) {
            return Err(SourceProblem {
                setting: "query",
                message: format!("the query has two columns named {name}"),
                help: format!("rename one: `… as other_{name}`"),
                offset: None,
            });
        }
    }
    let key_columns = find_columns("key", &dataset.key, &columns)?;
    let mut tag_columns = Vec::with_capacity(dataset.tags.len());
    for tag in &dataset.tags {
        tag_columns.push(find_columns("tags", tag, &columns)?);
    }
    let plan = RowPlan::new(&columns, &dataset.format).map_err(|unsupported| SourceProblem {
        setting: "query",
        message: unsupported.to_string(),
        help: CAST.to_owned(),
        offset: None,
    })?;
    check_texts("key", &plan, &columns, &key_columns)?;
    check_texts("tags", &plan, &columns, &tag_columns.concat())?;
    let loaded: Vec<(String, Option<PgTypeInfo>)> = columns
        .iter()
        .enumerate()
        .map(|(at, (name, kind))| match plan.read_as(at) {
            ReadAs::Binary => (name.clone(), Some(kind.clone())),
            // Another name, so that the sorting of a list means the column itself.
            ReadAs::Text | ReadAs::Json => (format!("ck_shown_{at}"), None),
        })
        .collect();
    let keys: Vec<KeyColumn> = key_columns
        .iter()
        .filter_map(|at| {
            let (name, kind) = columns.get(*at)?;
            let is_coarse = coarse.contains(at) || is_coarse(kind);
            Some(KeyColumn { name: quote(name), kind: key_type(kind), is_coarse })
        })
        .collect();
    let statements = Statements { dataset, columns: &columns, loaded: &loaded, plan: &plan, keys: &keys };
    Ok(DatasetSource {
        by_key: format!("/* {number} */ {}", statements.by_key()),
        all: statements.all(false),
        all_behind: statements.all(true),
        first_keys: statements.first_keys(),
        keys: statements.keys(false),
        keys_behind: statements.keys(true),
        key_types: keys.into_iter().map(|key| key.kind).collect(),
        loaded,
        plan,
        key_columns,
        tag_columns,
        columns,
    })
}

/// Whether the values of these columns can be part of a key or tag.
fn check_texts(
    setting: &'static str,
    plan: &RowPlan,
    columns: &[(String, PgTypeInfo)],
    used: &[usize],
) -> Result<(), SourceProblem> {
    let wrong: BTreeSet<usize> = used.iter().copied().filter(|at| !plan.can_be_in_keys(*at)).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let named = wrong.into_iter().filter_map(|at| columns.get(at));
    let list: Vec<String> = named
        .map(|(name, kind)| format!("column {name} has the type {}", kind.name().to_lowercase()))
        .collect();
    Err(SourceProblem {
        setting,
        message: format!(
            "{}, whose values have no one text that a key or tag could be made of",
            list.join(", ")
        ),
        help: "take a column with a plain value, or make a text of it in the query".to_owned(),
        offset: None,
    })
}

fn find_columns(
    setting: &'static str,
    template: &Template,
    columns: &[(String, PgTypeInfo)],
) -> Result<Vec<usize>, SourceProblem> {
    let mut found = Vec::new();
    for placeholder in template.columns() {
        let Some(index) = columns.iter().position(|(name, _)| name == placeholder) else {
            let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
            return Err(SourceProblem {
                setting,
                message: format!("{template} uses {{{placeholder}}}, but the query has no such column"),
                help: format!("columns: {}", names.join(", ")),
                offset: template.as_str().find(&format!("{{{placeholder}}}")).map(|at| at + 1),
            });
        };
        found.push(index);
    }
    Ok(found)
}
