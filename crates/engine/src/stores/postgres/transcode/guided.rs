//! Values that are read as the JSON that `to_json` makes of them, because a part of them has no other form, although other parts
//! of them do: numbers that are texts, bytes, floats. The kind says which part is which.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::kind::Kind;
use super::read::Malformed;
use super::sink::Sink;
use cachekeeper_config::Numeric;

const WHAT: &str = "json of a composite";

/// Appends a value given as JSON.
pub(crate) fn write_guided<S: Sink>(
    kind: &Kind,
    json: &[u8],
    numeric: Numeric,
    sink: &mut S,
) -> Result<(), Malformed> {
    if json == b"null" {
        sink.null();
        return Ok(());
    }
    match kind {
        Kind::Array(element) => write_list(element, json, numeric, sink),
        Kind::Composite(fields) if kind.needs_guide() => {
            let Fields(values) = parse(json)?;
            if values.len() != fields.len() {
                return Err(Malformed(WHAT));
            }
            sink.begin_map(fields.len());
            for (position, ((name, kind), value)) in fields.iter().zip(values).enumerate() {
                if 0 < position {
                    sink.separate();
                }
                sink.field(name);
                write_guided(kind, value.get().as_bytes(), numeric, sink)?;
            }
            sink.end_map();
            Ok(())
        }
        Kind::Numeric => write_numeric(unquoted(json)?, numeric, sink),
        Kind::Float4 => {
            let text = unquoted(json)?;
            sink.float4(text.parse().map_err(|_float| Malformed(WHAT))?, text);
            Ok(())
        }
        Kind::Float8 => {
            let text = unquoted(json)?;
            sink.float8(text.parse().map_err(|_float| Malformed(WHAT))?, text);
            Ok(())
        }
        Kind::Bytes => {
            let text = unquoted(json)?;
            // The backslash is quoted.
            sink.bytes(&hex(text.strip_prefix('\\').unwrap_or(text)).ok_or(Malformed(WHAT))?);
            Ok(())
        }
        _ => sink.json(json),
    }
}

/// A list, or a list of lists for each dimension: nothing that needs a guide is a list itself but a list.
fn write_list<S: Sink>(element: &Kind, json: &[u8], numeric: Numeric, sink: &mut S) -> Result<(), Malformed> {
    let leaf = element.leaf();
    if !leaf.needs_guide() {
        return sink.json(json);
    }
    let values: Vec<&RawValue> = parse(json)?;
    sink.begin_list(values.len());
    for (position, value) in values.into_iter().enumerate() {
        if 0 < position {
            sink.separate();
        }
        let json = value.get().as_bytes();
        if json.starts_with(b"[") {
            write_list(leaf, json, numeric, sink)?;
        } else {
            write_guided(leaf, json, numeric, sink)?;
        }
    }
    sink.end_list();
    Ok(())
}

/// A number given as its text.
pub(super) fn write_numeric<S: Sink>(text: &str, numeric: Numeric, sink: &mut S) -> Result<(), Malformed> {
    let is_special = text.ends_with(['N', 'y']);
    match numeric {
        Numeric::Number if !is_special => return sink.number_text(text),
        Numeric::Number if S::IS_BINARY => sink.float8(text.parse().unwrap_or(f64::NAN), text),
        Numeric::Number | Numeric::Text => sink.text(text),
    }
    Ok(())
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Malformed> {
    serde_json::from_slice(json).map_err(|_json| Malformed(WHAT))
}

/// The text of a number, or of what `to_json` quotes: bytes, and numbers that JSON does not have. None of them has escapes but the
/// backslash of bytes.
fn unquoted(json: &[u8]) -> Result<&str, Malformed> {
    let text = std::str::from_utf8(json).map_err(|_utf8| Malformed(WHAT))?;
    Ok(text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text))
}

/// Bytes as Postgres prints them.
pub(super) fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let pairs = digits.chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs.collect()
}

/// The values of an object, in their order.
struct Fields<'a>(Vec<&'a RawValue>);

struct FieldsVisitor;

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor).map(Fields)
    }
}

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some((_, value)) = fields.next_entry::<serde::de::IgnoredAny, &RawValue>()? {
            values.push(value);
        }
        Ok(values)
    }
}
