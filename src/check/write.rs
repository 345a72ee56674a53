//! The write statements of `cachekeeper check`.

use std::collections::BTreeSet;

use super::Check;
use super::located::located;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::Effect;

impl Check<'_> {
    /// Whether the server accepts a dataset's write statement, and whether it writes anything. It is not carried out.
    pub(super) async fn check_write(&mut self, dataset: &Dataset) -> Result<(), EngineError> {
        let Some(statement) = &dataset.settings.write else { return Ok(()) };
        let setting = format!("dataset.{}.write.statement", dataset.name());
        match self.context.postgres.check_write(statement).await? {
            Ok(Effect::Rows(tables)) => {
                Self::told_unless_gone(self.check_written(&setting, &tables).await)?;
            }
            Ok(Effect::Functions) => {
                let message = "the write statement writes only what the functions write that it calls";
                let help = "it must return a row where something was written, and none otherwise: a write of no row is refused";
                self.warning(&setting, message, help.to_owned());
            }
            Ok(Effect::Nothing) => {
                let help = "use insert, update, delete or merge, or select a function that writes";
                self.error(&setting, "the write statement writes nothing", help.to_owned());
            }
            Err(problem) => self.add(located(self.config, dataset, problem)),
        }
        Ok(())
    }

    /// Whether anything can show what is written. A table that is read and not watched is told of the datasets that read it.
    async fn check_written(&mut self, setting: &str, tables: &BTreeSet<String>) -> Result<(), EngineError> {
        let postgres = &self.context.postgres;
        let rules = self.context.catalog.iter().flat_map(|dataset| &dataset.settings.watch);
        let known: BTreeSet<String> =
            rules.map(|rule| rule.table.clone()).chain(self.read.iter().cloned()).collect();
        let unknown = postgres.tables_without(tables, &known).await?;
        if unknown.len() == tables.len() {
            let names = unknown.into_iter().collect::<Vec<_>>().join(", ");
            let message =
                format!("a write changes {names}, which no dataset reads or watches: no entry shows it");
            let help =
                "write the tables that the dataset reads; or name this one in `reads` and in a watch rule";
            self.warning(setting, message, help.to_owned());
        }
        Ok(())
    }
}
