//! What the server says about a write statement before it is ever carried out: it is described and planned.

use std::collections::BTreeSet;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Either, Error, Executor, Row as _, SqlSafeStr, Statement};

use super::session::Session;
use super::statement::{quote, type_name};
use super::{ErrorKind, Postgres, SourceError, SourceProblem};
use cachekeeper_protocol::parameters::ParameterizedSql;

/// What a write statement could write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Rows of these tables, by their names as SQL.
    Rows(BTreeSet<String>),
    /// What the functions write that it calls.
    Functions,
    /// Nothing.
    Nothing,
}

/// What a statement with an effect on rows begins with. Whatever else Postgres carries out tells of no row.
const QUERIES: [&str; 8] = ["insert", "update", "delete", "merge", "with", "select", "values", "table"];
const STATEMENT: &str = "write.statement";
/// Missing rights, in the list of SQLSTATEs.
const INSUFFICIENT_PRIVILEGE: &str = "42501";

impl Postgres {
    /// Asks the server about a write statement; nothing is carried out.
    ///
    /// # Errors
    /// The outer error where the server could not be asked, the inner one where the statement is wrong.
    pub async fn check_write(&self, statement: &str) -> Result<Result<Effect, SourceProblem>, SourceError> {
        let parsed = ParameterizedSql::parse(statement);
        let described = match self.describe_places(&parsed).await {
            Ok(types) => types,
            Err(error) => return problem_of(error, &parsed),
        };
        if let Some(problem) = utility(statement, &parsed) {
            return Ok(Err(problem));
        }
        let tables = match self.plan_write(&parsed, &described).await {
            Ok(tables) => tables,
            Err(error) => return problem_of(error, &parsed),
        };
        if !tables.is_empty() {
            return Ok(Ok(Effect::Rows(tables)));
        }
        let nulls = parsed.render(|place| format!("null::{}", type_at(&described, place)));
        let inspected = self.inspect(nulls.trim_end().trim_end_matches(';')).await;
        Ok(Ok(match inspected {
            Ok(inspection) => {
                let may_write =
                    inspection.functions.iter().any(|one| one.volatility == 'v' && one.may_read_tables);
                if may_write { Effect::Functions } else { Effect::Nothing }
            }
            Err(error) if error.is_transient() => return Err(error),
            // Not every select can be a view; then its functions are not known.
            Err(_) => Effect::Functions,
        }))
    }

    /// The types of the parameters.
    async fn describe_places(&self, parsed: &ParameterizedSql) -> Result<Vec<String>, Located> {
        let what = "describe a write statement";
        let number = |place| format!("${}", place + 1);
        let sql = parsed.render(number);
        let located = |source| Located::new(SourceError::new(what, source), parsed, &sql, 0, number);
        let mut connection = self.pool.acquire().await.map_err(located)?;
        let prepared = (&mut *connection).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await;
        Ok(match prepared.map_err(located)?.parameters() {
            Some(Either::Left(types)) => types.iter().map(type_name).collect(),
            _ => Vec::new(),
        })
    }

    /// The tables whose rows a statement's plan writes. The server checks the role's rights on the way.
    async fn plan_write(
        &self,
        parsed: &ParameterizedSql,
        types: &[String],
    ) -> Result<BTreeSet<String>, Located> {
        let typed = |place| format!("(${}::text)::{}", place + 1, type_at(types, place));
        let list = |word: &str| {
            let words = vec![word; types.len()].join(", ");
            if words.is_empty() { words } else { format!(" ({words})") }
        };
        let opening = format!("prepare cachekeeper_checked{} as\n", list("text"));
        let sql = format!("{opening}{}", parsed.render(typed));
        let located = |source| {
            Located::new(
                SourceError::new("plan a write statement", source),
                parsed,
                &sql,
                opening.len(),
                typed,
            )
        };
        let explain = format!("explain (format json, verbose) execute cachekeeper_checked{}", list("null"));
        let mut connection = self.pool.acquire().await.map_err(located)?;
        let plan = explained(&mut connection, &sql, &explain).await;
        // It outlives its transaction. Where it was not accepted there is none.
        drop(connection.execute("deallocate cachekeeper_checked").await);
        let plan = plan.map_err(located)?;
        let plan: Value = serde_json::from_str(&plan).unwrap_or_default();
        let mut tables = BTreeSet::new();
        find_written(&plan, &mut tables);
        Ok(tables)
    }

    /// Of these tables those that are of no tree of the others.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn tables_without(
        &self,
        tables: &BTreeSet<String>,
        others: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, SourceError> {
        let names: BTreeSet<&String> = tables.iter().chain(others).collect();
        let names: Vec<String> = names.into_iter().cloned().collect();
        let members = self.trees_without_schema(&names).await?;
        let root_of = |name: &String| members.iter().find(|member| member.asked == *name)?.root;
        let known: BTreeSet<u32> = others.iter().filter_map(root_of).collect();
        let is_other = |name: &&String| root_of(name).is_some_and(|root| !known.contains(&root));
        Ok(tables.iter().filter(is_other).cloned().collect())
    }
}

