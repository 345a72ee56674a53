//! `cachekeeper audit`

use super::output::{Exit, Output};
use crate::flows::compare::{Comparison, compare, fix};
use crate::flows::context::Context;
use crate::flows::error::FlowError;
use crate::flows::reload::with_current_order;

/// Keys of each kind that are named in the text.
const SHOWN: usize = 10;

/// Compares Redis with Postgres.
pub async fn audit(
    context: &Context,
    names: &[String],
    with_fix: bool,
    out: &Output,
) -> Result<Exit, FlowError> {
    let chosen = match super::choose(context, names, out) {
        Ok(chosen) => chosen,
        Err(exit) => return Ok(exit),
    };
    let mut exit = Exit::Ok;
    for dataset in chosen {
        let found = with_current_order(context, || compare(context, dataset, |_| {})).await?;
        let json = serde_json::to_value(&found).unwrap_or_default();
        out.result(&describe(&found), &json);
        if found.is_clean() {
            continue;
        }
        exit = Exit::Failed;
        if with_fix {
            let fixed = with_current_order(context, || fix(context, dataset, &found)).await?;
            out.note(&format!("{}: {fixed} entries mended", dataset.name()));
            exit = Exit::Ok;
        }
    }
    Ok(exit)
}

/// One dataset's result as text.
pub fn describe(found: &Comparison) -> String {
    let mut text = format!("{}: {} entries looked at, {} right", found.dataset, found.checked, found.right);
    for (kind, keys) in [("stale", &found.stale), ("extra", &found.extra), ("missing", &found.missing)] {
        if keys.is_empty() {
            continue;
        }
        let shown: Vec<&str> = keys.iter().take(SHOWN).map(String::as_str).collect();
        let more = if SHOWN < keys.len() { ", …" } else { "" };
        text.push_str(&format!("\n  {} {kind}: {}{more}", keys.len(), shown.join(", ")));
    }
    text
}
