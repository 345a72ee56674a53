//! `cachekeeper get`

use std::time::Duration;

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::decoded::FOREIGN_MAX;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::explain::EntryFacts;
use cachekeeper_engine::shown::escaped;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::units::show_duration;

/// The longest entry that is read to be shown.
const ENTRY_MAX: usize = 64 << 20;

/// Shows an entry.
pub async fn get(context: &Context, key: &str, out: &Output) -> Result<Exit, EngineError> {
    let dataset = context.catalog.of_key(key).map(|(dataset, _)| dataset);
    let most = if dataset.is_some() { ENTRY_MAX } else { FOREIGN_MAX };
    let seen = context.redis.see(&[key], most).await?;
    let Some(entry) = seen.entries.into_iter().next().filter(|entry| entry.is_there()) else {
        out.result(&format!("{} is not in Redis", escaped(key)), &json!({ "key": key, "found": false }));
        return Ok(Exit::Failed);
    };
    let shown = EntryFacts::shown(&entry, dataset.map(|dataset| &dataset.settings.format)).await;
    let Some(value) = shown.value else {
        let reason = shown.undecodable.unwrap_or_default();
        out.failure(&format!("{}: {reason} ({} bytes)", escaped(key), shown.bytes));
        return Ok(Exit::Failed);
    };
    let facts = json!({
        "key": key,
        "found": true,
        "dataset": dataset.map(|dataset| dataset.name()),
        "bytes": shown.bytes,
        "left_ms": shown.left_ms,
        "slot": slot(key.as_bytes()),
        "value": value,
    });
    let left = shown.left_ms.map(|left| show_duration(Duration::from_secs(left / 1000)));
    let lines: Vec<String> = format!("{value:#}").lines().map(|line| escaped(line).into_owned()).collect();
    let value = lines.join("\n");
    let text = format!(
        "{value}\n\ndataset {}, {} bytes, {} left, slot {}",
        dataset.map_or("(none)", |dataset| dataset.name()),
        shown.bytes,
        left.as_deref().unwrap_or("no end"),
        slot(key.as_bytes())
    );
    out.result(&text, &facts);
    Ok(Exit::Ok)
}
