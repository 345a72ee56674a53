//! What `check` asks the database about a dataset beyond its query: whether every statement made of it is accepted and
//! allowed, and whether its watch rules name what they mean.

use std::collections::HashMap;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Column as _, Executor, Row as _, SqlSafeStr, Statement as _};

use super::spelling::{SpelledColumn, difference};
use super::{DatasetSource, ErrorKind, Postgres, SourceError};
use cachekeeper_config::{Dataset, Watch, WatchTarget};
use cachekeeper_protocol::template::Template;

/// Something that is wrong, or odd, with a setting of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which setting, in the dataset's section.
    pub setting: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Whether the dataset works all the same.
    pub is_warning: bool,
}

impl Finding {
    fn new(setting: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { setting: setting.into(), message: message.into(), help: help.into(), is_warning: false }
    }
}

struct Table {
    /// As in `pg_class`.
    kind: char,
    columns: Vec<SpelledColumn>,
}

impl Postgres {
    /// Looks for what is wrong with a dataset whose query is right.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn check_dataset(
        &self,
        dataset: &Dataset,
        source: &DatasetSource,
        relations: &[String],
    ) -> Result<Vec<Finding>, SourceError> {
        let mut findings = Vec::new();
        self.check_statements(source, &mut findings).await?;
        self.check_rights(dataset, &mut findings).await?;
        self.check_row_security(relations, &mut findings).await?;
        let used = source.key_columns.iter().chain(source.tag_columns.iter().flatten());
        let origins = self.origins(dataset, used.copied()).await?;
        for (position, rule) in dataset.watch.iter().enumerate() {
            let setting = format!("watch.{position}");
            let table = match self.look_at_table(&rule.table).await {
                Ok(table) => table,
                Err(error) if error.kind == ErrorKind::Unavailable => return Err(error),
                Err(error) => {
                    let message = format!("{} cannot be the name of a table: {}", rule.table, error.source);
                    findings.push(Finding::new(
                        &setting,
                        message,
                        "write schema.table, or \"Table\" in quotes",
                    ));
                    continue;
                }
            };
            check_rule(&setting, dataset, rule, (table.as_ref(), &origins), &mut findings);
        }
        Ok(findings)
    }

    /// `sort` and `order_by` stand in statements that no description of the query has seen.
    async fn check_statements(
        &self,
        source: &DatasetSource,
        findings: &mut Vec<Finding>,
    ) -> Result<(), SourceError> {
        let what = "describe a dataset's statements";
        let statements =
            [Some(("sort", &source.by_key)), source.first_keys.as_ref().map(|sql| ("warm.order_by", sql))];
        for (setting, sql) in statements.into_iter().flatten() {
            let mut connection =
                self.pool.acquire().await.map_err(|source| SourceError::new(what, source))?;
            let prepared = (&mut *connection).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await;
            let Err(source_error) = prepared else { continue };
            let error = SourceError::new(what, source_error);
            if error.is_transient() {
                return Err(error);
            }
            let columns: Vec<&str> = source.columns.iter().map(|(name, _)| name.as_str()).collect();
            let help = format!("it orders by columns of the query: {}", columns.join(", "));
            findings.push(Finding::new(
                setting,
                format!("Postgres does not accept it: {}", error.message()),
                help,
            ));
        }
        Ok(())
    }

    /// Who may describe a query need not be allowed to run it.
    async fn check_rights(&self, dataset: &Dataset, findings: &mut Vec<Finding>) -> Result<(), SourceError> {
        let sql = format!("explain select q.* from (\n{}\n) q", dataset.query);
        let explained = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&self.pool).await;
        let Err(source) = explained else { return Ok(()) };
        let error = SourceError::new("plan a query", source);
        if error.kind != ErrorKind::Forbidden {
            return if error.is_transient() { Err(error) } else { Ok(()) };
        }
        let role = self.role().await?;
        let help = format!("grant select on it to {role}");
        findings.push(Finding::new(
            "query",
            format!("the role {role} may not run it: {}", error.message()),
            help,
        ));
        Ok(())
    }

    async fn check_row_security(
        &self,
        relations: &[String],
        findings: &mut Vec<Finding>,
    ) -> Result<(), SourceError> {
        let sql = "select t.name from unnest($1::text[]) t(name)
            where to_regclass(t.name) is not null and row_security_active(to_regclass(t.name)::oid)";
        let hidden: Result<Vec<String>, _> =
            sqlx::query_scalar(sql).bind(relations).fetch_all(&self.pool).await;
        let hidden = hidden.map_err(|source| SourceError::new("look for row security", source))?;
        if hidden.is_empty() {
            return Ok(());
        }
        let role = self.role().await?;
        for table in hidden {
            let message = format!("row security of {table} decides which rows the role {role} sees");
            let help = "readers of Redis see those, whoever they are; or give the role BYPASSRLS";
            findings.push(Finding { is_warning: true, ..Finding::new("query", message, help) });
        }
        Ok(())
    }

    async fn role(&self) -> Result<String, SourceError> {
        let role: Result<String, _> =
            sqlx::query_scalar("select current_user::text").fetch_one(&self.pool).await;
        role.map_err(|source| SourceError::new("ask for the role's name", source))
    }

    async fn look_at_table(&self, name: &str) -> Result<Option<Table>, SourceError> {
        let what = "look at a watched table";
        let error = |source| SourceError::new(what, source);
        let sql = "select c.oid, c.relkind::text from pg_catalog.pg_class c where c.oid = to_regclass($1)";
        let Some(row) = sqlx::query(sql).bind(name).fetch_optional(&self.pool).await.map_err(error)? else {
            return Ok(None);
        };
        let oid: Oid = row.try_get(0).map_err(error)?;
        let kind: String = row.try_get(1).map_err(error)?;
        let columns = self.spelled_columns(oid).await.map_err(error)?;
        Ok(Some(Table { kind: kind.chars().next().unwrap_or('?'), columns }))
    }

    /// Those of these columns of the query that come straight from a relation, by their names in the query: of an expression,
    /// such as `id::text`, the type says nothing about the values.
    async fn origins(
        &self,
        dataset: &Dataset,
        wanted: impl Iterator<Item = usize>,
    ) -> Result<HashMap<String, SpelledColumn>, SourceError> {
        let error = |source| SourceError::new("describe a query", source);
        let sql = format!("select q.* from (\n{}\n) q", dataset.query);
        let mut connection = self.pool.acquire().await.map_err(error)?;
        let prepared = (&mut *connection).prepare(AssertSqlSafe(sql).into_sql_str()).await.map_err(error)?;
        drop(connection);
        let mut found = HashMap::new();
        for position in wanted {
            let Some(column) = prepared.columns().get(position) else { continue };
            let Some((relation, number)) = column.relation_id().zip(column.relation_attribute_no()) else {
                continue;
            };
            let columns = self.spelled_columns(relation).await.map_err(error)?;
            let origin = columns.into_iter().find(|origin| origin.number == number);
            found.extend(origin.map(|origin| (column.name().to_owned(), origin)));
        }
        Ok(found)
    }
}

