//! Invalidation events: a statement that the source changed before the event was published.

use serde_json::Value;

use super::keyspace::RESERVED_PREFIX;

/// What an event asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Load again; the old value stays readable until then.
    Refresh,
    /// Delete.
    Delete,
}

/// One event. Everything that it names is obeyed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Event {
    /// What to do; none: as the dataset says.
    pub op: Option<Op>,
    /// For deduplication.
    pub id: Option<String>,
    /// When it was published, in Unix milliseconds.
    pub at_ms: Option<u64>,
    /// Keys.
    pub keys: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
    /// A dataset.
    pub dataset: Option<String>,
    /// Entries of the dataset, each by the texts of its placeholders; none: the whole dataset.
    pub ids: Vec<Vec<String>>,
}

/// Bytes of one event at most.
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a key, tag or id at most.
pub const NAME_BYTES_MAX: usize = 10 * 1024;

/// Why a message is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidEvent {
    /// One word, for the metric.
    pub reason: &'static str,
    /// What is wrong.
    pub message: String,
}

fn invalid(reason: &'static str, message: impl Into<String>) -> InvalidEvent {
    InvalidEvent { reason, message: message.into() }
}

impl Event {
    /// Reads a message. The first byte that is no blank decides: `{` is JSON, a MessagePack map is a MessagePack map,
    /// anything else is a bare key.
    ///
    /// # Errors
    /// [`InvalidEvent`].
    pub fn decode(message: &[u8]) -> Result<Self, InvalidEvent> {
        if EVENT_BYTES_MAX < message.len() {
            return Err(invalid("too_large", format!("{} bytes, at most {EVENT_BYTES_MAX}", message.len())));
        }
        let trimmed = message.trim_ascii();
        match trimmed.first() {
            None => Err(invalid("empty", "the message is empty")),
            Some(b'{') => {
                // The parser itself refuses more than 128 levels.
                let value: Value = serde_json::from_slice(trimmed)
                    .map_err(|error| invalid("malformed_json", format!("not JSON: {error}")))?;
                Self::from_value(value)
            }
            Some(0x80..=0x8f | 0xde | 0xdf) => {
                Self::from_value(read_message_pack(message.trim_ascii_start())?)
            }
            Some(_) => {
                let text = std::str::from_utf8(trimmed)
                    .map_err(|_utf8| invalid("not_utf8", "a bare key must be UTF-8 text"))?;
                if text.chars().any(char::is_control) {
                    return Err(invalid("unprintable_key", "a bare key must be printable"));
                }
                Ok(Self { keys: vec![name("key", text.to_owned())?], ..Self::default() })
            }
        }
    }

    /// Reads the fields of a stream entry: the same names, lists as JSON.
    ///
    /// # Errors
    /// [`InvalidEvent`].
    pub fn from_fields<'a>(
        fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Self, InvalidEvent> {
        let mut map = serde_json::Map::new();
        let mut size = 0;
        for (field, bytes) in fields {
            size += field.len() + bytes.len();
            if EVENT_BYTES_MAX < size {
                return Err(invalid("too_large", format!("more than {EVENT_BYTES_MAX} bytes")));
            }
            let text = std::str::from_utf8(bytes)
                .map_err(|_utf8| invalid("not_utf8", format!("field {field} must be UTF-8 text")))?;
            let value = match field {
                "keys" | "tags" | "ids" => serde_json::from_str(text).map_err(|error| {
                    invalid("malformed_json", format!("field {field} is not a JSON list: {error}"))
                })?,
                "at" => serde_json::from_str(text).unwrap_or_else(|_text| Value::String(text.to_owned())),
                _ => Value::String(text.to_owned()),
            };
            map.insert(field.to_owned(), value);
        }
        Self::from_value(Value::Object(map))
    }

    fn from_value(value: Value) -> Result<Self, InvalidEvent> {
        let Value::Object(fields) = value else {
            return Err(invalid("wrong_type", "an event is a map"));
        };
        let mut event = Self::default();
        for (field, value) in fields {
            match field.as_str() {
                "op" => event.op = Some(read_op(&value)?),
                "id" => event.id = Some(scalar("id", value)?),
                "at" => {
                    let at = value
                        .as_u64()
                        .ok_or_else(|| invalid("wrong_type", "`at` is a number of milliseconds"))?;
                    event.at_ms = Some(at);
                }
                "key" | "CacheKey" => event.keys.push(text("key", value)?),
                "keys" => event.keys.extend(texts("keys", value)?),
                "tag" => event.tags.push(text("tag", value)?),
                "tags" => event.tags.extend(texts("tags", value)?),
                "dataset" => event.dataset = Some(text("dataset", value)?),
                "ids" => event.ids = read_ids(value)?,
                _ => {}
            }
        }
        if event.keys.is_empty() && event.tags.is_empty() && event.dataset.is_none() {
            return Err(invalid("no_target", "name a `key`, `keys`, `tag`, `tags` or a `dataset`"));
        }
        if !event.ids.is_empty() && event.dataset.is_none() {
            return Err(invalid("no_target", "`ids` need a `dataset`"));
        }
        Ok(event)
    }

