//! The statements of a dataset, made from its query once its columns are known.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgTypeInfo, PgTypeKind};
use sqlx::{Column, Executor, PgPool, SqlSafeStr, Statement, TypeInfo};

use super::transcode::RowPlan;
use super::{Postgres, SourceError};
use cachekeeper_config::{Dataset, Rows};
use cachekeeper_protocol::template::{Alphabet, Template};

/// The id of this server's present life, or null: valid only where the recorded start time and database are this
/// server's (R2). A standby refuses to read it.
pub(super) const INCARNATION: &str = "(select i.id::text from cachekeeper.incarnation i \
     where i.started = pg_postmaster_start_time() \
     and i.db = (select d.oid from pg_database d where d.datname = current_database()))";

/// What fails where a query cannot be described.
const DESCRIBE: &str = "describe a query";

/// Keys of one page.
const KEYS_OF_PAGE: usize = 5_000;

/// How many queries were described by this process.
static DESCRIBED: AtomicU64 = AtomicU64::new(0);

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
    pub(super) by_key: String,
    pub(super) all: String,
    pub(super) all_behind: String,
    pub(super) keys: String,
    pub(super) keys_behind: String,
    pub(super) first_keys: Option<String>,
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

/// How the values of a key column are bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyType {
    /// As `int8[]`; equality with the smaller integers uses their indexes too.
    Integer,
    /// As `text[]`, cast to an array of this type.
    Cast(String),
}

impl KeyType {
    fn parameter(&self, number: usize) -> String {
        match self {
            Self::Integer => format!("${number}::int8[]"),
            Self::Cast(name) => format!("${number}::text[]::{name}[]"),
        }
    }
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
        // The parentheses make a second statement, or a statement that is no query, a syntax error. The query
        // is on lines of its own, so that a comment at its end ends there.
        // The number makes the text a new one each time: connections keep what they prepared by its text, and after
        // a change of the tables all of that is worthless.
        let number = DESCRIBED.fetch_add(1, Ordering::Relaxed);
        let opening = format!("/* {number} */ select q.* from (\n");
        let sql = format!("{opening}{}\n) q", dataset.query);
        let prepared = match (&mut *connection).prepare(sqlx::AssertSqlSafe(sql.clone()).into_sql_str()).await
        {
            Ok(prepared) => prepared,
            Err(source) => {
                let error = SourceError::new(what, source);
                if error.is_transient() || error.kind == super::ErrorKind::Forbidden {
                    return Err(error);
                }
                let offset = error.position_in(&sql).and_then(|at| at.checked_sub(opening.len()));
                return Ok(Err(SourceProblem {
                    setting: "query",
                    message: format!("Postgres does not accept the query: {}", error.message()),
                    help:
                        "the query is used inside a larger statement; try it as `select * from (<query>) q`"
                            .to_owned(),
                    offset,
                }));
            }
        };
        let columns: Vec<(String, PgTypeInfo)> = prepared
            .columns()
            .iter()
            .map(|column| (column.name().to_owned(), column.type_info().clone()))
            .collect();
        Ok(make_source(dataset, columns, number))
    }
}

