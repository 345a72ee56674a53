//! Coverage is computed, and what is missing is installed, beside others who may do the same.

use std::collections::BTreeMap;

use super::Coverage;
use super::survey::{CoverageSurvey, TRYING_AGAIN, flaw};
use crate::context::Context;
use crate::error::{EngineError, chain};
use crate::stores::postgres::{ErrorKind, Fingerprint, TreeMember};
use crate::{epoch, log_limit};

/// How often somebody else may be faster in installing.
const OVERTAKEN_MAX: usize = 5;

/// Computes the coverage of every dataset. With `may_install`, what is missing is installed where this role may do so.
///
/// # Errors
/// [`EngineError`] if the database does not answer.
pub async fn look(context: &Context, may_install: bool) -> Result<Coverage, EngineError> {
    look_and(context, if may_install { Install::Missing } else { Install::Nothing }).await
}

/// Installs everything as the configuration has it, also where what is there would do, and computes the coverage.
///
/// # Errors
/// [`EngineError`] if the database does not answer.
pub async fn install_exactly(context: &Context) -> Result<Coverage, EngineError> {
    look_and(context, Install::Exactly).await
}

/// What may be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Install {
    Nothing,
    Missing,
    Exactly,
}

async fn look_and(context: &Context, what: Install) -> Result<Coverage, EngineError> {
    if !context.feed.is_on {
        return Ok(Coverage::default());
    }
    if what != Install::Nothing {
        // What is found belongs to an incarnation.
        epoch::poll(context).await?;
    }
    context.postgres.note_objects().await?;
    let marker = context.postgres.marker().await?;
    // Sessions read the settings of roles and databases once; names are resolved by those of now.
    context.postgres.renew_connections();
    context.catalog.iter().for_each(|dataset| dataset.forget_source());
    let mut survey = CoverageSurvey::take(context).await?;
    let mut installed = Installed::default();
    if what != Install::Nothing {
        (survey, installed) = install_as_found(context, survey, what == Install::Exactly).await?;
        // What is installed is seen for the first time.
        context.postgres.note_objects().await?;
        survey.captures = context.postgres.captures().await?;
        let members = context.postgres.trees(&survey.tables(context)).await?;
        // A partition that came meanwhile is part of what is found, and nobody has tried to make its trigger.
        let is_known = |member: &TreeMember| survey.members.iter().any(|known| known.oid == member.oid);
        installed.is_to_be_completed |= members.iter().any(|member| !tells(member) && !is_known(member));
        survey.members = members;
    }
    if survey.captures.iter().any(|capture| capture.settling.is_some()) {
        context.postgres.settle_captures().await?;
        survey.captures = context.postgres.captures().await?;
    }
    let coverage = survey.compute(context, &installed.obstacles).await?;
    Ok(Coverage { marker, is_to_be_completed: installed.is_to_be_completed, ..coverage })
}

/// Whether nothing in the catalogs has changed since this coverage was computed.
///
/// # Errors
/// [`EngineError`] if the database does not answer.
pub async fn is_current(context: &Context, coverage: &Coverage) -> Result<bool, EngineError> {
    let catalogs = &coverage.catalogs;
    let (state, incarnation) = context.postgres.catalog_state(&catalogs.expression).await?;
    let now = catalogs.fingerprints(&context.catalog, &state);
    let is_same =
        |(name, seen): (&String, &Fingerprint)| now.get(name).is_some_and(|now| now.is_unchanged_since(seen));
    let has_grown = catalogs.grown(&state).next().is_some();
    Ok(incarnation == coverage.incarnation && !has_grown && catalogs.seen.iter().all(is_same))
}

/// Installs what is missing. Where another process does the same, what it has done is looked at, and the rest done.
async fn install_as_found(
    context: &Context,
    mut survey: CoverageSurvey,
    is_exact: bool,
) -> Result<(CoverageSurvey, Installed), EngineError> {
    for _overtaken in 0..OVERTAKEN_MAX {
        match install(context, &survey, is_exact).await {
            Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed => {
                survey = CoverageSurvey::take(context).await?;
            }
            installed => return Ok((survey, installed?)),
        }
    }
    let installed = install(context, &survey, is_exact).await?;
    Ok((survey, installed))
}

/// What became of an attempt to install.
#[derive(Debug, Default)]
struct Installed {
    /// For each root why it was not possible.
    obstacles: BTreeMap<u32, String>,
    /// Somebody held a table whose changes are captured already, but for one trigger that only spares work.
    is_to_be_completed: bool,
}

/// Whether nothing is missing that this role could make: a partition that was created later has no trigger that tells when it is
/// emptied; its file tells, and more than that.
fn tells(member: &TreeMember) -> bool {
    member.kind != 'r' || !member.is_ours || member.tells_of_truncate()
}

async fn install(
    context: &Context,
    survey: &CoverageSurvey,
    is_exact: bool,
) -> Result<Installed, EngineError> {
    let mut installed = Installed::default();
    for (root, mut wanted) in survey.wanted(context) {
        let capture = survey.captures.iter().find(|capture| capture.root == root);
        let members: Vec<&TreeMember> = survey.members_of(root);
        // By row beats by statement: another namespace may ask for it.
        let is_by_row = capture.is_some_and(|capture| !capture.by_statement && capture.function.is_some());
        wanted.by_statement &= is_exact || !is_by_row;
        if let Some(reason) = survey.by_row_only.get(&root).filter(|_| wanted.by_statement) {
            if log_limit::due("changes captured by row", reason, 1).is_some() {
                tracing::warn!(reason, "changes cannot be captured by statement, and are captured by row");
            }
            wanted.by_statement = false;
        }
        let is_captured = capture.is_some_and(|capture| {
            wanted.columns.iter().all(|column| capture.columns.contains(column))
                && !capture.is_outdated
                && wanted.by_statement == capture.by_statement
                && members.iter().all(|member| flaw(member, capture).is_none())
        });
        if is_captured && members.iter().all(|member| tells(member)) && !is_exact {
            continue;
        }
        let done = context.postgres.install_capture(&members, root, &wanted, &context.feed.limits).await;
        match done {
            Ok(made) => {
                let table = members.first().map(|member| member.name.as_str()).unwrap_or_default();
                tracing::info!(table, triggers = made, "changes are captured");
            }
            Err(error)
                if error.is_unreachable()
                    || matches!(error.kind, ErrorKind::NoSchema | ErrorKind::Changed) =>
            {
                return Err(error.into());
            }
            Err(error) if is_captured => {
                installed.is_to_be_completed |= error.kind == ErrorKind::Cancelled;
                tracing::debug!(error = %chain(&error), "no trigger tells yet when a partition is emptied");
            }
            Err(error) => {
                let text = match error.kind {
                    ErrorKind::Forbidden => format!("its triggers are missing, and {}", error.message()),
                    ErrorKind::Cancelled => {
                        let holder = match &*error.source {
                            sqlx::Error::Protocol(holder) => holder.as_str(),
                            _ => "other transactions hold the table",
                        };
                        format!("its triggers are missing and {holder}; {TRYING_AGAIN}")
                    }
                    _ => chain(&error),
                };
                installed.obstacles.insert(root, text);
            }
        }
    }
    Ok(installed)
}
