//! Whether the watch rules of a dataset name what they mean, and whether the texts that they capture are those of its keys and tags.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Column as _, Row as _, TypeInfo as _};

use super::watched::{Origins, Table, tags_like};
use super::{Finding, beyond, reach};
use crate::stores::postgres::spelling::{SpelledColumn, difference};
use crate::stores::postgres::statement::quote;
use crate::stores::postgres::{ErrorKind, Inspection, Postgres, SourceError};
use cachekeeper_config::{Dataset, Watch, WatchTarget};
use cachekeeper_protocol::template::Template;

/// Of PostgreSQL 18.
const VIRTUAL: &str = "its values are computed when they are read, and no trigger sees them";

impl Postgres {
    /// Looks for what is wrong with the watch rules of a dataset.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn check_watch_rules(
        &self,
        dataset: &Dataset,
        reads: &Inspection,
    ) -> Result<Vec<Finding>, SourceError> {
        let mut findings = Vec::new();
        let mut unreached = BTreeMap::new();
        let mut warnings: Vec<Finding> = beyond::moved_rows(dataset).into_iter().collect();
        let known_origins = self.origins(dataset).await?;
        let is_right = known_origins.is_some();
        let origins = known_origins.unwrap_or_default();
        for (position, rule) in dataset.watch.iter().enumerate() {
            let setting = format!("watch.{position}");
            let table = match self.look_at_table(&rule.table).await {
                Ok(table) => table,
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    let (message, help) = match error.kind {
                        ErrorKind::Forbidden => (
                            format!("the worker's role may not look at {}: {}", rule.table, error.message()),
                            "grant usage on its schema to the worker's role",
                        ),
                        _ => (
                            format!("{} cannot be the name of a table: {}", rule.table, error.source),
                            "write schema.table, or \"Table\" in quotes",
                        ),
                    };
                    findings.push(Finding::new(format!("{setting}.table"), message, help));
                    continue;
                }
            };
            let known = findings.len();
            check_rule(&setting, dataset, rule, (table.as_ref(), &origins), &mut findings);
            if is_right && findings.len() == known {
                warnings.extend(beyond::computed_key(&setting, dataset, rule, &origins));
            }
            if let Some(table) = table.filter(|_| findings.len() == known) {
                let found = reach::flaw(&setting, dataset, rule, (&table, &origins));
                unreached.extend(found.map(|finding| (position, finding)));
            }
        }
        findings.extend(self.relied_on(dataset, reads, unreached).await?);
        findings.extend(warnings);
        for (position, table) in dataset.reads.iter().enumerate() {
            let is_there = match self.look_at_table(table).await {
                Err(error) if error.is_transient() => return Err(error),
                found => found.is_ok_and(|found| found.is_some()),
            };
            if !is_there {
                let help = "give its schema too, if it is not in the role's search_path";
                let message = format!("there is no table {table}");
                findings.push(Finding::new(format!("reads.{position}"), message, help));
            }
        }
        Ok(findings)
    }

    async fn look_at_table(&self, name: &str) -> Result<Option<Table>, SourceError> {
        let what = "look at a watched table";
        let error = |source| SourceError::new(what, source);
        let sql = "select c.oid, c.relkind::text, c.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
            from pg_catalog.pg_class c where c.oid = to_regclass($1)";
        let Some(row) = sqlx::query(sql).bind(name).fetch_optional(&self.pool).await.map_err(error)? else {
            return Ok(None);
        };
        let oid: Oid = row.try_get(0).map_err(error)?;
        let kind: String = row.try_get(1).map_err(error)?;
        let columns = self.spelled_columns(oid).await.map_err(error)?;
        let is_catalog: bool = row.try_get(2).map_err(error)?;
        Ok(Some(Table { kind: kind.chars().next().unwrap_or('?'), is_catalog, columns }))
    }

    /// Those columns of keys and tags that come straight from a relation, by their names in the query: of an expression, such as
    /// `id::text`, the type says nothing about the values. None: the query is not right.
    async fn origins(&self, dataset: &Dataset) -> Result<Option<Origins>, SourceError> {
        let error = |source| SourceError::new("describe a query", source);
        let names: BTreeSet<&str> =
            dataset.key.columns().chain(dataset.tags.iter().flat_map(Template::columns)).collect();
        if names.is_empty() || dataset.watch.is_empty() {
            return Ok(Some(HashMap::new()));
        }
        let list: Vec<String> = names.iter().map(|name| format!("q.{}", quote(name))).collect();
        // Sent as text: what the driver knows of a prepared one may be out of date. No row is read.
        let sql = format!(
            "select {} from (select) s left join (\n{}\n) q on false",
            list.join(", "),
            dataset.query
        );
        let row = match sqlx::raw_sql(AssertSqlSafe(sql)).fetch_one(&self.pool).await.map_err(error) {
            // Nothing is loaded either, and that is said elsewhere.
            Err(error) if !error.is_transient() => return Ok(None),
            row => row?,
        };
        let mut found = HashMap::new();
        for column in sqlx::Row::columns(&row) {
            let Some((relation, number)) = column.relation_id().zip(column.relation_attribute_no()) else {
                let computed = SpelledColumn::computed(column.type_info().name());
                found.extend(computed.map(|computed| (column.name().to_owned(), computed)));
                continue;
            };
            let columns = self.spelled_columns(relation).await.map_err(error)?;
            let origin = columns.into_iter().find(|origin| origin.number == number);
            found.extend(origin.map(|origin| (column.name().to_owned(), origin)));
        }
        Ok(Some(found))
    }
}

