//! `cachekeeper get`

use std::time::Duration;

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::decoded::decoded;
use cachekeeper_engine::error::EngineError;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::units::show_duration;

/// Shows an entry.
pub async fn get(context: &Context, key: &str, out: &Output) -> Result<Exit, EngineError> {
    let mut read = context.redis.look_at(&[key]).await?;
    let Some((Some(value), left)) = read.pop() else {
        out.result(&format!("{key} is not in Redis"), &json!({ "key": key, "found": false }));
        return Ok(Exit::Failed);
    };
    let dataset = context.catalog.of_key(key).map(|(dataset, _)| dataset);
    let left = u64::try_from(left).ok().map(Duration::from_millis);
    let stored = value.len();
    let shown = match decoded(&value, dataset.map(|dataset| &dataset.settings.format)) {
        Ok(shown) => shown,
        Err(error) => {
            out.failure(&format!("{key}: {error}"));
            return Ok(Exit::Failed);
        }
    };
    let facts = json!({
        "key": key,
        "found": true,
        "dataset": dataset.map(|dataset| dataset.name()),
        "bytes": stored,
        "left_ms": left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        "slot": slot(key.as_bytes()),
        "value": shown,
    });
    let text = format!(
        "{shown:#}\n\ndataset {}, {stored} bytes, {} left, slot {}",
        dataset.map_or("(none)", |dataset| dataset.name()),
        left.map_or_else(|| "no end".to_owned(), |left| show_duration(Duration::from_secs(left.as_secs()))),
        slot(key.as_bytes())
    );
    out.result(&text, &facts);
    Ok(Exit::Ok)
}
