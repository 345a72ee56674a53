//! `cachekeeper audit`

use super::choose::choose;
use super::output::{Exit, Output};
use cachekeeper_engine::audit::{Extent, compare, fix};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::error::EngineError;

/// Compares Redis with Postgres.
pub async fn audit(
    context: &Context,
    names: &[String],
    with_fix: bool,
    sample: Option<u64>,
    out: &Output,
) -> Result<Exit, EngineError> {
    let chosen = match choose(context, names, out) {
        Ok(chosen) => chosen,
        Err(exit) => return Ok(exit),
    };
    let extent = Extent { sample, rate: None };
    let mut exit = Exit::Ok;
    for dataset in chosen {
        let found = with_current_epoch(context, || compare(context, dataset, &extent)).await?;
        let json = serde_json::to_value(&found).unwrap_or_default();
        out.result(&found.to_string(), &json);
        let is_mended = with_fix && !found.is_clean();
        if is_mended {
            let fixed = with_current_epoch(context, || fix(context, dataset, &found)).await?;
            out.note(&format!("{}: {fixed} entries mended", dataset.name()));
        }
        // What a row that cannot be read would say is not known, so nobody is told that all is right.
        if !found.unreadable.is_empty() || !found.is_clean() && !is_mended {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}
