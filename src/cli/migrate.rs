//! `cachekeeper migrate`

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::coverage::Coverage;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::namespaces;
use cachekeeper_engine::stores::postgres::Postgres;

const ATTEMPTS: usize = 10;
const BETWEEN: Duration = Duration::from_secs(1);

/// Installs or updates the schema. Where a publication would copy it to subscribers that do not have it, it asks first.
pub async fn migrate(
    context: &Context,
    grant: Option<&str>,
    is_confirmed: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    let publications = context.postgres.publications_of_a_new_schema().await?;
    if !publications.is_empty() {
        out.note(&format!(
            "the publication {} is for all tables, so those of the schema cachekeeper would be in it too. Subscribers that do not \
             have them stop applying changes, of every table. Let the publication name its tables or schemas, and run this again; \
             or go on, where nobody subscribes.",
            publications.join(", ")
        ));
        if let Err(exit) = out.confirm(is_confirmed) {
            return Ok(exit);
        }
    }
    let state = context.postgres.migrate().await?;
    if let Some(role) = grant {
        context.postgres.grant(role).await?;
    }
    let mut text: Vec<String> =
        state.known.iter().map(|(version, name)| format!("{version:04} {name}: applied")).collect();
    let coverage = install_triggers(context).await?;
    namespaces::note_watched(context).await?;
    for (dataset, mark) in &coverage.datasets {
        text.push(match mark {
            Ok(_) => format!("dataset {dataset}: changes are captured"),
            Err(reason) => format!("dataset {dataset}: not covered: {reason}"),
        });
    }
    let gaps: BTreeMap<&String, &String> = coverage.gaps().collect();
    out.result(&text.join("\n"), &json!({ "applied": state.applied, "not_covered": gaps }));
    // What is watched is to be captured: not done is a failure.
    let is_asked_for = |name: &String| {
        context.catalog.get(name).is_some_and(|dataset| {
            dataset.settings.feed == FeedNeed::Required || !dataset.settings.watch.is_empty()
        })
    };
    Ok(if gaps.keys().any(|name| is_asked_for(name)) { Exit::Failed } else { Exit::Ok })
}

/// A table that somebody uses for long is waited for, but never so that others have to wait behind us for long.
async fn install_triggers(context: &Context) -> Result<Coverage, EngineError> {
    let mut coverage = coverage::install_exactly(context).await?;
    for _ in 1..ATTEMPTS {
        if !coverage.gaps().any(|(_, reason)| reason.contains(coverage::TRYING_AGAIN)) {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
        coverage = coverage::install_exactly(context).await?;
    }
    Ok(coverage)
}

/// Turns the triggers off, without waiting for anybody, or on again.
pub async fn capture(context: &Context, is_on: bool, out: &Output) -> Result<Exit, EngineError> {
    let switched = context.postgres.switch_capture(is_on, &context.feed.limits).await?;
    let text = if is_on {
        "changes are captured again; what may have been missed is loaded again once older transactions have ended"
    } else {
        "no change is captured from now on; the watermark leaves the datasets out"
    };
    out.result(
        &format!("{switched} captures switched: {text}"),
        &json!({ "switched": switched, "on": is_on }),
    );
    Ok(Exit::Ok)
}

/// Prints the SQL, for somebody who applies it by hand.
pub fn print(out: &Output) {
    out.line("create schema if not exists cachekeeper;");
    for (version, sql) in Postgres::migration_sql() {
        out.line(&format!("\n-- {version:04}\n{}", sql.trim_end()));
    }
}
