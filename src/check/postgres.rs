//! Postgres, of `cachekeeper check`: what it is, the schema, each dataset, and whether every change would be captured.

use std::collections::BTreeSet;

use super::Check;
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::coverage;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::shown::few;
use cachekeeper_engine::stores::postgres::{ErrorKind, POSTGRES_MAJOR_MIN};

const URL: &str = "postgres.url";

impl Check<'_> {
    pub(super) async fn postgres(&mut self) -> Result<(), EngineError> {
        if !self.lets_in().await? || !self.is_recent().await? {
            return Ok(());
        }
        match self.context.postgres.poll().await {
            Err(error) if error.kind == ErrorKind::NoSchema => {
                let help = "run `cachekeeper migrate` as a user who may create a schema".to_owned();
                self.error(URL, "the schema `cachekeeper` is not installed", help);
            }
            Err(error) if error.kind == ErrorKind::Standby => {
                let help = "give the address of the primary; a standby cannot be asked about datasets";
                self.error(URL, error.told(), help.to_owned());
                return Ok(());
            }
            Err(error) if error.is_without_answer() => return Err(error.into()),
            Err(_) | Ok(_) => {}
        }
        let is_right = self.check_schema().await?;
        Self::told_unless_gone(self.check_room().await)?;
        // Datasets of which is said already why they are not covered, or that they are wrong.
        let mut told = BTreeSet::new();
        for dataset in self.context.catalog.iter() {
            let name = dataset.name();
            let query = format!("dataset.{name}.query");
            let checked = self.check_dataset(dataset).await;
            let is_told = self.noted_unless_gone(&query, checked)?.unwrap_or(true);
            if is_told || self.is_wrong(name) {
                told.insert(name.to_owned());
            }
        }
        // What all datasets read is known now.
        for dataset in self.context.catalog.iter() {
            let written = self.check_write(dataset).await;
            let setting = format!("dataset.{}.write.statement", dataset.name());
            self.noted_unless_gone(&setting, written)?;
            if self.is_wrong(dataset.name()) {
                told.insert(dataset.name().to_owned());
            }
        }
        // Else what is captured cannot be read.
        if is_right {
            let covered = self.check_coverage(&told).await;
            self.noted_unless_gone(URL, covered)?;
        }
        Ok(())
    }

    /// Whether Postgres lets a worker in; a server that does not answer is an error.
    async fn lets_in(&mut self) -> Result<bool, EngineError> {
        match self.context.postgres.ping().await {
            Err(error) if error.is_of_configuration() => {
                let (message, help) = match error.of_connecting() {
                    Some((message, help)) => (message.to_owned(), help),
                    None => (error.message(), None),
                };
                self.error(URL, message, help.map(str::to_owned));
                Ok(false)
            }
            reached => {
                reached?;
                Ok(true)
            }
        }
    }

    async fn is_recent(&mut self) -> Result<bool, EngineError> {
        let Some(major) = self.context.postgres.too_old().await? else { return Ok(true) };
        let message = format!("Postgres {major} is too old: Cachekeeper needs {POSTGRES_MAJOR_MIN} or newer");
        self.error(URL, message, "use a newer server".to_owned());
        Ok(false)
    }

    /// Whether the schema is as it should be, and this role may use it.
    async fn check_schema(&mut self) -> Result<bool, EngineError> {
        let flaws = self.context.postgres.schema_flaws().await.map_err(EngineError::from);
        let flaws = self.noted_unless_gone(URL, flaws)?.unwrap_or_default();
        if !flaws.is_empty() {
            let help = "run `cachekeeper migrate` as the schema's owner, which mends it".to_owned();
            let message =
                format!("the schema `cachekeeper` is not as this version makes it: {}", flaws.join("; "));
            self.error(URL, message, help);
        }
        let missing = self.context.postgres.missing_rights().await.map_err(EngineError::from);
        let missing = self.noted_unless_gone(URL, missing)?.flatten();
        if let Some(missing) = &missing {
            let message = format!("the role {} lacks {}", missing.role, few(&missing.rights));
            let help =
                format!("run `cachekeeper migrate --grant {}` as the owner of the schema", missing.role);
            self.error(URL, message, help);
        }
        Ok(flaws.is_empty() && missing.is_none())
    }

    /// Whether every change would be captured. Nothing is installed here.
    async fn check_coverage(&mut self, told: &BTreeSet<String>) -> Result<(), EngineError> {
        let asked = self.context.with_only(|name| !told.contains(name));
        let coverage = match coverage::look(&asked, false).await {
            Ok(coverage) => coverage,
            // Said already.
            Err(EngineError::Source(error)) if error.kind == ErrorKind::NoSchema => return Ok(()),
            Err(error) => return Err(error),
        };
        for (name, reason) in coverage.gaps() {
            let dataset = self.context.catalog.get(name);
            let is_required = dataset.is_some_and(|dataset| dataset.settings.feed == FeedNeed::Required);
            let message = format!("changes of dataset {name} would be missed: {reason}");
            let setting = format!("dataset.{name}.watch");
            if is_required {
                let help = "the dataset says feed = \"required\", so the worker would not be ready";
                self.error(&setting, message, help.to_owned());
            } else {
                let help = "its entries are as fresh as events and lifetimes keep them";
                self.warning(&setting, message, help.to_owned());
            }
        }
        Ok(())
    }
}
