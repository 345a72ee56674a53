//! Values of hashes: each field is a text, and what the caller's type wants is read from it.

use std::fmt;
use std::str::FromStr;

use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use cachekeeper_protocol::fields;

/// The value of a hash's fields: a struct or a map. A field that is missing is `None` of an option; numbers, bools (`true`, `t`, `false`,
/// `f`) and variants are read from the text, lists, maps and structs from its JSON.
///
/// # Errors
/// Which field is no value of its type, and why.
pub(super) fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    let fields = fields::decode(value).ok_or("it is no hash")?;
    T::deserialize(Fields(fields)).map_err(|error| error.to_string())
}

/// Why a value is none of its type.
#[derive(Debug)]
struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Self(reason.to_string())
    }
}

/// All fields.
struct Fields<'de>(Vec<fields::Field<'de>>);

impl<'de> Deserializer<'de> for Fields<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let named = self.0.into_iter().map(|(name, value)| (Name(name), Text { name, value }));
        visitor.visit_map(MapDeserializer::new(named))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct enum identifier ignored_any
    }
}

/// The name of a field.
struct Name<'de>(&'de [u8]);

impl<'de> IntoDeserializer<'de, Mismatch> for Name<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Name<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match std::str::from_utf8(self.0) {
            Ok(name) => visitor.visit_borrowed_str(name),
            Err(_no_text) => visitor.visit_borrowed_bytes(self.0),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq
        tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The value of a field.
struct Text<'de> {
    name: &'de [u8],
    value: &'de [u8],
}

impl<'de> Text<'de> {
    fn text(&self) -> Result<&'de str, Mismatch> {
        std::str::from_utf8(self.value).map_err(|_no_text| self.mismatch("is no text"))
    }

    fn mismatch(&self, reason: impl fmt::Display) -> Mismatch {
        Mismatch(format!("field {}: {reason}", String::from_utf8_lossy(self.name)))
    }

    fn parsed<N: FromStr>(&self) -> Result<N, Mismatch>
    where
        N::Err: fmt::Display,
    {
        self.text()?.parse().map_err(|error| self.mismatch(error))
    }

    /// From its JSON.
    fn json<V>(
        &self,
        read: impl FnOnce(&mut serde_json::Deserializer<serde_json::de::StrRead<'de>>) -> serde_json::Result<V>,
    ) -> Result<V, Mismatch> {
        let mut json = serde_json::Deserializer::from_str(self.text()?);
        let value = read(&mut json).map_err(|error| self.mismatch(error))?;
        json.end().map_err(|error| self.mismatch(error))?;
        Ok(value)
    }
}

impl<'de> IntoDeserializer<'de, Mismatch> for Text<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! parsed {
    ($($deserialize:ident => $visit:ident,)+) => {
        $(fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
            visitor.$visit(self.parsed()?).map_err(|error: Mismatch| self.mismatch(error))
        })+
    };
}

macro_rules! json {
    ($($deserialize:ident($($argument:ident: $kind:ty),*),)+) => {
        $(fn $deserialize<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value, Mismatch> {
            self.json(|json| json.$deserialize($($argument,)* visitor))
        })+
    };
}

