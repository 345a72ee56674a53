//! Invalidation events: a statement that the source changed before the event was published.
//!
//! Anyone may publish, in any language: what arrives is not trusted, and what it means never depends on the encoding.

use super::keyspace::RESERVED_PREFIX;

mod invalid;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
mod value;
mod written;

pub use invalid::InvalidEvent;
use invalid::{excerpt, is_printable, not_utf8, wrong_type};
use value::{Excess, MEMBERS_MAX, Unreadable, Value, read_json, read_json_value, read_msgpack};

/// Bytes of one message.
pub(crate) const EVENT_BYTES_MAX: usize = 1 << 20;
/// Bytes of a key, a tag, a dataset's name or an id.
pub(crate) const TEXT_BYTES_MAX: usize = 10 * 1024;
/// Parts of one id: Postgres has no wider key.
pub(crate) const ID_PARTS_MAX: usize = 32;

/// What an event asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Load again; the old value stays readable until the new one is stored.
    Refresh,
    /// Delete.
    Delete,
}

impl Op {
    /// The word that stands in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refresh => "refresh",
            Self::Delete => "delete",
        }
    }
}

/// One event. All that it names is applied: `key` and `keys` are one list, as are `tag` and `tags`, and keys, tags and
/// a dataset may stand side by side. Doing too much is harmless, leaving out what somebody named is not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// What to do; none: what the dataset says.
    pub op: Option<Op>,
    /// For deduplication. Text only: `{"dataset": "product", "id": 42}` is refused, because it means `ids`.
    pub id: Option<String>,
    /// When it was published, in Unix milliseconds.
    pub at_ms: Option<u64>,
    /// Entries, by key. Never one of Cachekeeper's own keys.
    pub keys: Vec<String>,
    /// Tags, whose every member is meant.
    pub tags: Vec<String>,
    /// A dataset: the entries with these [`Self::ids`], or all of them if there are none.
    pub dataset: Option<String>,
    /// Entries of the dataset, each by the texts of the columns of its key. An empty list is never received.
    pub ids: Vec<Vec<String>>,
}

impl Event {
    /// Reads a message. The first byte that is no blank decides: `{` is JSON, 0x80 to 0x8f, 0xde and 0xdf are
    /// MessagePack, anything else is a bare key, without the blanks around it.
    ///
    /// Unknown fields are ignored and null is as good as absent. In MessagePack, binary data that is UTF-8 is text.
    pub fn decode(message: &[u8]) -> Result<Self, InvalidEvent> {
        if EVENT_BYTES_MAX < message.len() {
            let bytes = message.len();
            return Err(InvalidEvent::TooLarge { bytes });
        }
        let body = message.trim_ascii_start();
        let mut draft = Draft::default();
        let read = match body.first() {
            None => return Err(InvalidEvent::Empty { what: "the message" }),
            Some(0x80..=0x8f | 0xde | 0xdf) => {
                read_msgpack(body, Name::is_known, |name, value| draft.take(&name, value))
                    .map_err(|problem| unreadable(problem, body, Encoding::Msgpack))
            }
            Some(b'{') => {
                let text = std::str::from_utf8(body).map_err(|_error| not_utf8("the message", body))?;
                read_json(text, Name::is_known, |name, value| draft.take(&name, value))
                    .map_err(|problem| unreadable(problem, body, Encoding::Json))
            }
            Some(_) => return Self::from_bare_key(body.trim_ascii_end()),
        };
        read?;
        draft.finish()
    }