fn check_rule(
    setting: &str,
    dataset: &Dataset,
    rule: &Watch,
    (found, origins): (Option<&Table>, &HashMap<String, SpelledColumn>),
    findings: &mut Vec<Finding>,
) {
    let table = &rule.table;
    let Some(found) = found else {
        let help = "give its schema too, if it is not in the role's search_path";
        findings.push(Finding::new(setting, format!("there is no table {table}"), help));
        return;
    };
    let odd = match found.kind {
        'r' | 'p' => None,
        'v' => Some("is a view: watch the tables that it reads"),
        'm' => Some(
            "is a materialized view, whose changes cannot be captured: publish an event after each refresh",
        ),
        'f' => Some("is a foreign table, whose changes cannot be captured: publish events"),
        _ => Some("is no table"),
    };
    if let Some(odd) = odd {
        findings.push(Finding::new(setting, format!("{table} {odd}"), "watch rules name tables"));
        return;
    }
    for (shown, name) in pairs_of(dataset, &rule.target) {
        let Some(column) = found.columns.iter().find(|column| column.name == name) else {
            let names: Vec<&str> = found.columns.iter().map(|column| column.name.as_str()).collect();
            let message = format!("the watched table {table} has no column {name}");
            findings.push(Finding::new(setting, message, format!("its columns: {}", names.join(", "))));
            continue;
        };
        let Some((shown, origin)) = shown.and_then(|shown| Some((shown, origins.get(shown)?))) else {
            continue;
        };
        if let Some(difference) = difference(column, origin) {
            let but = if column.kind == origin.kind { "and" } else { "but" };
            let message = format!(
                "the column {name} of {table} is of type {}, {but} {shown} of the key is of type {}: {difference}",
                column.kind, origin.kind
            );
            let help = "name the column that holds the key's own values, or take a column of the same type";
            findings.push(Finding::new(setting, message, help));
        }
    }
}

/// For each column that a watch rule names, the column of the query whose text it must have, if it can be told.
fn pairs_of<'a>(dataset: &'a Dataset, target: &'a WatchTarget) -> Vec<(Option<&'a str>, &'a str)> {
    match target {
        WatchTarget::Dataset => Vec::new(),
        WatchTarget::Key(pairs) => {
            pairs.iter().map(|(placeholder, column)| (Some(placeholder.as_str()), column.as_str())).collect()
        }
        // The tags that look the same but for the names in them.
        WatchTarget::Tag(template) => {
            let form = |template: &Template| {
                let names: Vec<&str> = template.columns().collect();
                template.render(&vec!["\0"; names.len()]).ok()
            };
            let own = dataset.tags.iter().filter(|tag| form(tag) == form(template));
            let mut pairs: Vec<_> = own
                .flat_map(|tag| tag.columns().zip(template.columns()))
                .map(|(shown, name)| (Some(shown), name))
                .collect();
            if pairs.is_empty() {
                pairs.extend(template.columns().map(|name| (None, name)));
            }
            pairs
        }
    }
}
