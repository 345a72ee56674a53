//! `cachekeeper audit`

use super::choose::choose;
use super::output::{Exit, Output};
use cachekeeper_engine::audit::{Comparison, Extent, compare, fix};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::error::EngineError;

/// Compares Redis with Postgres: each shard of it, of which a single Redis is the only one.
pub async fn audit(
    shards: &[Context],
    names: &[String],
    with_fix: bool,
    sample: Option<u64>,
    out: &Output,
) -> Result<Exit, EngineError> {
    let Some(first) = shards.first() else { return Ok(Exit::Unavailable) };
    let chosen = match choose(first, names, out) {
        Ok(chosen) => chosen,
        Err(exit) => return Ok(exit),
    };
    // Keys fall into cluster slots by chance, so each shard has its share of a sample.
    let share = |sample: u64| sample.div_ceil(shards.len() as u64);
    let extent = Extent { sample: sample.map(share), rate: None };
    let mut exit = Exit::Ok;
    for dataset in chosen {
        let name = dataset.name();
        let mut found = Comparison { dataset: name.to_owned(), ..Comparison::default() };
        let mut fixed = 0;
        for context in shards {
            let Some(dataset) = context.catalog.get(name) else { continue };
            let of_shard = with_current_epoch(context, || compare(context, dataset, &extent)).await?;
            if with_fix && !of_shard.is_clean() {
                fixed += with_current_epoch(context, || fix(context, dataset, &of_shard)).await?;
            }
            found.add(of_shard);
        }
        let json = serde_json::to_value(&found).unwrap_or_default();
        out.result(&found.to_string(), &json);
        let is_mended = with_fix && !found.is_clean();
        if is_mended {
            out.note(&format!("{name}: {fixed} entries mended"));
        }
        // What a row that cannot be read would say is not known, so nobody is told that all is right.
        if !found.unreadable.is_empty() || !found.is_clean() && !is_mended {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}
