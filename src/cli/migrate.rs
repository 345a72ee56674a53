//! `cachekeeper migrate`

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::output::{Exit, Output};
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::coverage::Coverage;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::namespaces;
use cachekeeper_engine::stores::postgres::{ErrorKind, Postgres};
use cachekeeper_protocol::units::show_duration;

/// Pauses between attempts beside somebody who holds a lock.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Waits for those who hold locks: growing pauses, one message, up to a limit. Nobody waits behind us meanwhile.
struct Patience<'a> {
    limit: Duration,
    until: Instant,
    pauses: Backoff,
    is_told: bool,
    out: &'a Output,
}

impl<'a> Patience<'a> {
    fn new(limit: Duration, out: &'a Output) -> Self {
        let pauses = Backoff::new(RETRY_MIN, RETRY_MAX);
        Self { limit, until: Instant::now() + limit, pauses, is_told: false, out }
    }

    /// Pauses before the next attempt; false: the limit is reached.
    async fn has_waited(&mut self, reason: &str) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.out.error(&format!(
                "not finished within {}: {reason}; run it again once that has ended",
                show_duration(self.limit)
            ));
            return false;
        }
        if !self.is_told {
            self.is_told = true;
            self.out.note(&format!("{reason}; waiting for it, at most {}", show_duration(self.limit)));
        }
        tokio::time::sleep(self.pauses.pause().min(left)).await;
        true
    }
}

/// Installs or updates the schema; where a right is missing, says who can.
pub async fn migrate(
    context: &Context,
    grant: Option<&str>,
    wait: Duration,
    is_confirmed: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    match install(context, grant, wait, is_confirmed, out).await {
        Err(EngineError::Source(error)) if error.kind == ErrorKind::Forbidden => {
            let role = context.postgres.own_role().await.ok().flatten();
            let role = grant.map(str::to_owned).or(role).unwrap_or_else(|| "ROLE".to_owned());
            out.failure(&format!(
                "{}. It needs a role that may create a schema in this database, and that owns the watched tables or is a member of their owners: \
                 CACHEKEEPER__POSTGRES__URL=postgres://OWNER@HOST/DATABASE cachekeeper migrate --grant {role}; for tables of several owners \
                 see docs/installing.md",
                error.told()
            ));
            Ok(Exit::Configuration)
        }
        done => done,
    }
}

/// Where a publication would copy the schema to subscribers that do not have it, it asks first.
async fn install(
    context: &Context,
    grant: Option<&str>,
    wait: Duration,
    is_confirmed: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    if let Some(exit) = unknown_role(context, grant, out).await? {
        return Ok(exit);
    }
    let publications = context.postgres.publications_of_a_new_schema().await?;
    if !publications.is_empty() {
        out.note(&would_be_published(&publications));
        if let Err(exit) = out.confirm(is_confirmed) {
            return Ok(exit);
        }
    }
    let before = context.postgres.migration_state().await.map(|state| state.applied).unwrap_or_default();
    let mut patience = Patience::new(wait, out);
    let mut mended = Vec::new();
    let state = loop {
        match context.postgres.migrate_and_tell(&mut mended).await {
            Err(error) if error.kind == ErrorKind::Cancelled => {
                if !patience.has_waited(&error.message()).await {
                    return Ok(Exit::Failed);
                }
            }
            other => break other?,
        }
    };
    let new = state.known.iter().filter(|(version, _)| !before.contains(version));
    let mut text: Vec<String> = new.map(|(version, name)| format!("{version:04} {name}: applied")).collect();
    if text.is_empty() {
        text.push("the schema is up to date".to_owned());
    }
    text.extend(mended.iter().map(|what| format!("mended: {what}")));
    let coverage = install_triggers(context, &mut patience).await?;
    // Last: what was only just made is granted too.
    let left = match grant {
        Some(role) => give(context, role, out).await?,
        None => None,
    };
    namespaces::note_watched(context).await?;
    // What the owner of a type does could be run with those rights, if anything of a type were evaluated (faults C1).
    for (table, owner, role) in context.postgres.captures_by_others().await? {
        out.note(&format!(
            "note: the triggers of {table} run with the rights of {role}, not of its owner {owner}"
        ));
    }
    for (dataset, mark) in &coverage.datasets {
        text.push(match mark {
            Ok(_) => format!("dataset {dataset}: changes are captured"),
            Err(reason) => format!("dataset {dataset}: not covered: {reason}"),
        });
    }
    let gaps: BTreeMap<&String, &String> = coverage.gaps().collect();
    out.result(
        &text.join("\n"),
        &json!({ "applied": state.applied, "mended": mended, "not_covered": gaps, "left": left }),
    );
    // What is watched is to be captured: not done is a failure.
    let is_asked_for = |name: &String| {
        context.catalog.get(name).is_some_and(|dataset| {
            dataset.settings.feed == FeedNeed::Required || !dataset.settings.watch.is_empty()
        })
    };
    let is_done = left.is_none() && !gaps.keys().any(|name| is_asked_for(name));
    Ok(if is_done { Exit::Ok } else { Exit::Failed })
}

