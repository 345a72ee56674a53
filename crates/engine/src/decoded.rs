//! Stored values as people read them, within bounds of size and depth: anybody may have stored them.

use std::fmt;
use std::io::Cursor;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

use crate::compress::decompress;
use cachekeeper_config::Format;
use cachekeeper_protocol::fields;

/// The largest value that is decoded to be shown.
const SHOWN_MAX: usize = 1 << 20;
/// So much is shown of a value that belongs to no dataset.
pub const FOREIGN_MAX: usize = 64 << 10;
/// How deep a value of MessagePack may be nested; JSON has the same limit.
const DEPTH_MAX: usize = 128;

/// A stored value as JSON: as the format says, or as what it looks like.
///
/// # Errors
/// Where it cannot be decompressed, or is too large to show.
pub fn decoded(value: &[u8], format: Option<&Format>) -> Result<Value, String> {
    if format == Some(&Format::Hash) {
        if SHOWN_MAX < value.len() {
            return Err("it is larger than 1 MiB".to_owned());
        }
        return Ok(decode(value, format));
    }
    let plain = decompress(value, SHOWN_MAX).map_err(|error| error.to_string())?;
    if SHOWN_MAX < plain.len() {
        return Err("it is larger than 1 MiB".to_owned());
    }
    Ok(decode(&plain, format))
}

/// The same, where other tasks do not wait for it.
///
/// # Errors
/// As [`decoded`].
pub async fn decoded_aside(value: Vec<u8>, format: Option<Format>) -> Result<Value, String> {
    let decoding = tokio::task::spawn_blocking(move || decoded(&value, format.as_ref()));
    decoding.await.unwrap_or_else(|_broken_off| Err("decoding it was broken off".to_owned()))
}

fn decode(plain: &[u8], format: Option<&Format>) -> Value {
    match format {
        Some(Format::Raw { .. }) => as_text(plain),
        Some(Format::Hash) => fields_of(plain).unwrap_or_else(|| as_text(plain)),
        Some(Format::Json { .. }) => serde_json::from_slice(plain).unwrap_or_else(|_other| as_text(plain)),
        Some(Format::MessagePack { .. }) => shown_message_pack(plain),
        // Text first: almost every text begins as a number of MessagePack does.
        None if std::str::from_utf8(plain).is_ok() => {
            serde_json::from_slice(plain).unwrap_or_else(|_other| as_text(plain))
        }
        None => shown_message_pack(plain),
    }
}

/// Whether these bytes are a value of a format, without a look at what it says.
pub(crate) fn is_of(plain: &[u8], format: &Format) -> bool {
    match format {
        Format::Json { .. } => serde_json::from_slice::<IgnoredAny>(plain).is_ok(),
        Format::MessagePack { .. } => message_pack::<IgnoredAny>(plain).is_some(),
        Format::Raw { .. } => true,
        Format::Hash => fields::decode(plain).is_some(),
    }
}

/// An object of texts.
fn fields_of(value: &[u8]) -> Option<Value> {
    let text = |bytes: &[u8]| match as_text(bytes) {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let fields = fields::decode(value)?;
    Some(Value::Object(fields.into_iter().map(|(name, value)| (text(name), as_text(value))).collect()))
}

fn shown_message_pack(plain: &[u8]) -> Value {
    message_pack(plain).map_or_else(|| as_text(plain), |Shown(value)| value)
}

/// One value and nothing behind it.
fn message_pack<T: DeserializeOwned>(plain: &[u8]) -> Option<T> {
    let mut deserializer = rmp_serde::Deserializer::new(Cursor::new(plain));
    deserializer.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut deserializer).ok()?;
    (deserializer.position() == plain.len() as u64).then_some(value)
}

/// Any value of MessagePack as JSON. What JSON has no form for is text: bytes as a `bytea` is shown, numbers that are not finite, keys that
/// are no text.
struct Shown(Value);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShownVisitor).map(Self)
    }
}

struct ShownVisitor;

