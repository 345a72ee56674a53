//! Values of a write's parameters: from JSON, MessagePack or text to what Postgres reads as their types.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::WriteError;
use crate::stores::postgres::write::WriteStatement;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// As JSON has it; what it means is decided by the parameter's type.
    Value(Value),
    /// A text that is read as the type's own input, as a person types it.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl<T: Into<Value>> From<T> for Parameter {
    fn from(value: T) -> Self {
        Self::Value(value.into())
    }
}

/// Values by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// Reads parameters: a JSON object, or a MessagePack map.
///
/// # Errors
/// Why they are neither.
pub fn decode(bytes: &[u8]) -> Result<Parameters, String> {
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    if is_json {
        let wrong = |error: serde_json::Error| format!("`params` is not a JSON object: {error}");
        let object: BTreeMap<String, &RawValue> = serde_json::from_slice(bytes).map_err(wrong)?;
        let read = |(name, raw): (String, &RawValue)| {
            let text = raw.get();
            // A number stays the text that it is: a float would round it.
            let parameter = if text.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
                Parameter::Text(text.to_owned())
            } else {
                Parameter::Value(serde_json::from_str(text).map_err(wrong)?)
            };
            Ok((name, parameter))
        };
        return object.into_iter().map(read).collect();
    }
    let map: BTreeMap<String, Packed> = rmp_serde::from_slice(bytes)
        .map_err(|error| format!("`params` is neither a JSON object nor a MessagePack map: {error}"))?;
    Ok(map.into_iter().map(|(name, value)| (name, value.0)).collect())
}

/// A MessagePack value: bytes stay bytes, anything else is as in JSON.
struct Packed(Parameter);

impl<'de> serde::Deserialize<'de> for Packed {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Packed;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a value")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Packed, E> {
                Ok(Packed(Parameter::Bytes(bytes.to_vec())))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Packed, E> {
                Ok(Packed(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Packed, E> {
                Ok(Packed(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Packed, E> {
                Ok(Packed(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Packed, E> {
                // JSON has no such numbers, and null is another value.
                let odd = [
                    (value.is_nan(), "NaN"),
                    (value == f64::INFINITY, "Infinity"),
                    (value == f64::NEG_INFINITY, "-Infinity"),
                ];
                match odd.into_iter().find(|(is_it, _)| *is_it) {
                    Some((_, text)) => Ok(Packed(Parameter::Text(text.to_owned()))),
                    None => Ok(Packed(Parameter::Value(Value::from(value)))),
                }
            }
            fn visit_str<E>(self, value: &str) -> Result<Packed, E> {
                Ok(Packed(value.into()))
            }
            fn visit_unit<E>(self) -> Result<Packed, E> {
                Ok(Packed(Parameter::Value(Value::Null)))
            }
            fn visit_none<E: serde::de::Error>(self) -> Result<Packed, E> {
                self.visit_unit()
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, items: A) -> Result<Packed, A::Error> {
                let list =
                    serde::Deserialize::deserialize(serde::de::value::SeqAccessDeserializer::new(items))?;
                Ok(Packed(Parameter::Value(Value::Array(list))))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, entries: A) -> Result<Packed, A::Error> {
                let map =
                    serde::Deserialize::deserialize(serde::de::value::MapAccessDeserializer::new(entries))?;
                Ok(Packed(Parameter::Value(Value::Object(map))))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// The texts of a statement's parameters, one for each place.
///
/// # Errors
/// [`WriteError::Parameter`] for one that is missing, unknown, or cannot be of its type.
pub fn bind(statement: &WriteStatement, given: &Parameters) -> Result<Vec<Option<String>>, WriteError> {
    let wrong = |name: &str, problem: String| WriteError::Parameter { name: name.to_owned(), problem };
    let has = |name: &String| statement.places.iter().any(|(known, _)| known == name);
    if let Some(unknown) = given.keys().find(|name| !has(name)) {
        let mut names: Vec<&str> = statement.places.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let problem = format!("the statement has no such parameter; it has {}", names.join(", "));
        return Err(wrong(unknown, problem));
    }
    let text = |(name, kind): &(String, String)| {
        let value =
            given.get(name).ok_or_else(|| wrong(name, format!("is missing; it is of type {kind}")))?;
        text_of(value, kind).map_err(|problem| wrong(name, problem))
    };
    statement.places.iter().map(text).collect()
}

fn text_of(value: &Parameter, kind: &str) -> Result<Option<String>, String> {
    let is_json = matches!(kind, "json" | "jsonb");
    match value {
        Parameter::Text(text) => Ok(Some(text.clone())),
        Parameter::Bytes(bytes) if kind == "bytea" => {
            Ok(Some(format!("\\x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())))
        }
        Parameter::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(_binary) => Err(format!("is binary, but of type {kind}")),
        },
        Parameter::Value(Value::Null) => Ok(None),
        Parameter::Value(value) if is_json => Ok(Some(value.to_string())),
        Parameter::Value(Value::Array(items)) if kind.ends_with("[]") => array(items).map(Some),
        Parameter::Value(Value::Array(_) | Value::Object(_)) => {
            Err(format!("is a list or an object, but of type {kind}"))
        }
        Parameter::Value(Value::String(text)) if text.contains('\0') => {
            Err("has a zero byte, which no text in Postgres can have".to_owned())
        }
        Parameter::Value(Value::String(text)) => Ok(Some(text.clone())),
        Parameter::Value(other) => Ok(Some(other.to_string())),
    }
}

/// A list as Postgres reads arrays (PostgreSQL manual, 8.15.2).
fn array(items: &[Value]) -> Result<String, String> {
    let item = |value: &Value| match value {
        Value::Null => Ok("NULL".to_owned()),
        Value::Array(inner) => array(inner),
        Value::String(text) => Ok(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))),
        Value::Object(_) => {
            Ok(format!("\"{}\"", value.to_string().replace('\\', "\\\\").replace('"', "\\\"")))
        }
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
    };
    let items: Result<Vec<String>, String> = items.iter().map(item).collect();
    Ok(format!("{{{}}}", items?.join(",")))
}