fn make_source(
    dataset: &Dataset,
    columns: Vec<(String, PgTypeInfo)>,
    number: u64,
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
        help: "cast the column in the query, for example `column::text as column`".to_owned(),
        offset: None,
    })?;
    let named = |index: &usize| columns.get(*index);
    let key_types: Vec<KeyType> =
        key_columns.iter().filter_map(named).map(|(_, kind)| key_type(kind)).collect();
    let key_names: Vec<String> = key_columns.iter().filter_map(named).map(|(name, _)| quote(name)).collect();
    let statements = Statements { dataset, columns: &columns, key_names: &key_names, key_types: &key_types };
    Ok(DatasetSource {
        by_key: format!("/* {number} */ {}", statements.by_key()),
        all: statements.all(false),
        all_behind: statements.all(true),
        keys: statements.keys(false),
        keys_behind: statements.keys(true),
        first_keys: statements.first_keys(),
        plan,
        key_columns,
        tag_columns,
        key_types,
        columns,
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

struct Statements<'a> {
    dataset: &'a Dataset,
    columns: &'a [(String, PgTypeInfo)],
    key_names: &'a [String],
    key_types: &'a [KeyType],
}

impl Statements<'_> {
    /// The entries of given keys, with the snapshot and the incarnation also where no row matches (R1).
    fn by_key(&self) -> String {
        let parameters: Vec<String> =
            self.key_types.iter().enumerate().map(|(index, kind)| kind.parameter(index + 1)).collect();
        let condition = match (self.key_names, parameters.as_slice()) {
            ([name], [parameter]) => format!("q0.{name} = any({parameter})"),
            (names, parameters) => format!(
                "({}) in (select * from unnest({}))",
                names.iter().map(|name| format!("q0.{name}")).collect::<Vec<_>>().join(", "),
                parameters.join(", ")
            ),
        };
        format!(
            "select s.ck_snap, s.ck_inc, q.* from \
             (select pg_current_snapshot()::text as ck_snap, {INCARNATION} as ck_inc) s \
             left join (select q0.* from (\n{}\n) q0 where {condition}) q on true{}",
            self.dataset.query,
            self.order()
        )
    }

    /// All entries. The first row carries the snapshot and the incarnation and nothing else; a backfill that goes on
    /// after an interruption begins behind a key.
    fn all(&self, is_resumed: bool) -> String {
        let nulls: Vec<String> = self
            .columns
            .iter()
            .map(|(name, kind)| format!("null::{} as {}", type_name(kind), quote(name)))
            .collect();
        let behind = if is_resumed { self.behind() } else { String::new() };
        format!(
            "select pg_current_snapshot()::text as ck_snap, {INCARNATION} as ck_inc, {} \
             union all (select null, null, q.* from (\n{}\n) q{behind}{})",
            nulls.join(", "),
            self.dataset.query,
            self.order()
        )
    }

    /// A page of the keys, in order. Other columns are not read, so what is wrong with them does not matter.
    fn keys(&self, is_resumed: bool) -> String {
        let names: Vec<String> = self.key_names.iter().map(|name| format!("q.{name}")).collect();
        let names = names.join(", ");
        let behind = if is_resumed { self.behind() } else { String::new() };
        let query = &self.dataset.query;
        format!("select distinct {names} from (\n{query}\n) q{behind} order by {names} limit {KEYS_OF_PAGE}")
    }

    /// Only what comes behind a key.
    fn behind(&self) -> String {
        let names: Vec<String> = self.key_names.iter().map(|name| format!("q.{name}")).collect();
        let values: Vec<String> = self
            .key_types
            .iter()
            .enumerate()
            .map(|(index, kind)| match kind {
                KeyType::Integer => format!("${}::text::int8", index + 1),
                KeyType::Cast(name) => format!("${}::text::{name}", index + 1),
            })
            .collect();
        format!(" where ({}) > ({})", names.join(", "), values.join(", "))
    }

    /// Rows of one key come together, in the order that the user wants them.
    fn order(&self) -> String {
        let mut order: Vec<String> = self.key_names.iter().map(|name| format!("q.{name}")).collect();
        if let (Rows::Many, Some(sort)) = (self.dataset.rows, &self.dataset.sort) {
            order.push(sort.clone());
        }
        format!(" order by {}", order.join(", "))
    }

    /// The keys of a backfill with a limit, the most wanted first.
    fn first_keys(&self) -> Option<String> {
        let warm = self.dataset.warm.as_ref()?;
        let limit = warm.limit?;
        let names = self.key_names.join(", ");
        let query = &self.dataset.query;
        let Some(order_by) = &warm.order_by else {
            return Some(format!(
                "select distinct {names} from (\n{query}\n) q order by {names} limit {limit}"
            ));
        };
        Some(format!(
            "select {names} from (select q.*, row_number() over (order by {order_by}) as ck_place from (\n{query}\n) q) q \
             group by {names} order by min(ck_place) limit {limit}"
        ))
    }
}

/// An identifier as SQL text.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn base_type(kind: &PgTypeInfo) -> PgTypeInfo {
    match kind.kind() {
        PgTypeKind::Domain(inner) => base_type(inner),
        PgTypeKind::Simple
        | PgTypeKind::Pseudo
        | PgTypeKind::Composite(_)
        | PgTypeKind::Array(_)
        | PgTypeKind::Enum(_)
        | PgTypeKind::Range(_) => kind.clone(),
    }
}

fn key_type(kind: &PgTypeInfo) -> KeyType {
    match base_type(kind).name() {
        "INT2" | "INT4" | "INT8" => KeyType::Integer,
        "UUID" => KeyType::Cast("uuid".to_owned()),
        "TEXT" | "VARCHAR" => KeyType::Cast("text".to_owned()),
        _ => KeyType::Cast(type_name(kind)),
    }
}

/// The type as SQL text. Names of built-in types are SQL but for their case; the others come from `regtype`, quoted
/// and qualified as needed.
pub(super) fn type_name(kind: &PgTypeInfo) -> String {
    match (kind.kind(), kind.name()) {
        (PgTypeKind::Array(element), _) => format!("{}[]", type_name(element)),
        // `char` would be `char(1)`.
        (_, "CHAR") => "bpchar".to_owned(),
        (_, "BIT") => "varbit".to_owned(),
        (_, name) if name == name.to_uppercase() => name.to_lowercase(),
        (_, name) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }
}
