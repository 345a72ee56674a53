//! What `check` asks the database about a dataset beyond its query: whether every statement made of it is accepted and
//! allowed, and whether its watch rules name what they mean.

use sqlx::{AssertSqlSafe, Column as _, Executor, Row as _, SqlSafeStr, Statement as _};

use super::{DatasetSource, ErrorKind, Postgres, SourceError};
use cachekeeper_config::{Dataset, WatchTarget};

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

/// A column, as far as keys are compared by it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Comparable {
    name: String,
    /// The type's name, of a domain that of what it is made of.
    kind: String,
    is_enum: bool,
}

struct Table {
    /// As in `pg_class`.
    kind: char,
    columns: Vec<Comparable>,
}

const TABLE: &str = "
    select c.relkind::text, array_agg(a.attname::text order by a.attnum),
        array_agg(coalesce(b.typname, t.typname)::text order by a.attnum),
        array_agg(coalesce(b.typtype, t.typtype) = 'e' order by a.attnum)
    from pg_catalog.pg_class c
    join pg_catalog.pg_attribute a on a.attrelid = c.oid and 0 < a.attnum and not a.attisdropped
    join pg_catalog.pg_type t on t.oid = a.atttypid
    left join pg_catalog.pg_type b on b.oid = nullif(t.typbasetype, 0)
    where c.oid = to_regclass($1) group by c.relkind";

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
        let keys = self.key_columns(dataset, source).await?;
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
            check_rule(&setting, &rule.table, &rule.target, table.as_ref(), &keys, &mut findings);
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
        let error = |source| SourceError::new("look at a watched table", source);
        let Some(row) = sqlx::query(TABLE).bind(name).fetch_optional(&self.pool).await.map_err(error)? else {
            return Ok(None);
        };
        let kind: String = row.try_get(0).map_err(error)?;
        let names: Vec<String> = row.try_get(1).map_err(error)?;
        let kinds: Vec<String> = row.try_get(2).map_err(error)?;
        let enums: Vec<bool> = row.try_get(3).map_err(error)?;
        let columns = names.into_iter().zip(kinds).zip(enums);
        let columns = columns.map(|((name, kind), is_enum)| Comparable { name, kind, is_enum });
        Ok(Some(Table { kind: kind.chars().next().unwrap_or('?'), columns: columns.collect() }))
    }

    /// The columns of the key that come straight from a table: of an expression, such as `id::text`, the type says
    /// nothing about the values.
    async fn key_columns(
        &self,
        dataset: &Dataset,
        source: &DatasetSource,
    ) -> Result<Vec<Comparable>, SourceError> {
        let error = |source| SourceError::new("describe a query", source);
        let sql = format!("select q.* from (\n{}\n) q", dataset.query);
        let mut connection = self.pool.acquire().await.map_err(error)?;
        let prepared = (&mut *connection).prepare(AssertSqlSafe(sql).into_sql_str()).await.map_err(error)?;
        let mut found = Vec::new();
        for position in &source.key_columns {
            let Some(column) = prepared.columns().get(*position) else { continue };
            if column.relation_id().is_none() {
                continue;
            }
            let sql = "select coalesce(b.typname, t.typname)::text, coalesce(b.typtype, t.typtype) = 'e'
                from pg_catalog.pg_type t left join pg_catalog.pg_type b on b.oid = nullif(t.typbasetype, 0)
                where t.oid = $1";
            let kind = sqlx::query(sql).bind(column.type_info().oid());
            let Some(row) = kind.fetch_optional(&self.pool).await.map_err(error)? else { continue };
            found.push(Comparable {
                name: column.name().to_owned(),
                kind: row.try_get(0).map_err(error)?,
                is_enum: row.try_get(1).map_err(error)?,
            });
        }
        Ok(found)
    }
}

fn check_rule(
    setting: &str,
    table: &str,
    target: &WatchTarget,
    found: Option<&Table>,
    keys: &[Comparable],
    findings: &mut Vec<Finding>,
) {
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
    let pairs: Vec<(Option<&str>, &str)> = match target {
        WatchTarget::Dataset => Vec::new(),
        WatchTarget::Tag(template) => template.columns().map(|column| (None, column)).collect(),
        WatchTarget::Key(pairs) => {
            pairs.iter().map(|(placeholder, column)| (Some(placeholder.as_str()), column.as_str())).collect()
        }
    };
    for (placeholder, name) in pairs {
        let Some(column) = found.columns.iter().find(|column| column.name == name) else {
            let names: Vec<&str> = found.columns.iter().map(|column| column.name.as_str()).collect();
            let message = format!("the watched table {table} has no column {name}");
            findings.push(Finding::new(setting, message, format!("its columns: {}", names.join(", "))));
            continue;
        };
        let key = keys.iter().find(|key| Some(key.name.as_str()) == placeholder);
        if let Some(key) = key.filter(|key| !are_spelled_alike(column, key)) {
            let message = format!(
                "the column {name} of {table} is of type {}, but {} of the key is of type {}: their texts differ",
                column.kind, key.name, key.kind
            );
            let help = "name the column that holds the key's own values, or watch by tag";
            findings.push(Finding::new(setting, message, help));
        }
    }
}

/// Whether one value has one text in both types, so that a key made of a changed row is the key of its entry.
fn are_spelled_alike(one: &Comparable, other: &Comparable) -> bool {
    one.kind == other.kind || family(one) == family(other)
}

/// Types of one family write their values alike. Blanks at the end tell `bpchar` from text, and digits behind the point
/// tell `numeric` from whole numbers.
fn family(column: &Comparable) -> &str {
    match column.kind.as_str() {
        "int2" | "int4" | "int8" | "oid" => "integer",
        "text" | "varchar" | "name" | "citext" => "text",
        _ if column.is_enum => "text",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_that_write_alike_are_compared() {
        let of = |kind: &str| Comparable {
            name: String::new(),
            kind: kind.to_owned(),
            is_enum: kind.ends_with("_enum"),
        };
        for (one, other, alike) in [
            ("int4", "int8", true),
            ("text", "varchar", true),
            ("color_enum", "text", true),
            ("uuid", "uuid", true),
            ("uuid", "text", false),
            ("int4", "numeric", false),
            ("bpchar", "text", false),
            ("date", "timestamptz", false),
        ] {
            assert_eq!(are_spelled_alike(&of(one), &of(other)), alike, "{one} {other}");
        }
    }
}