fn check_rule(
    setting: &str,
    dataset: &Dataset,
    rule: &Watch,
    (found, origins): (Option<&Table>, &Origins),
    findings: &mut Vec<Finding>,
) {
    let table = &rule.table;
    let of_table = format!("{setting}.table");
    let Some(found) = found else {
        let help = "give its schema too, if it is not in the role's search_path";
        findings.push(Finding::new(of_table, format!("there is no table {table}"), help));
        return;
    };
    let odd = match found.kind {
        _ if found.is_catalog => Some("is a catalog, whose changes cannot be captured"),
        'r' | 'p' => None,
        'v' => Some("is a view: watch the tables that it reads"),
        'm' => Some(
            "is a materialized view, whose changes cannot be captured: publish an event after each refresh",
        ),
        'f' => Some("is a foreign table, whose changes cannot be captured: publish events"),
        _ => Some("is no table"),
    };
    if let Some(odd) = odd {
        findings.push(Finding::new(of_table, format!("{table} {odd}"), "watch rules name tables"));
        return;
    }
    for (shown, name) in pairs_of(dataset, &rule.target) {
        let setting = match (&rule.target, shown) {
            (WatchTarget::Key(_), Some(shown)) => format!("{setting}.key.{shown}"),
            (WatchTarget::Key(_), None) => format!("{setting}.key"),
            (WatchTarget::Tag(_), _) => format!("{setting}.tag"),
            (WatchTarget::Dataset, _) => setting.to_owned(),
        };
        let Some(column) = found.columns.iter().find(|column| column.name == name) else {
            let names: Vec<&str> = found.columns.iter().map(|column| column.name.as_str()).collect();
            let message = format!("the watched table {table} has no column {name}");
            findings.push(Finding::new(setting, message, format!("its columns: {}", names.join(", "))));
            continue;
        };
        if column.generated == "v" {
            let message = format!("the column {name} of {table} is virtual: {VIRTUAL}");
            let help = "watch the columns that it is computed from, or make it `stored`";
            findings.push(Finding::new(setting, message, help));
            continue;
        }
        let Some((shown, origin)) = shown.and_then(|shown| Some((shown, origins.get(shown)?))) else {
            continue;
        };
        // What is computed of another type may have the same texts.
        if origin.is_computed() && origin.kind != column.kind {
            continue;
        }
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
            let mut pairs: Vec<_> = tags_like(dataset, template)
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