    /// The event as JSON, for publishing.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut map = serde_json::Map::new();
        let mut put = |field: &str, value: Value| drop(map.insert(field.to_owned(), value));
        if let Some(op) = self.op {
            put("op", Value::from(if op == Op::Refresh { "refresh" } else { "delete" }));
        }
        if let Some(id) = &self.id {
            put("id", Value::from(id.clone()));
        }
        if let Some(at) = self.at_ms {
            put("at", Value::from(at));
        }
        if !self.keys.is_empty() {
            put("keys", Value::from(self.keys.clone()));
        }
        if !self.tags.is_empty() {
            put("tags", Value::from(self.tags.clone()));
        }
        if let Some(dataset) = &self.dataset {
            put("dataset", Value::from(dataset.clone()));
        }
        if !self.ids.is_empty() {
            put("ids", Value::from(self.ids.clone()));
        }
        Value::Object(map).to_string()
    }
}

fn read_op(value: &Value) -> Result<Op, InvalidEvent> {
    match value.as_str() {
        Some("refresh") => Ok(Op::Refresh),
        Some("delete") => Ok(Op::Delete),
        _ => Err(invalid("wrong_op", "`op` is \"refresh\" or \"delete\"")),
    }
}

fn read_ids(value: Value) -> Result<Vec<Vec<String>>, InvalidEvent> {
    let Value::Array(ids) = value else {
        return Err(invalid("wrong_type", "`ids` is a list"));
    };
    let one = |id: Value| match id {
        // An id of several placeholders.
        Value::Array(parts) => parts.into_iter().map(|part| scalar("ids", part)).collect(),
        id => Ok(vec![scalar("ids", id)?]),
    };
    ids.into_iter().map(one).collect()
}

fn texts(field: &str, value: Value) -> Result<Vec<String>, InvalidEvent> {
    let Value::Array(values) = value else {
        return Err(invalid("wrong_type", format!("`{field}` is a list")));
    };
    values.into_iter().map(|value| text(field, value)).collect()
}

fn text(field: &str, value: Value) -> Result<String, InvalidEvent> {
    match value {
        Value::String(text) => name(field, text),
        _ => Err(invalid("wrong_type", format!("`{field}` holds text"))),
    }
}

fn scalar(field: &str, value: Value) -> Result<String, InvalidEvent> {
    match value {
        Value::String(text) => name(field, text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(is_true) => Ok(is_true.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(invalid("wrong_type", format!("`{field}` holds text or numbers")))
        }
    }
}

fn name(field: &str, text: String) -> Result<String, InvalidEvent> {
    if text.is_empty() {
        return Err(invalid("empty", format!("`{field}` is empty")));
    }
    if NAME_BYTES_MAX < text.len() {
        let message = format!("`{field}` has {} bytes, at most {NAME_BYTES_MAX}", text.len());
        return Err(invalid("key_too_long", message));
    }
    if text.starts_with(RESERVED_PREFIX) {
        return Err(invalid("reserved_key", format!("{text} belongs to Cachekeeper itself")));
    }
    Ok(text)
}

/// Levels of nesting in a MessagePack event, as in JSON.
const DEPTH_MAX: u16 = 128;

fn read_message_pack(bytes: &[u8]) -> Result<Value, InvalidEvent> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(bytes);
    decoder.set_max_depth(usize::from(DEPTH_MAX));
    let value = serde::Deserialize::deserialize(&mut decoder).map(|Lenient(value)| value);
    value.map_err(|error| match error {
        rmp_serde::decode::Error::DepthLimitExceeded => {
            invalid("too_deep", format!("more than {DEPTH_MAX} levels"))
        }
        error => invalid("malformed_msgpack", format!("not MessagePack: {error}")),
    })
}

/// A value of which binary parts are read as text and keys that are no text are passed over: what an event needs of
/// MessagePack, which can say more than JSON.
struct Lenient(Value);

