//! What `check` refuses about a dataset, so that it is not covered either.

use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::{EngineError, chain};
use crate::stores::postgres::{Finding, Inspection, findings_of_reads};

/// Why a dataset that reads this cannot be followed.
pub(super) async fn of(
    context: &Context,
    dataset: &Dataset,
    reads: &Inspection,
) -> Result<Option<String>, EngineError> {
    if let Some(refusal) = of_source(context, dataset).await? {
        return Ok(Some(refusal));
    }
    match first(findings_of_reads(reads, &dataset.settings)) {
        None => of_watch_rules(context, dataset, reads).await,
        refusal => Ok(refusal),
    }
}

/// Why it cannot be loaded at all.
async fn of_source(context: &Context, dataset: &Dataset) -> Result<Option<String>, EngineError> {
    match dataset.source(&context.postgres).await {
        Err(EngineError::Dataset { problem, .. }) => Ok(Some(problem.message)),
        Err(EngineError::Source(error)) if error.is_unreachable() => Err(error.into()),
        // Whether it can be loaded now is for whoever loads.
        Err(_) | Ok(_) => Ok(None),
    }
}

/// The first of these findings by which a dataset is not covered.
fn first(findings: Vec<Finding>) -> Option<String> {
    findings.into_iter().find(Finding::is_not_covered).map(|finding| finding.message)
}

async fn of_watch_rules(
    context: &Context,
    dataset: &Dataset,
    reads: &Inspection,
) -> Result<Option<String>, EngineError> {
    match context.postgres.check_watch_rules(&dataset.settings, reads).await {
        Ok(findings) => Ok(first(findings)),
        Err(error) if error.is_unreachable() => Err(error.into()),
        Err(error) => Ok(Some(chain(&error))),
    }
}
