//! Stored values as people read them.

use serde_json::Value;

use crate::compress::decompress;
use cachekeeper_config::Format;

/// The largest value that is decoded.
const DECODED_MAX: usize = 64 << 20;

/// A stored value as JSON: as the format says, or as what it looks like.
///
/// # Errors
/// Where it cannot be decompressed.
pub fn decoded(value: &[u8], format: Option<&Format>) -> Result<Value, String> {
    let plain = decompress(value, DECODED_MAX).map_err(|error| error.to_string())?;
    Ok(decode(&plain, format))
}

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