impl<'de> serde::Deserialize<'de> for Lenient {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LenientVisitor).map(Self)
    }
}

struct LenientVisitor;

impl<'de> serde::de::Visitor<'de> for LenientVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a MessagePack value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(std::str::from_utf8(value).map_or(Value::Null, Value::from))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_newtype_struct<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        // An extension type: nothing an event knows.
        serde::de::IgnoredAny::deserialize(deserializer).map(|_ignored| Value::Null)
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Lenient(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut map = serde_json::Map::new();
        while let Some((Lenient(key), Lenient(value))) = items.next_entry()? {
            if let Value::String(key) = key {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}

use serde::Deserialize as _;

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> Event {
        Event { keys: keys.iter().map(ToString::to_string).collect(), ..Event::default() }
    }

    #[test]
    fn every_form_of_the_same_event_is_read() {
        let expected = keys(&["product:42"]);
        for message in [
            r#"{"key": "product:42"}"#,
            r#"  {"keys": ["product:42"], "extra": {"a": [1]}}"#,
            r#"{"CacheKey": "product:42"}"#,
            "product:42",
            " product:42\n",
        ] {
            assert_eq!(Event::decode(message.as_bytes()).unwrap(), expected, "{message}");
        }
        let packed =
            rmp_serde::to_vec_named(&serde_json::json!({"key": "product:42", "extra": [{"b": 1.5}]}))
                .unwrap();
        assert_eq!(Event::decode(&packed).unwrap(), expected);
        let fields = [("keys", br#"["product:42"]"#.as_slice())];
        assert_eq!(Event::from_fields(fields).unwrap(), expected);
    }

    #[test]
    fn targets_ids_and_options_are_read() {
        let event =
            Event::decode(br#"{"dataset":"stock","ids":[42,[1,"x"],true],"op":"delete","id":7,"at":123}"#)
                .unwrap();
        assert_eq!(event.dataset.as_deref(), Some("stock"));
        assert_eq!(
            event.ids,
            [vec!["42".to_owned()], vec!["1".to_owned(), "x".to_owned()], vec!["true".to_owned()]]
        );
        assert_eq!((event.op, event.id.as_deref(), event.at_ms), (Some(Op::Delete), Some("7"), Some(123)));
        assert_eq!(Event::decode(event.to_json().as_bytes()).unwrap(), event);
        let both = Event::decode(br#"{"tag":"a","keys":["k"],"tags":["b"]}"#).unwrap();
        assert_eq!((both.tags.len(), both.keys.len()), (2, 1));
    }

    #[test]
    fn what_is_no_event_is_refused_with_a_reason() {
        let deep_json = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        let mut deep_pack = vec![0x81, 0xa1, b'a'];
        deep_pack.extend(std::iter::repeat_n(0x91, 100_000));
        let huge_claim = [0x81, 0xa3, b'k', b'e', b'y', 0xdb, 0xff, 0xff, 0xff, 0xff];
        let long_key = "k".repeat(NAME_BYTES_MAX + 1);
        let cases: Vec<(&[u8], &str)> = vec![
            (b"", "empty"),
            (b"  ", "empty"),
            (b"{", "malformed_json"),
            (b"{}", "no_target"),
            (br#"{"key": 1}"#, "wrong_type"),
            (br#"{"key": ""}"#, "empty"),
            (br#"{"keys": "a"}"#, "wrong_type"),
            (br#"{"ids": [1]}"#, "no_target"),
            (br#"{"key":"a","op":"drop"}"#, "wrong_op"),
            (br#"{"key":"ck:{shop}:head"}"#, "reserved_key"),
            (b"ck:{shop}:stamps", "reserved_key"),
            (&[0x81, 0xa3, b'k'], "malformed_msgpack"),
            (&huge_claim, "malformed_msgpack"),
            (&[0xff, 0xfe], "not_utf8"),
            (b"a\x01b", "unprintable_key"),
            (deep_json.as_bytes(), "malformed_json"),
            (&deep_pack, "too_deep"),
            (long_key.as_bytes(), "key_too_long"),
        ];
        for (message, reason) in cases {
            let shown = String::from_utf8_lossy(&message[..message.len().min(40)]).into_owned();
            assert_eq!(Event::decode(message).unwrap_err().reason, reason, "{shown}");
        }
        assert_eq!(Event::decode(&vec![b'a'; EVENT_BYTES_MAX + 1]).unwrap_err().reason, "too_large");
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            drop(Event::decode(&bytes));
            let mut map = vec![0x82];
            map.extend(&bytes);
            drop(Event::decode(&map));
        }
    }
}