    /// Reads the fields of a stream entry: the same names; `keys`, `tags` and `ids` are lists in JSON.
    pub fn from_fields<'a, N, F>(fields: F) -> Result<Self, InvalidEvent>
    where
        N: AsRef<[u8]>,
        F: IntoIterator<Item = (N, &'a [u8])>,
    {
        let mut draft = Draft::default();
        let mut bytes = 0_usize;
        for (name, text) in fields {
            let name = name.as_ref();
            bytes = bytes.saturating_add(name.len()).saturating_add(text.len());
            if EVENT_BYTES_MAX < bytes {
                return Err(InvalidEvent::TooLarge { bytes });
            }
            match std::str::from_utf8(name).ok().and_then(Name::parse) {
                Some(name) => draft.set(name, name.read_field(text)?)?,
                None => draft.note_unknown(name),
            }
        }
        draft.finish()
    }

    fn from_bare_key(bytes: &[u8]) -> Result<Self, InvalidEvent> {
        let text = std::str::from_utf8(bytes).map_err(|_error| not_utf8("a bare key", bytes))?;
        let key = check_key("a bare key", text.to_owned())?;
        if !key.chars().all(is_printable) {
            let excerpt = excerpt(bytes);
            return Err(InvalidEvent::UnprintableKey { excerpt });
        }
        Ok(Self { keys: vec![key], ..Self::default() })
    }
}

/// The fields of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    Op,
    Id,
    At,
    Key,
    Keys,
    Tag,
    Tags,
    Dataset,
    Ids,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "op" => Self::Op,
            "id" => Self::Id,
            "at" => Self::At,
            "key" | "CacheKey" => Self::Key,
            "keys" => Self::Keys,
            "tag" => Self::Tag,
            "tags" => Self::Tags,
            "dataset" => Self::Dataset,
            "ids" => Self::Ids,
            _ => return None,
        })
    }

    fn is_known(name: &str) -> bool {
        Self::parse(name).is_some()
    }

    /// The name as it stands in messages to people.
    fn quoted(self) -> &'static str {
        match self {
            Self::Op => "`op`",
            Self::Id => "`id`",
            Self::At => "`at`",
            Self::Key => "`key`",
            Self::Keys => "`keys`",
            Self::Tag => "`tag`",
            Self::Tags => "`tags`",
            Self::Dataset => "`dataset`",
            Self::Ids => "`ids`",
        }
    }

    /// What a field of a stream entry holds.
    fn read_field(self, bytes: &[u8]) -> Result<Value, InvalidEvent> {
        let text = std::str::from_utf8(bytes).map_err(|_error| not_utf8(self.quoted(), bytes))?;
        match self {
            Self::Keys | Self::Tags | Self::Ids => {
                read_json_value(text).map_err(|problem| unreadable(problem, bytes, Encoding::Json))
            }
            Self::At => Ok(text.parse().map_or_else(|_error| Value::Text(text.to_owned()), Value::Unsigned)),
            Self::Op | Self::Id | Self::Key | Self::Tag | Self::Dataset => Ok(Value::Text(text.to_owned())),
        }
    }
}

/// An event that is being read.
#[derive(Default)]
struct Draft {
    event: Event,
    /// A list that names nothing: no fault while something else is named.
    empty_list: Option<Name>,
    unknown: Vec<String>,
    problem: Option<InvalidEvent>,
}

impl Draft {
    /// Takes a field as the parsers hand it over; a problem is kept, so that malformed input is called malformed.
    fn take(&mut self, name: &str, value: Option<Value>) {
        let known = Name::parse(name).zip(value);
        let Some((name, value)) = known else {
            return self.note_unknown(name.as_bytes());
        };
        if self.problem.is_none() {
            self.problem = self.set(name, value).err();
        }
    }

    fn note_unknown(&mut self, name: &[u8]) {
        // Enough to see what was meant.
        if self.unknown.len() < 3 {
            self.unknown.push(excerpt(name));
        }
    }

    fn set(&mut self, name: Name, value: Value) -> Result<(), InvalidEvent> {
        if value == Value::Null {
            return Ok(());
        }
        let what = name.quoted();
        let event = &mut self.event;
        match name {
            Name::Op => set_once(&mut event.op, read_op(value)?, what),
            Name::Id => set_once(&mut event.id, read_text(what, value)?, what),
            Name::At => set_once(&mut event.at_ms, read_at(value)?, what),
            Name::Dataset => set_once(&mut event.dataset, read_text(what, value)?, what),
            Name::Key => extend(&mut event.keys, vec![read_key(what, value)?]),
            Name::Tag => extend(&mut event.tags, vec![read_text(what, value)?]),
            Name::Keys | Name::Tags | Name::Ids => self.set_list(name, value),
        }
    }

    fn set_list(&mut self, name: Name, value: Value) -> Result<(), InvalidEvent> {
        let what = name.quoted();
        let Value::List(members) = value else {
            return Err(wrong_type(what, "a list", &value));
        };
        if members.is_empty() {
            self.empty_list = Some(name);
        }
        let members = members.into_iter();
        let event = &mut self.event;
        match name {
            Name::Keys => {
                let keys: Result<_, _> = members.map(|member| read_key(what, member)).collect();
                extend(&mut event.keys, keys?)
            }
            Name::Tags => {
                let tags: Result<_, _> = members.map(|member| read_text(what, member)).collect();
                extend(&mut event.tags, tags?)
            }
            // An empty list would otherwise read as the whole dataset.
            Name::Ids if members.len() == 0 => Err(InvalidEvent::Empty { what }),
            Name::Ids => {
                let ids: Result<_, _> = members.map(read_id).collect();
                extend(&mut event.ids, ids?)
            }
            Name::Op | Name::Id | Name::At | Name::Key | Name::Tag | Name::Dataset => Ok(()),
        }
    }

    fn finish(self) -> Result<Event, InvalidEvent> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        let event = self.event;
        if !event.ids.is_empty() && event.dataset.is_none() {
            return Err(InvalidEvent::IdsWithoutDataset);
        }
        let names_something = !event.keys.is_empty() || !event.tags.is_empty() || event.dataset.is_some();
        if names_something {
            return Ok(event);
        }
        let unknown = self.unknown;
        Err(match self.empty_list {
            Some(name) => InvalidEvent::Empty { what: name.quoted() },
            None => InvalidEvent::NoTarget { unknown },
        })
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T, what: &'static str) -> Result<(), InvalidEvent> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(InvalidEvent::DuplicateField { what }),
    }
}

