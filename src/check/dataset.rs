//! A dataset of `cachekeeper check`: whether its query is accepted, and its settings fit it.

use super::Check;
use super::located::located;
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::{
    ErrorKind, Finding, Inspection, SourceProblem, Weight, findings_of_reads,
};

impl Check<'_> {
    /// Says what is wrong or odd about a dataset; whether it is told why it is not covered.
    pub(super) async fn check_dataset(&mut self, dataset: &Dataset) -> Result<bool, EngineError> {
        let (postgres, settings) = (&self.context.postgres, &dataset.settings);
        let path = |setting: &str| format!("dataset.{}.{setting}", dataset.name());
        let (mut source, mut is_accepted) = (None, true);
        match dataset.source(postgres).await {
            Ok(found) => source = Some(found),
            Err(EngineError::Dataset { problem, .. }) => {
                let mut all = postgres.problems_of(settings).await?;
                if all.is_empty() {
                    all.push(problem);
                }
                is_accepted = all.iter().all(|problem| problem.setting != "query");
                for problem in all {
                    self.add(located(self.config, dataset, problem));
                }
            }
            Err(EngineError::Source(error)) if error.kind == ErrorKind::Forbidden => {
                let Finding { message, help, .. } = postgres.finding_of_rights(&error).await?;
                self.error(&path("query"), message, help);
                is_accepted = false;
            }
            Err(error) => return Err(error),
        }
        let mut inspection = Inspection::default();
        if is_accepted {
            match postgres.inspect(&settings.query).await {
                Ok(found) => inspection = found,
                Err(error) if error.is_transient() => return Err(error.into()),
                Err(error) => {
                    let message = format!("what the query reads cannot be found out: {}", error.message());
                    let help = "grant temporary on the database to the worker's role, and let no event trigger refuse it; until then the \
                         dataset is not covered";
                    self.error(&path("query"), message, help.to_owned());
                }
            }
        }
        let relations: Vec<String> =
            inspection.relations.iter().map(|relation| relation.name.clone()).collect();
        self.read.extend(relations.iter().chain(&settings.reads).cloned());
        let mut findings = findings_of_reads(&inspection, settings);
        if inspection.locks_rows {
            self.add(located(self.config, dataset, locking(&settings.query)));
        } else {
            findings.extend(postgres.check_dataset(settings, source.as_deref(), &relations).await?);
        }
        findings.extend(postgres.check_watch_rules(settings, &inspection).await?);
        let is_wrong = findings.iter().any(|finding| finding.weight == Weight::Wrong);
        if let Some(source) = source.filter(|_| is_accepted && !inspection.locks_rows && !is_wrong) {
            Self::told_unless_gone(self.check_loads(dataset, &source).await)?;
        }
        let is_told = findings.iter().any(Finding::is_not_covered);
        for finding in findings {
            let is_warning = match finding.weight {
                Weight::Odd => true,
                Weight::NotCovered => settings.feed != FeedNeed::Required,
                Weight::Wrong => finding.setting.starts_with("watch") && !self.context.feed.is_on,
            };
            let setting = path(&finding.setting);
            if is_warning {
                self.warning(&setting, finding.message, finding.help);
            } else {
                self.error(&setting, finding.message, finding.help);
            }
        }
        Ok(is_told)
    }
}

/// A query that locks rows cannot run: loads are read-only.
fn locking(query: &str) -> SourceProblem {
    let lower = query.to_ascii_lowercase();
    let clauses = ["for update", "for no key update", "for share", "for key share"];
    let message = "the query locks rows, and loads are read-only";
    let help = "leave `for update`, `for share` and the like out: every load is one snapshot";
    let offset = clauses.iter().filter_map(|clause| lower.rfind(clause)).max();
    SourceProblem::new("query", message, help).at(offset)
}
