//! `cachekeeper migrate`

use serde_json::json;

use super::output::{Exit, Output};
use crate::flows::context::Context;
use crate::flows::error::FlowError;
use crate::stores::postgres::Postgres;

/// Installs, updates or removes the schema.
pub async fn migrate(
    context: &Context,
    uninstall: bool,
    grant: Option<&str>,
    out: &Output,
) -> Result<Exit, FlowError> {
    if uninstall {
        context.postgres.uninstall().await?;
        out.result("schema cachekeeper is removed", &json!({ "uninstalled": true }));
        return Ok(Exit::Ok);
    }
    let state = context.postgres.migrate().await?;
    if let Some(role) = grant {
        context.postgres.grant(role).await?;
    }
    let text: Vec<String> =
        state.known.iter().map(|(version, name)| format!("{version:04} {name}: applied")).collect();
    out.result(&text.join("\n"), &json!({ "applied": state.applied }));
    Ok(Exit::Ok)
}

/// Prints the SQL, for somebody who applies it by hand.
pub fn print(out: &Output) {
    out.line("create schema if not exists cachekeeper;");
    for (version, sql) in Postgres::migration_sql() {
        out.line(&format!("\n-- {version:04}\n{}", sql.trim_end()));
    }
}
