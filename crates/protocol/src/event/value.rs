//! The part of JSON and MessagePack that an event needs, read the same way from both.
//!
//! Why not `serde_json::Value`: a field given twice would silently lose the first, and MessagePack can say things that
//! it cannot hold. Memory stays in proportion to the message: lengths that a message claims are not believed.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// Levels of nesting, also of fields that are ignored: each costs stack.
pub(super) const DEPTH_MAX: usize = 64;
/// Members of one list.
pub(super) const MEMBERS_MAX: usize = 100_000;

/// What a field of an event holds.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    /// Bytes that are not UTF-8.
    Bytes(Vec<u8>),
    List(Vec<Value>),
    /// A map, a MessagePack extension, or anything in a field that is ignored.
    Other,
}

impl Value {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a number that is no integer",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes that are not UTF-8",
            Self::List(_) => "a list",
            Self::Other => "a map",
        }
    }
}

/// Which limit was met: serde's errors can only carry text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Excess {
    Depth,
    Members,
}

/// Reads one value.
#[derive(Clone, Copy)]
struct ValueSeed<'a> {
    /// Whether the value is wanted; else it is only passed over.
    is_wanted: bool,
    depth: usize,
    excess: &'a Cell<Option<Excess>>,
}

impl<'a> ValueSeed<'a> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if DEPTH_MAX <= self.depth {
            return Err(self.exceed(Excess::Depth));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn ignoring(self) -> Self {
        Self { is_wanted: false, ..self }
    }

    fn exceed<E: serde::de::Error>(self, excess: Excess) -> E {
        self.excess.set(Some(excess));
        E::custom("a limit is exceeded")
    }

    fn text(self, text: &str) -> Value {
        if self.is_wanted { Value::Text(text.to_owned()) } else { Value::Other }
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        // MessagePack may write 42 as a signed number.
        Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(self.text(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(match std::str::from_utf8(value) {
            Ok(text) => self.text(text),
            Err(_) if self.is_wanted => Value::Bytes(value.to_owned()),
            Err(_) => Value::Other,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut list = Vec::new();
        while let Some(member) = members.next_element_seed(seed)? {
            if !self.is_wanted {
                continue;
            }
            if MEMBERS_MAX <= list.len() {
                return Err(self.exceed(Excess::Members));
            }
            list.push(member);
        }
        Ok(if self.is_wanted { Value::List(list) } else { Value::Other })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let seed = self.ignoring().deeper()?;
        while entries.next_key_seed(seed)?.is_some() {
            entries.next_value_seed(seed)?;
        }
        Ok(Value::Other)
    }

    /// A MessagePack extension: a number and bytes.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(IgnoredAny)?;
        Ok(Value::Other)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _data: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("an enum is no value"))
    }
}

/// Reads the map that an event is; `take` is called for each field that `is_known`, in order, also for one that comes
/// twice.
struct MapSeed<'a, K, T> {
    is_known: K,
    take: T,
    excess: &'a Cell<Option<Excess>>,
}

impl<'de, K: Fn(&str) -> bool, T: FnMut(String, Option<Value>)> Visitor<'de> for MapSeed<'_, K, T> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        let wanted = ValueSeed { is_wanted: true, depth: 1, excess: self.excess };
        while let Some(name) = entries.next_key_seed(wanted)? {
            match name {
                Value::Text(name) if (self.is_known)(&name) => {
                    let value = entries.next_value_seed(wanted)?;
                    (self.take)(name, Some(value));
                }
                Value::Text(name) => {
                    entries.next_value_seed(wanted.ignoring())?;
                    (self.take)(name, None);
                }
                Value::Null
                | Value::Bool(_)
                | Value::Unsigned(_)
                | Value::Signed(_)
                | Value::Float(_)
                | Value::Bytes(_)
                | Value::List(_)
                | Value::Other => {
                    // No name of ours, so an unknown field.
                    entries.next_value_seed(wanted.ignoring())?;
                }
            }
        }
        Ok(())
    }
}

/// Why bytes could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Unreadable {
    Excess(Excess),
    Malformed(String),
}

impl Unreadable {
    fn of(excess: &Cell<Option<Excess>>, error: &dyn fmt::Display) -> Self {
        excess.take().map_or_else(|| Self::Malformed(error.to_string()), Self::Excess)
    }
}

/// Reads a JSON object: known fields with their value, unknown ones with none.
pub(super) fn read_json(
    text: &str,
    is_known: impl Fn(&str) -> bool,
    take: impl FnMut(String, Option<Value>),
) -> Result<(), Unreadable> {
    let excess = Cell::new(None);
    let mut decoder = serde_json::Deserializer::from_str(text);
    let seed = MapSeed { is_known, take, excess: &excess };
    (&mut decoder)
        .deserialize_map(seed)
        .and_then(|()| decoder.end())
        .map_err(|error| Unreadable::of(&excess, &error))
}

/// Reads a MessagePack map, as [`read_json`].
pub(super) fn read_msgpack(
    bytes: &[u8],
    is_known: impl Fn(&str) -> bool,
    take: impl FnMut(String, Option<Value>),
) -> Result<(), Unreadable> {
    let excess = Cell::new(None);
    let mut decoder = rmp_serde::Deserializer::new(bytes);
    let seed = MapSeed { is_known, take, excess: &excess };
    let read = (&mut decoder).deserialize_any(seed);
    read.map_err(|error| Unreadable::of(&excess, &error))?;
    match decoder.into_inner().len() {
        0 => Ok(()),
        rest => Err(Unreadable::Malformed(format!("{rest} bytes follow the map"))),
    }
}

/// Reads one JSON value, as it stands in a field of a stream entry.
pub(super) fn read_json_value(text: &str) -> Result<Value, Unreadable> {
    let excess = Cell::new(None);
    let mut decoder = serde_json::Deserializer::from_str(text);
    let seed = ValueSeed { is_wanted: true, depth: 1, excess: &excess };
    let read = seed.deserialize(&mut decoder).and_then(|value| decoder.end().map(|()| value));
    read.map_err(|error| Unreadable::of(&excess, &error))
}
