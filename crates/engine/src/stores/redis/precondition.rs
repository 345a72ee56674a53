//! What scripts must find unchanged (R4), and their typed replies.

use redis::{FromRedisValue, ParsingError, Value};

use super::Epoch;

/// What a script must find unchanged in Redis, else it does nothing.
#[derive(Debug, Clone, Copy)]
pub struct Precondition<'a> {
    /// The epoch.
    pub epoch: &'a Epoch,
    /// The incarnation of the load or poll that the stamp comes from.
    pub incarnation: &'a str,
    /// The dataset, or empty where keys of no dataset are meant.
    pub dataset: &'a str,
    /// The dataset's revision.
    pub revision: &'a str,
}

impl<'a> Precondition<'a> {
    /// For what concerns no dataset: epoch and incarnation alone.
    #[must_use]
    pub fn of_epoch(epoch: &'a Epoch, incarnation: &'a str) -> Self {
        Self { epoch, incarnation, dataset: "", revision: "" }
    }
}

/// What was not as the caller had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreconditionFailed {
    /// A table or the metadata is missing or cut: a new epoch must begin.
    Table,
    /// Another epoch has begun.
    Epoch,
    /// The database has another incarnation.
    Incarnation,
    /// The dataset was redefined by a newer process.
    Revision,
}

impl std::fmt::Display for PreconditionFailed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Table => "the stamp tables are not whole",
            Self::Epoch => "another epoch has begun",
            Self::Incarnation => "the primary restarted, its incarnation is another",
            Self::Revision => "the dataset was redefined by a newer process",
        })
    }
}

/// What a script with a precondition answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It was carried out.
    Done(T),
    /// It changed nothing (but for deletes, which are always carried out).
    Failed(PreconditionFailed),
}

impl<T: FromRedisValue> FromRedisValue for Answer<T> {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let failed = match &value {
            Value::SimpleString(text) => text.strip_prefix("PRECONDITION "),
            _ => None,
        };
        match failed {
            None => T::from_redis_value(value).map(Self::Done),
            Some("table") => Ok(Self::Failed(PreconditionFailed::Table)),
            Some("epoch") => Ok(Self::Failed(PreconditionFailed::Epoch)),
            Some("incarnation") => Ok(Self::Failed(PreconditionFailed::Incarnation)),
            Some("revision") => Ok(Self::Failed(PreconditionFailed::Revision)),
            Some(other) => Err(format!("unknown precondition {other:?}").into()),
        }
    }
}

/// A reply that is one of a few words.
pub(super) fn read_word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, ParsingError> {
    let Value::SimpleString(text) = value else {
        return Err(format!("a word was expected, not {value:?}").into());
    };
    let known = words.iter().find(|(word, _)| word == text);
    known.map(|(_, meaning)| *meaning).ok_or_else(|| format!("unknown word {text:?}").into())
}
