//! MessagePack as it was read, and what it is in JSON.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A decoded value, with its types kept apart.
#[derive(Debug, Clone, PartialEq)]
pub enum Pack {
    Null,
    Bool(bool),
    Integer(i128),
    Float4(f32),
    Float8(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Pack>),
    Map(Vec<(String, Pack)>),
}

struct PackVisitor;

impl<'de> Deserialize<'de> for Pack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PackVisitor)
    }
}

impl<'de> Visitor<'de> for PackVisitor {
    type Value = Pack;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MessagePack")
    }

    fn visit_unit<E>(self) -> Result<Pack, E> {
        Ok(Pack::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Pack, E> {
        Ok(Pack::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Pack, E> {
        Ok(Pack::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Pack, E> {
        Ok(Pack::Integer(value.into()))
    }

    fn visit_f32<E>(self, value: f32) -> Result<Pack, E> {
        Ok(Pack::Float4(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Pack, E> {
        Ok(Pack::Float8(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Pack, E> {
        Ok(Pack::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Pack, E> {
        Ok(Pack::Bytes(value.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Pack, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Pack::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Pack, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Pack::Map(map))
    }
}

/// Whether JSON and MessagePack say the same: bytes are `\x` and hex digits in JSON, and what is no number is a text there.
pub fn is_same(json: &Value, pack: &Pack) -> bool {
    match (json, pack) {
        (Value::Null, Pack::Null) => true,
        (Value::Bool(a), Pack::Bool(b)) => a == b,
        (Value::Number(a), Pack::Integer(b)) => {
            a.as_i128().is_some_and(|a| a == *b) || a.as_f64().is_some_and(|a| a == 0.0 && *b == 0)
        }
        // By its text: half way between two of them, the way through a longer one would end at the other.
        (Value::Number(a), Pack::Float4(b)) => a.to_string().parse::<f32>() == Ok(*b),
        // The test's own reading of long numbers is not exact in the last digit.
        (Value::Number(a), Pack::Float8(b)) => a.as_f64().is_some_and(|a| (a - b).abs() <= a.abs() * 1e-15),
        (Value::String(a), Pack::Float4(b)) => is_special(a, f64::from(*b)),
        (Value::String(a), Pack::Float8(b)) => is_special(a, *b),
        (Value::String(a), Pack::Text(b)) => a == b,
        (Value::String(a), Pack::Bytes(b)) => {
            let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
            *a == format!("\\x{hex}")
        }
        (Value::Array(a), Pack::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b)),
        (Value::Object(a), Pack::Map(b)) => {
            a.len() == b.len() && b.iter().all(|(name, b)| a.get(name).is_some_and(|a| is_same(a, b)))
        }
        _ => false,
    }
}

fn is_special(text: &str, value: f64) -> bool {
    match text {
        "NaN" => value.is_nan(),
        "Infinity" => value == f64::INFINITY,
        "-Infinity" => value == f64::NEG_INFINITY,
        _ => false,
    }
}

/// JSON with each of its numbers in quotes.
pub fn numbers_as_text(json: &str) -> String {
    let mut output = String::new();
    let mut is_text = false;
    let mut is_number = false;
    let mut is_escaped = false;
    for character in json.chars() {
        let goes_on = character.is_ascii_digit() || matches!(character, '-' | '+' | '.' | 'e' | 'E');
        let begins = !is_number && (character == '-' || character.is_ascii_digit());
        if !is_text && (begins || (is_number && !goes_on)) {
            output.push('"');
            is_number = begins;
        }
        if character == '"' && !is_escaped {
            is_text = !is_text;
        }
        is_escaped = character == '\\' && !is_escaped;
        output.push(character);
    }
    if is_number {
        output.push('"');
    }
    output
}