fn extend<T>(list: &mut Vec<T>, mut members: Vec<T>) -> Result<(), InvalidEvent> {
    if MEMBERS_MAX < list.len() + members.len() {
        return Err(InvalidEvent::TooMany);
    }
    list.append(&mut members);
    Ok(())
}

fn read_op(value: Value) -> Result<Op, InvalidEvent> {
    let Value::Text(text) = value else {
        return Err(wrong_type("`op`", "\"refresh\" or \"delete\"", &value));
    };
    let found = [Op::Refresh, Op::Delete].into_iter().find(|op| op.as_str() == text);
    found.ok_or_else(|| InvalidEvent::UnknownOp { excerpt: excerpt(text.as_bytes()) })
}

fn read_at(value: Value) -> Result<u64, InvalidEvent> {
    match value {
        Value::Unsigned(at_ms) => Ok(at_ms),
        // Languages that have only floating point numbers send them as such.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit")]
        Value::Float(at_ms) if at_ms.fract() == 0.0 && (0.0..9e15).contains(&at_ms) => Ok(at_ms as u64),
        Value::Null
        | Value::Bool(_)
        | Value::Signed(_)
        | Value::Float(_)
        | Value::Text(_)
        | Value::Bytes(_)
        | Value::List(_)
        | Value::Other => Err(wrong_type("`at`", "a number of milliseconds", &value)),
    }
}

/// One id: a scalar, or a list of the scalars of a composite key.
fn read_id(value: Value) -> Result<Vec<String>, InvalidEvent> {
    let Value::List(parts) = value else {
        return Ok(vec![read_scalar(value)?]);
    };
    if parts.is_empty() {
        return Err(InvalidEvent::Empty { what: "a member of `ids`" });
    }
    if ID_PARTS_MAX < parts.len() {
        return Err(InvalidEvent::TooMany);
    }
    parts.into_iter().map(read_scalar).collect()
}

fn read_scalar(value: Value) -> Result<String, InvalidEvent> {
    let what = "a member of `ids`";
    match value {
        Value::Unsigned(number) => Ok(number.to_string()),
        Value::Signed(number) => Ok(number.to_string()),
        Value::Bool(is_true) => Ok(is_true.to_string()),
        Value::Text(_) | Value::Bytes(_) => read_text(what, value),
        Value::Null | Value::Float(_) | Value::List(_) | Value::Other => {
            Err(wrong_type(what, "text, an integer or a boolean", &value))
        }
    }
}

fn read_key(what: &'static str, value: Value) -> Result<String, InvalidEvent> {
    check_key(what, read_text(what, value)?)
}

fn read_text(what: &'static str, value: Value) -> Result<String, InvalidEvent> {
    match value {
        Value::Text(text) => check_text(what, text),
        Value::Bytes(bytes) => Err(not_utf8(what, &bytes)),
        Value::Null
        | Value::Bool(_)
        | Value::Unsigned(_)
        | Value::Signed(_)
        | Value::Float(_)
        | Value::List(_)
        | Value::Other => Err(wrong_type(what, "text", &value)),
    }
}

fn check_key(what: &'static str, key: String) -> Result<String, InvalidEvent> {
    let key = check_text(what, key)?;
    if key.starts_with(RESERVED_PREFIX) {
        let excerpt = excerpt(key.as_bytes());
        return Err(InvalidEvent::ReservedKey { excerpt });
    }
    Ok(key)
}

fn check_text(what: &'static str, text: String) -> Result<String, InvalidEvent> {
    if text.is_empty() {
        return Err(InvalidEvent::Empty { what });
    }
    if TEXT_BYTES_MAX < text.len() {
        let (bytes, excerpt) = (text.len(), excerpt(text.as_bytes()));
        return Err(InvalidEvent::TextTooLong { what, bytes, excerpt });
    }
    Ok(text)
}

#[derive(Clone, Copy)]
enum Encoding {
    Json,
    Msgpack,
}

fn unreadable(problem: Unreadable, bytes: &[u8], encoding: Encoding) -> InvalidEvent {
    let excerpt = excerpt(bytes);
    match (problem, encoding) {
        (Unreadable::Excess(Excess::Depth), _) => InvalidEvent::TooDeep { excerpt },
        (Unreadable::Excess(Excess::Members), _) => InvalidEvent::TooMany,
        (Unreadable::Malformed(problem), Encoding::Json) => InvalidEvent::MalformedJson { problem, excerpt },
        (Unreadable::Malformed(problem), Encoding::Msgpack) => {
            InvalidEvent::MalformedMsgpack { problem, excerpt }
        }
    }
}