impl<'de> Visitor<'de> for ShownVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value of MessagePack")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f32<E>(self, value: f32) -> Result<Value, E> {
        // By its text: the nearest f64 has digits that nobody stored.
        let number = value.to_string().parse().ok().and_then(Number::from_f64);
        Ok(number.map_or_else(|| Value::from(value.to_string()), Value::Number))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or_else(|| Value::from(value.to_string()), Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::from(hexadecimal(value)))
    }

    /// An extension: its number and its bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let (kind, Shown(bytes)) = Deserialize::deserialize(deserializer)?;
        let kind: i8 = kind;
        Ok(serde_json::json!({ "extension": kind, "bytes": bytes }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Shown(part)) = parts.next_element()? {
            all.push(part);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((Shown(key), Shown(value))) = parts.next_entry()? {
            let key = match key {
                Value::String(key) => key,
                other => other.to_string(),
            };
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

fn as_text(plain: &[u8]) -> Value {
    if let Ok(text) = std::str::from_utf8(plain) {
        return Value::from(text);
    }
    Value::from(hexadecimal(plain))
}

/// As Postgres writes a `bytea`.
fn hexadecimal(plain: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * plain.len());
    text.push_str("\\x");
    for byte in plain {
        text.extend(
            [byte >> 4, byte & 15].iter().filter_map(|digit| char::from_digit(u32::from(*digit), 16)),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachekeeper_config::Numeric;
    use serde_json::json;

    #[test]
    fn what_is_nested_too_deep_or_has_something_behind_it_is_no_message_pack() {
        let format = Format::MessagePack { numeric: Numeric::Text };
        let mut nested = vec![0x91; 701];
        nested.push(0xc0);
        assert!(decoded(&nested, Some(&format)).unwrap().is_string());
        assert!(!is_of(&nested, &format));
        assert!(decoded(&nested, None).unwrap().as_str().unwrap().starts_with("\\x91"));
        assert_eq!(decoded(&[0x91, 0x07], Some(&format)), Ok(json!([7])));
        assert_eq!(decoded(&[0x91, 0x07, 0x07], Some(&format)), Ok(json!("\\x910707")));
        assert!(!is_of(&[0xc0, 0xc0], &format) && is_of(&[0xc0], &format));
    }

    #[test]
    fn bytes_and_other_keys_of_message_pack_are_shown() {
        let format = Format::MessagePack { numeric: Numeric::Text };
        // {"a": bytes 0 255, 1: [NaN, 0.1 as 32 bits], "x": extension 5}
        let mut packed = vec![0x83, 0xa1, b'a', 0xc4, 2, 0, 255, 0x01, 0x92, 0xcb];
        packed.extend(f64::NAN.to_be_bytes());
        packed.push(0xca);
        packed.extend(0.1_f32.to_be_bytes());
        packed.extend([0xa1, b'x', 0xd4, 5, 7]);
        let shown = json!({ "a": "\\x00ff", "1": ["NaN", 0.1], "x": { "extension": 5, "bytes": "\\x07" } });
        assert_eq!(decoded(&packed, Some(&format)), Ok(shown.clone()));
        assert_eq!(decoded(&packed, None), Ok(shown));
    }

    #[test]
    fn a_value_of_no_dataset_is_text_first() {
        for (value, shown) in
            [(&b"hello"[..], json!("hello")), (b"7", json!(7)), (b"{\"a\":1}", json!({ "a": 1 }))]
        {
            assert_eq!(decoded(value, None), Ok(shown));
        }
        assert_eq!(decoded(&[0x81, 0xa1, b'a', 0x01], None), Ok(json!({ "a": 1 })));
    }

    #[test]
    fn what_is_too_large_is_not_shown() {
        let large = vec![b'x'; SHOWN_MAX + 1];
        assert!(decoded(&large, None).unwrap_err().contains("1 MiB"));
        let mut packed = Vec::new();
        assert!(crate::compress::compress(cachekeeper_config::Codec::Zstd, &large, &mut packed));
        assert!(decoded(&packed, None).is_err());
    }
}