async fn explained(connection: &mut Session, prepare: &str, explain: &str) -> Result<String, Error> {
    let mut transaction = connection.begin().await?;
    // A plan for null would leave out what null rules out.
    transaction.execute("set local plan_cache_mode = force_generic_plan").await?;
    transaction.execute(AssertSqlSafe(prepare.to_owned())).await?;
    let plan = transaction.fetch_one(AssertSqlSafe(explain.to_owned())).await?.try_get_unchecked(0)?;
    transaction.rollback().await?;
    Ok(plan)
}

/// An error, and where in the statement as it was written the server found it.
struct Located {
    error: SourceError,
    offset: Option<usize>,
}

impl Located {
    fn new(
        error: SourceError,
        parsed: &ParameterizedSql,
        sql: &str,
        opening: usize,
        write: impl Fn(usize) -> String,
    ) -> Self {
        let rendered = error.position_in(sql).and_then(|at| at.checked_sub(opening));
        Self { error, offset: rendered.map(|at| parsed.origin(at, write)) }
    }
}

fn type_at(types: &[String], place: usize) -> &str {
    types.get(place).map_or("text", String::as_str)
}

fn problem_of(
    located: Located,
    parsed: &ParameterizedSql,
) -> Result<Result<Effect, SourceProblem>, SourceError> {
    let Located { error, mut offset } = located;
    let code =
        error.source.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
    let is_forbidden = error.kind == ErrorKind::Forbidden;
    if error.is_transient() || (is_forbidden && code != INSUFFICIENT_PRIVILEGE) {
        return Err(error);
    }
    let mut message = error.message();
    // The last ones first: $1 is the beginning of $10.
    let places: Vec<(usize, &str)> = parsed.offsets().zip(parsed.places()).collect();
    for (place, (at, name)) in places.into_iter().enumerate().rev() {
        let number = format!("${}", place + 1);
        if message.contains(&number) {
            message = message.replace(&number, &format!(":{name}"));
            // Not every message comes with a position.
            offset = offset.or(Some(at));
        }
    }
    let (message, help) = match code.as_str() {
        INSUFFICIENT_PRIVILEGE => (
            format!("the role may not carry out the write statement: {message}"),
            "grant it the right, or let the worker connect as a role that has it",
        ),
        "42P18" | "42P08" => (
            format!("Postgres does not accept the write statement: {message}"),
            "say the type with a cast, for example :name::int",
        ),
        _ => (
            format!("Postgres does not accept the write statement: {message}"),
            "try it in psql, with a value in the place of each :name",
        ),
    };
    Ok(Err(SourceProblem::new(STATEMENT, message, help).at(offset)))
}

/// A statement such as `truncate` or `call` is carried out, but the server does not tell of any row.
fn utility(statement: &str, parsed: &ParameterizedSql) -> Option<SourceProblem> {
    let start = *parsed.starts().first()?;
    let text = statement.get(start..).unwrap_or_default();
    let end = text.find(|one: char| !one.is_ascii_alphabetic()).unwrap_or(text.len());
    let word = text.get(..end).unwrap_or_default().to_lowercase();
    let is_query = QUERIES.contains(&word.as_str()) || text.starts_with('(');
    (!is_query).then(|| {
        let message =
            format!("`{word}` cannot be a write statement: Postgres tells of no row that it touches");
        let help = "use insert, update, delete or merge, or select a function that writes";
        SourceProblem::new(STATEMENT, message, help).at(Some(start))
    })
}

/// A name as people write it: in quotes where it needs them.
fn as_written(name: &str) -> String {
    let is_plain = |one: char| one.is_ascii_lowercase() || one.is_ascii_digit() || one == '_';
    let needs_quotes = name.starts_with(|one: char| one.is_ascii_digit()) || !name.chars().all(is_plain);
    if needs_quotes { quote(name) } else { name.to_owned() }
}

/// The tables that the steps of a plan write, however deep these are.
fn find_written(plan: &Value, tables: &mut BTreeSet<String>) {
    match plan {
        Value::Object(fields) => {
            let text = |name: &str| fields.get(name).and_then(Value::as_str).map(as_written);
            if fields.get("Node Type").is_some_and(|kind| kind == "ModifyTable") {
                let names = [text("Schema"), text("Relation Name")];
                tables.insert(names.into_iter().flatten().collect::<Vec<_>>().join("."));
            }
            fields.values().for_each(|value| find_written(value, tables));
        }
        Value::Array(items) => items.iter().for_each(|item| find_written(item, tables)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
