//! Whether a dataset that was thought of would pass `check`, before anything is installed.

use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::EngineError;
use crate::stores::postgres::{ErrorKind, Inspection, Weight, findings_of_reads};
use cachekeeper_config::FeedNeed;

/// What speaks against a proposed dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// Which of its settings.
    pub setting: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Whether `check` would refuse it. Else its changes would be missed, or it is odd.
    pub is_refused: bool,
}

impl Objection {
    fn refusing(setting: &str, message: String, help: String) -> Self {
        Self { setting: setting.to_owned(), message, help, is_refused: true }
    }
}

/// What speaks against a dataset, the graver first, and what its query reads where that can be told.
///
/// # Errors
/// [`EngineError`] where the database cannot be asked.
pub async fn objections(
    context: &Context,
    dataset: &Dataset,
) -> Result<(Vec<Objection>, Option<Inspection>), EngineError> {
    let postgres = &context.postgres;
    let settings = &dataset.settings;
    let source = match dataset.source(postgres).await {
        Ok(source) => source,
        Err(EngineError::Dataset { problem, .. }) => {
            let objection = Objection::refusing(&problem.setting, problem.message, problem.help);
            return Ok((vec![objection], None));
        }
        Err(EngineError::Source(error)) if error.kind == ErrorKind::Forbidden => {
            let finding = postgres.finding_of_rights(&error).await?;
            return Ok((vec![Objection::refusing("query", finding.message, finding.help)], None));
        }
        Err(error) => return Err(error),
    };
    let inspection = match postgres.inspect(&settings.query).await {
        Ok(inspection) => inspection,
        Err(error) if error.is_transient() => return Err(error.into()),
        // Coverage says so too: without it nothing is known of what the query reads.
        Err(error) => {
            let message = format!("what the query reads cannot be found out: {}", error.message());
            let help = "grant temporary on the database to the worker's role".to_owned();
            return Ok((vec![Objection::refusing("query", message, help)], None));
        }
    };
    if inspection.locks_rows {
        let message = "the query locks rows, and loads are read-only".to_owned();
        let help = "leave `for update` and the like out".to_owned();
        return Ok((vec![Objection::refusing("query", message, help)], Some(inspection)));
    }
    let relations: Vec<String> = inspection.relations.iter().map(|relation| relation.name.clone()).collect();
    let mut findings = postgres.check_dataset(settings, Some(&source), &relations).await?;
    findings.extend(findings_of_reads(&inspection, settings));
    findings.extend(postgres.check_watch_rules(settings, &inspection).await?);
    findings.sort_by_key(|finding| finding.weight != Weight::Wrong);
    let objections = findings.into_iter().map(|finding| Objection {
        is_refused: match finding.weight {
            Weight::Odd => false,
            Weight::NotCovered => settings.feed == FeedNeed::Required,
            Weight::Wrong => context.feed.is_on || !finding.setting.starts_with("watch"),
        },
        setting: finding.setting,
        message: finding.message,
        help: finding.help,
    });
    Ok((objections.collect(), Some(inspection)))
}