/// Gives the rights of a worker; answers the statement that is left to somebody else.
async fn give(context: &Context, role: &str, out: &Output) -> Result<Option<String>, EngineError> {
    context.postgres.grant(role).await?;
    let left = context.postgres.missing_temporary(role).await?;
    if let Some(statement) = &left {
        out.note(&format!(
            "note: {role} lacks TEMPORARY, without which no change is covered; the owner of the database gives it: {statement}"
        ));
    }
    Ok(left)
}

fn would_be_published(publications: &[String]) -> String {
    format!(
        "the publication {} is for all tables, so those of the schema cachekeeper would be in it too. Subscribers that do not have \
         them stop applying changes, of every table. Let the publication name its tables or schemas, and run this again; or go on, \
         where nobody subscribes.",
        publications.join(", ")
    )
}

/// Before anything is done: a role that is to have rights must be there.
async fn unknown_role(
    context: &Context,
    grant: Option<&str>,
    out: &Output,
) -> Result<Option<Exit>, EngineError> {
    let Some(role) = grant else { return Ok(None) };
    if context.postgres.has_role(role).await? {
        return Ok(None);
    }
    out.failure(&format!("no role is named {role}: create it first, or name another one; nothing was done"));
    Ok(Some(Exit::Usage))
}

/// A table that somebody uses for long is waited for, but never so that others have to wait behind us for long.
async fn install_triggers(context: &Context, patience: &mut Patience<'_>) -> Result<Coverage, EngineError> {
    loop {
        let coverage = coverage::install_exactly(context).await?;
        let busy = coverage.gaps().find(|(_, reason)| reason.contains(coverage::TRYING_AGAIN));
        let Some((_, reason)) = busy else { return Ok(coverage) };
        let reason = reason.trim_end_matches(coverage::TRYING_AGAIN).trim_end_matches("; ");
        if !patience.has_waited(reason).await {
            return Ok(coverage);
        }
    }
}

/// Turns the triggers off, without waiting for anybody, or on again.
pub async fn capture(context: &Context, is_on: bool, out: &Output) -> Result<Exit, EngineError> {
    let (namespaces, owner) = context.postgres.who_uses_captures().await?;
    let switched = match context.postgres.switch_capture(is_on, &context.feed.limits).await {
        Err(error) if error.kind == ErrorKind::Forbidden => {
            let who = format!("only {owner}, who installed them, or a superuser may switch the captures");
            out.failure(&format!("{}; {who}", error.told()));
            return Ok(Exit::Failed);
        }
        switched => switched?,
    };
    let text = if is_on {
        "changes are captured again; what may have been missed is loaded again once older transactions have ended"
    } else {
        "no change is captured from now on; the watermark leaves the datasets out"
    };
    out.result(
        &format!("{switched} captures switched, of namespace {}: {text}", namespaces.join(", ")),
        &json!({ "switched": switched, "on": is_on, "namespaces": namespaces }),
    );
    Ok(Exit::Ok)
}

/// Prints what it would do, as SQL for somebody who runs it by hand.
pub async fn print(context: &Context, grant: Option<&str>, out: &Output) -> Result<Exit, EngineError> {
    if let Some(exit) = unknown_role(context, grant, out).await? {
        return Ok(exit);
    }
    let publications = context.postgres.publications_of_a_new_schema().await?;
    if !publications.is_empty() {
        out.note(&would_be_published(&publications));
    }
    let own = context.postgres.own_role().await?;
    let mut script = coverage::migration_script(context, grant).await?;
    if let (Some(own), None, false) = (&own, grant, script.is_empty()) {
        script.extend(Postgres::grant_script(own));
    }
    if script.is_empty() {
        out.line("-- nothing is to be done");
    }
    for statement in &script {
        out.line(&if statement.starts_with("-- print") {
            statement.clone()
        } else {
            format!("{statement};\n")
        });
    }
    Ok(Exit::Ok)
}
