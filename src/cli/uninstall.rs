//! `cachekeeper migrate --uninstall`

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::stores::postgres::ErrorKind;
use cachekeeper_engine::stores::redis::LeaseAttempt;

/// Removes what this namespace has in Postgres. It says what that is, and what others keep, and asks.
pub async fn uninstall(
    context: &Context,
    server: &str,
    is_confirmed: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    let namespace = context.redis.keys().namespace();
    let users = context.postgres.users(namespace).await?;
    if !users.is_installed {
        out.result("the schema cachekeeper is not there", &json!({ "uninstalled": false, "users": {} }));
        return Ok(Exit::Ok);
    }
    let mut lines = vec![format!("of the namespace {namespace:?} in {server} are removed:")];
    if !users.own.is_empty() {
        lines.push(format!("  the triggers of {}", users.own.join(", ")));
    }
    if users.others.is_empty() {
        lines.push(
            "  the schema cachekeeper with everything in it; no other namespace is known to use it"
                .to_owned(),
        );
    } else {
        lines.push("  the records of its write commands".to_owned());
    }
    for (other, tables) in &users.others {
        let tables = if tables.is_empty() { "no table".to_owned() } else { tables.join(", ") };
        lines.push(format!("the namespace {other:?} uses the schema too and keeps it; it watches {tables}"));
    }
    let leader = [LeaseName::FEED, LeaseName::COMMANDS].map(|lease| lease.name.into_owned());
    match context.redis.lock_holder(&leader).await {
        Ok(None) => {}
        Ok(Some(LeaseAttempt::Held { owner, .. })) => lines.push(format!(
            "warning: the worker {owner} is running; it would follow no change any more and not be ready: stop it first"
        )),
        Ok(Some(LeaseAttempt::Granted(_))) => {}
        Err(error) => lines.push(format!("whether a worker is running cannot be told: {}", error.told())),
    }
    out.note(&lines.join("\n"));
    if let Err(exit) = out.confirm(is_confirmed) {
        return Ok(exit);
    }
    let removed = match context.postgres.uninstall(namespace).await {
        Err(error) if error.kind == ErrorKind::Forbidden => {
            out.failure(&format!(
                "{}; nothing more is removed. Run it as the role that ran `migrate`: \
                 CACHEKEEPER__POSTGRES__URL=postgres://ROLE@HOST/DATABASE cachekeeper migrate --uninstall",
                error.told()
            ));
            return Ok(Exit::Configuration);
        }
        removed => removed?,
    };
    let text = match (removed.has_removed_schema, removed.busy.as_slice()) {
        (true, _) => "the schema cachekeeper is removed".to_owned(),
        (false, []) => format!("the namespace {namespace:?} is removed"),
        (false, busy) => format!(
            "not finished: {} is in use ({}); run it again once the transactions that use it have ended",
            busy.join(", "),
            removed.holder.as_deref().unwrap_or("others wait for it too")
        ),
    };
    out.result(
        &text,
        &json!({ "uninstalled": removed.busy.is_empty(), "schema_removed": removed.has_removed_schema,
            "triggers_dropped": removed.tables, "busy": removed.busy }),
    );
    if removed.busy.is_empty() {
        out.note("Redis keeps this namespace's own keys; `cachekeeper purge` takes them out");
    }
    Ok(if removed.busy.is_empty() { Exit::Ok } else { Exit::Failed })
}
