//! What `check` asks the database about a dataset beyond its query: whether every statement made of it is accepted and
//! allowed, whether changes of what it reads can be followed, and whether its watch rules name what they mean. Coverage asks the
//! last two questions too: what is refused here is not covered there, for the same reason.

mod beyond;
mod by_statement;
mod reach;
mod reads;
mod rights;
mod watch;
mod watched;

use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};

use super::{DatasetSource, ErrorKind, Postgres, SourceError};
use cachekeeper_config::Dataset;
pub use reads::findings_of_reads;
pub use rights::MissingRights;

/// Something that is wrong, or odd, with a setting of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which setting, in the dataset's section.
    pub setting: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// What it means.
    pub weight: Weight,
}

/// What a finding means for its dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It works all the same.
    Odd,
    /// Its changes cannot all be followed, so that it is not covered.
    NotCovered,
    /// It is not right. It is not covered either.
    Wrong,
}

impl Finding {
    fn new(setting: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Self {
        let weight = Weight::Wrong;
        Self { setting: setting.into(), message: message.into(), help: help.into(), weight }
    }

    fn weighing(self, weight: Weight) -> Self {
        Self { weight, ..self }
    }

    /// Whether a dataset with it is not covered.
    #[must_use]
    pub fn is_not_covered(&self) -> bool {
        self.weight != Weight::Odd
    }
}

/// What the server calls a column without a name.
const UNNAMED: &str = "?column?";

impl Postgres {
    /// Looks for what is wrong with the statements of a dataset, where they could be made, with the rights to run them, and with
    /// the way in which changes are to be captured.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn check_dataset(
        &self,
        dataset: &Dataset,
        source: Option<&DatasetSource>,
        relations: &[String],
    ) -> Result<Vec<Finding>, SourceError> {
        let mut findings = Vec::new();
        if let Some(source) = source {
            self.check_statements(source, &mut findings).await?;
            self.check_rights(dataset, &mut findings).await?;
            if source.columns.iter().any(|column| column.name == UNNAMED) {
                let message =
                    format!("a column of the query has no name, so its values stand under {UNNAMED:?}");
                let help = "name it: `… as name`";
                findings.push(Finding::new("query", message, help).weighing(Weight::Odd));
            }
        }
        self.check_row_security(relations, &mut findings).await?;
        self.check_capture(dataset, &mut findings).await?;
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
            [Some(("sort", &source.unstamped)), source.first_keys.as_ref().map(|sql| ("warm.order_by", sql))];
        for (setting, sql) in statements.into_iter().flatten() {
            let mut connection =
                self.pool.acquire().await.map_err(|source| SourceError::new(what, source))?;
            let prepared = (&mut *connection).prepare(AssertSqlSafe(sql.clone()).into_sql_str()).await;
            let Err(source_error) = prepared else { continue };
            let error = SourceError::new(what, source_error);
            if error.is_transient() {
                return Err(error);
            }
            // That is no fault of the dataset's.
            if matches!(error.kind, ErrorKind::NoSchema | ErrorKind::Forbidden) {
                return Ok(());
            }
            let columns: Vec<&str> = source.columns.iter().map(|column| column.name.as_str()).collect();
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
        findings.push(self.finding_of_rights(&error).await?);
        Ok(())
    }

    /// What a refusal of a dataset's query for want of rights means.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn finding_of_rights(&self, error: &SourceError) -> Result<Finding, SourceError> {
        let (message, help) = error.may_not_run(&self.role().await?);
        Ok(Finding::new("query", message, help))
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
            findings.push(Finding::new("query", message, help).weighing(Weight::Odd));
        }
        Ok(())
    }

    async fn role(&self) -> Result<String, SourceError> {
        let role: Result<String, _> =
            sqlx::query_scalar("select current_user::text").fetch_one(&self.pool).await;
        role.map_err(|source| SourceError::new("ask for the role's name", source))
    }
}
