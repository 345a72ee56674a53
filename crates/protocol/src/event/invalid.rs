//! Why a message is no event.

use super::value::{DEPTH_MAX, MEMBERS_MAX, Value};
use super::{EVENT_BYTES_MAX, ID_PARTS_MAX, TEXT_BYTES_MAX};

/// Why a message is no event: [`Self::reason`] for metrics, `Display` for people.
///
/// Excerpts are short and printable, so that they can be logged whatever was sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidEvent {
    /// The message is larger than [`EVENT_BYTES_MAX`].
    #[error("the message has {bytes} bytes, at most {EVENT_BYTES_MAX} are read")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// The message, a text or a list that must name something is empty.
    #[error("{what} is empty")]
    Empty {
        /// The message or a field.
        what: &'static str,
    },
    /// Bytes that must be text are not UTF-8.
    #[error("{what} is not UTF-8: {excerpt:?}")]
    NotUtf8 {
        /// The message or a field.
        what: &'static str,
        /// How it begins.
        excerpt: String,
    },
    /// A bare key holds control characters or others that cannot be seen.
    #[error("a bare key must be printable (any other key can be sent as JSON, {{\"key\": …}}): {excerpt:?}")]
    UnprintableKey {
        /// How it begins.
        excerpt: String,
    },
    /// A key, tag, name or id is longer than [`TEXT_BYTES_MAX`].
    #[error("{what} has {bytes} bytes, at most {TEXT_BYTES_MAX} are allowed: {excerpt:?}")]
    TextTooLong {
        /// The field.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How it begins.
        excerpt: String,
    },
    /// A key is one of Cachekeeper's own.
    #[error("keys under ck: belong to Cachekeeper: {excerpt:?}")]
    ReservedKey {
        /// How it begins.
        excerpt: String,
    },
    /// JSON cannot be read.
    #[error("not JSON, {problem}: {excerpt:?}")]
    MalformedJson {
        /// What the parser says.
        problem: String,
        /// How the message begins.
        excerpt: String,
    },
    /// MessagePack cannot be read.
    #[error("not MessagePack, {problem}: {excerpt:?}")]
    MalformedMsgpack {
        /// What the parser says.
        problem: String,
        /// How the message begins.
        excerpt: String,
    },
    /// Lists and maps stand inside each other too deeply.
    #[error("more than {DEPTH_MAX} levels of lists and maps: {excerpt:?}")]
    TooDeep {
        /// How the message begins.
        excerpt: String,
    },
    /// More members than one event may have.
    #[error("more than {MEMBERS_MAX} keys, tags or ids, or {ID_PARTS_MAX} parts of an id")]
    TooMany,
    /// A field holds what it cannot mean.
    #[error("{what} must be {wanted}, not {found}")]
    WrongType {
        /// The field.
        what: &'static str,
        /// What belongs there.
        wanted: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// The operation is neither of the two.
    #[error("`op` must be \"refresh\" or \"delete\", not {excerpt:?}")]
    UnknownOp {
        /// How it begins.
        excerpt: String,
    },
    /// A field that means one thing comes twice.
    #[error("{what} is given twice")]
    DuplicateField {
        /// The field.
        what: &'static str,
    },
    /// `ids` without the dataset whose ids they are.
    #[error("`ids` need the `dataset` that they are of")]
    IdsWithoutDataset,
    /// Nothing is named.
    #[error("no `key`, `keys`, `tag`, `tags` or `dataset` is named; fields that mean nothing: {unknown:?}")]
    NoTarget {
        /// The first names of fields that are not known.
        unknown: Vec<String>,
    },
}

impl InvalidEvent {
    /// A word for the label of a metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Empty { .. } => "empty",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::UnprintableKey { .. } => "unprintable_key",
            Self::TextTooLong { .. } => "key_too_long",
            Self::ReservedKey { .. } => "reserved_key",
            Self::MalformedJson { .. } => "malformed_json",
            Self::MalformedMsgpack { .. } => "malformed_msgpack",
            Self::TooDeep { .. } => "too_deep",
            Self::TooMany => "too_many",
            Self::WrongType { .. } => "wrong_type",
            Self::UnknownOp { .. } => "unknown_op",
            Self::DuplicateField { .. } => "duplicate_field",
            Self::IdsWithoutDataset => "ids_without_dataset",
            Self::NoTarget { .. } => "no_target",
        }
    }
}

/// Characters of an excerpt.
const EXCERPT_MAX: usize = 60;

/// How these bytes begin, fit to be logged.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    // A character has four bytes at most.
    let start = bytes.get(..4 * EXCERPT_MAX + 4).unwrap_or(bytes);
    let text = String::from_utf8_lossy(start);
    let mut excerpt: String = text.chars().take(EXCERPT_MAX).map(visible).collect();
    if excerpt.len() < text.len() || start.len() < bytes.len() {
        excerpt.push('…');
    }
    excerpt
}

fn visible(character: char) -> char {
    if is_printable(character) { character } else { char::REPLACEMENT_CHARACTER }
}

/// Whether a reader sees this character and it leaves the ones around it in their places.
pub(super) fn is_printable(character: char) -> bool {
    let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
    let reorders =
        matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_mark = matches!(character, '\u{feff}' | '\u{fff9}'..='\u{fffb}');
    !(character.is_control() || is_separator || reorders || is_mark)
}

pub(super) fn not_utf8(what: &'static str, bytes: &[u8]) -> InvalidEvent {
    let excerpt = excerpt(bytes);
    InvalidEvent::NotUtf8 { what, excerpt }
}

pub(super) fn wrong_type(what: &'static str, wanted: &'static str, value: &Value) -> InvalidEvent {
    let found = value.kind();
    InvalidEvent::WrongType { what, wanted, found }
}
