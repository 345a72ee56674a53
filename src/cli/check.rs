//! `cachekeeper check`

use serde_json::json;

use super::choose::with_reason;
use super::output::{Exit, Output};
use crate::check::{notes, of_admin, of_servers};
use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::Severity;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;

/// Checks what only the servers know.
pub async fn check(config: Config, offline: bool, out: &Output) -> Result<Exit, EngineError> {
    let mut problems = of_admin(&config);
    if !offline {
        let context = Context::new(&config)?;
        if let Err(error) = of_servers(&config, &context, &mut problems).await {
            return Err(with_reason(&context, error).await);
        }
    }
    let notes = notes(&config);
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if out.json {
        out.line(
            &json!({ "ok": errors == 0, "datasets": config.datasets.len(), "problems": problems, "notes": notes })
                .to_string(),
        );
    } else {
        if !problems.is_empty() {
            out.problems(&problems);
        }
        if errors == 0 {
            let how = if offline { "servers not asked" } else { "servers asked" };
            let plural = if config.datasets.len() == 1 { "dataset" } else { "datasets" };
            out.line(&format!("configuration is right: {} {plural}, {how}", config.datasets.len()));
        }
        notes.iter().for_each(|note| out.note(&format!("note: {note}")));
    }
    Ok(if errors == 0 { Exit::Ok } else { Exit::Configuration })
}