impl<'de> Deserializer<'de> for Text<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        let visited = match std::str::from_utf8(self.value) {
            Ok(text) => visitor.visit_borrowed_str(text),
            Err(_no_text) => visitor.visit_borrowed_bytes(self.value),
        };
        visited.map_err(|error: Mismatch| self.mismatch(error))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.value {
            b"true" | b"t" => visitor.visit_bool(true),
            b"false" | b"f" => visitor.visit_bool(false),
            _ => Err(self.mismatch("is neither true nor false")),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_borrowed_bytes(self.value).map_err(|error: Mismatch| self.mismatch(error))
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        let text = self.text()?;
        if text.starts_with('{') {
            return self.json(|json| json.deserialize_enum(name, variants, visitor));
        }
        let variant: StrDeserializer<'_, Mismatch> = text.into_deserializer();
        variant.deserialize_enum(name, variants, visitor).map_err(|error| self.mismatch(error))
    }

    parsed! {
        deserialize_i8 => visit_i8,
        deserialize_i16 => visit_i16,
        deserialize_i32 => visit_i32,
        deserialize_i64 => visit_i64,
        deserialize_i128 => visit_i128,
        deserialize_u8 => visit_u8,
        deserialize_u16 => visit_u16,
        deserialize_u32 => visit_u32,
        deserialize_u64 => visit_u64,
        deserialize_u128 => visit_u128,
        deserialize_f32 => visit_f32,
        deserialize_f64 => visit_f64,
        deserialize_char => visit_char,
    }

    json! {
        deserialize_unit(),
        deserialize_unit_struct(name: &'static str),
        deserialize_seq(),
        deserialize_tuple(length: usize),
        deserialize_tuple_struct(name: &'static str, length: usize),
        deserialize_map(),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
    }

    forward_to_deserialize_any! { str string identifier ignored_any }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::Deserialize;

    use super::*;

    fn value(fields: &[(&str, &[u8])]) -> Vec<u8> {
        fields::encode(fields.iter().map(|(name, value)| (name.as_bytes(), *value)))
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Color {
        Red,
        Blue,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Cents(i64);

    #[derive(Debug, PartialEq, Deserialize)]
    struct Row {
        id: u64,
        name: String,
        price: f64,
        cents: Cents,
        is_new: bool,
        was_new: bool,
        color: Option<Color>,
        gone: Option<String>,
        tags: Vec<Option<String>>,
        size: BTreeMap<String, i32>,
        mark: char,
    }

    const FIELDS: &[(&str, &[u8])] = &[
        ("cents", b"-5"),
        ("color", b"blue"),
        ("id", b"18446744073709551615"),
        ("is_new", b"true"),
        ("mark", "ü".as_bytes()),
        ("name", b""),
        ("other", b"\xff\x00"),
        ("price", b"1.5"),
        ("size", b"{\"a\":1}"),
        ("tags", b"[\"x\",null]"),
        ("was_new", b"f"),
    ];

    #[test]
    fn what_a_type_wants_is_read_from_the_text() {
        let row: Row = decode(&value(FIELDS)).unwrap();
        let expected = Row {
            id: u64::MAX,
            name: String::new(),
            price: 1.5,
            cents: Cents(-5),
            is_new: true,
            was_new: false,
            color: Some(Color::Blue),
            gone: None,
            tags: vec![Some("x".to_owned()), None],
            size: BTreeMap::from([("a".to_owned(), 1)]),
            mark: 'ü',
        };
        assert_eq!(row, expected);
        assert_eq!(decode::<Option<Row>>(&value(FIELDS)).unwrap(), Some(expected));
        let map: HashMap<String, String> = decode(&value(&[("a", b"1"), ("b", b"")])).unwrap();
        assert_eq!(map, HashMap::from([("a".into(), "1".into()), ("b".into(), String::new())]));
        let json: serde_json::Value = decode(&value(&[("a", b"1")])).unwrap();
        assert_eq!(json, serde_json::json!({ "a": "1" }));
    }

    #[test]
    fn an_error_names_the_field() {
        for (name, wrong) in [
            ("id", &b"-1"[..]),
            ("id", b""),
            ("is_new", b"yes"),
            ("price", b"cheap"),
            ("color", b"green"),
            ("tags", b"[1"),
            ("tags", b"[] []"),
            ("name", b"\xff"),
            ("mark", b"ab"),
        ] {
            let mut fields = FIELDS.to_vec();
            fields.iter_mut().filter(|(other, _)| *other == name).for_each(|(_, value)| *value = wrong);
            let error = decode::<Row>(&value(&fields)).unwrap_err();
            assert!(error.starts_with(&format!("field {name}: ")), "{error}");
        }
        let error = decode::<Row>(&value(&[("name", b"x")])).unwrap_err();
        assert!(error.contains("missing field `id`"), "{error}");
        assert!(decode::<Row>(b"{}").unwrap_err().contains("no hash"));
    }
}
