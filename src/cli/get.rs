//! `cachekeeper get`

use std::time::Duration;

use serde_json::{Value, json};

use super::output::{Exit, Output};
use cachekeeper_config::Format;
use cachekeeper_engine::compress::decompress;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::units::show_duration;

/// The largest value that is shown.
const SHOWN_MAX: usize = 64 << 20;

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
    let shown = match shown(&value, dataset.map(|dataset| &dataset.settings.format)) {
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

/// A stored value as JSON.
///
/// # Errors
/// Where it cannot be decompressed.
pub fn shown(value: &[u8], format: Option<&Format>) -> Result<Value, String> {
    let plain = decompress(value, SHOWN_MAX).map_err(|error| error.to_string())?;
    Ok(decode(&plain, format))
}

/// The value as JSON: what the dataset's format says, or what it looks like.
fn decode(plain: &[u8], format: Option<&Format>) -> Value {
    let as_text = || match std::str::from_utf8(plain) {
        Ok(text) => Value::from(text),
        Err(_binary) => {
            Value::from(format!("\\x{}", plain.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
        }
    };
    match format {
        Some(Format::Raw { .. }) => as_text(),
        Some(Format::Json { .. }) => serde_json::from_slice(plain).unwrap_or_else(|_other| as_text()),
        Some(Format::MessagePack { .. }) => rmp_serde::from_slice(plain).unwrap_or_else(|_other| as_text()),
        None => serde_json::from_slice(plain)
            .or_else(|_json| rmp_serde::from_slice(plain))
            .unwrap_or_else(|_other| as_text()),
    }
}
