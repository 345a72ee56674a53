//! A dataset's write statement with its values: read from JSON, MessagePack or text, bound as the types that Postgres
//! described, executed.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::PgConnection;

use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::EngineError;
use crate::stores::postgres::write::WriteStatement;
use crate::stores::postgres::{Blame, Change, ErrorKind, KeyValues, SourceError};

/// Why a write was not carried out. Then nothing of it is in Postgres (but see [`WriteError::Unknown`]), and Redis is as it
/// was.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such dataset.
    #[error("there is no dataset {0:?}")]
    Dataset(String),
    /// The dataset has no write statement.
    #[error("dataset {0} has no write statement; give it one as [dataset.{0}.write] statement")]
    NoStatement(String),
    /// The dataset has no entries, so what was written would never be in Redis.
    #[error("dataset {dataset} cannot work: {problem}")]
    Unusable {
        /// Which.
        dataset: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A parameter is wrong.
    #[error("parameter {name}: {problem}")]
    Parameter {
        /// Which.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Postgres refused it: a constraint, a value of a wrong type, a missing right.
    #[error("postgres refused it: {0}")]
    Refused(String),
    /// No row fits.
    #[error("the statement touched no row")]
    NothingTouched,
    /// Postgres could not be asked, or locks and conflicts blocked it again and again; trying again helps.
    #[error("{0}")]
    Unavailable(#[source] SourceError),
    /// The connection broke while it was being committed: it may or may not be in Postgres.
    #[error("it is not known whether it was committed: {0}")]
    Unknown(#[source] SourceError),
}

impl WriteError {
    /// Whether the same write would be refused again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable(_) | Self::Unknown(_))
    }
}

impl From<SourceError> for WriteError {
    fn from(error: SourceError) -> Self {
        match error.blame() {
            Blame::Statement(text) => Self::Refused(text),
            Blame::Others | Blame::Server => Self::Unavailable(error),
        }
    }
}

/// What the writes of a transaction changed; to be settled after the commit.
#[derive(Debug, Default)]
pub struct WriteEffects {
    /// The datasets that were written.
    pub datasets: Vec<String>,
    /// Rows that were written.
    pub rows: u64,
    /// What the triggers captured of the transaction.
    pub(super) changes: Vec<Change>,
    /// Entries that the parameters or a `returning` list name: dataset, key, values.
    pub(super) named: Vec<(String, String, KeyValues)>,
    /// Datasets of which more rows were written than entries are named: only triggers can tell which.
    pub(super) unnamed: Vec<String>,
}

/// A statement that can be carried out.
#[derive(Debug)]
pub struct PreparedWrite {
    dataset: Arc<Dataset>,
    statement: Arc<WriteStatement>,
    values: Vec<Option<String>>,
    /// The entry that the parameters name, where they hold all of its key.
    key: Option<(String, KeyValues)>,
    has_one_spelling: bool,
}

/// The dataset's statement, if Postgres has described it already.
#[must_use]
pub fn known_statement(dataset: &Dataset) -> Option<Arc<WriteStatement>> {
    dataset.write.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The dataset's statement as Postgres has described it; asked once, and again after its tables have changed.
pub async fn statement_of(context: &Context, dataset: &Dataset) -> Result<Arc<WriteStatement>, WriteError> {
    check_keys(context, dataset).await?;
    if let Some(known) = known_statement(dataset) {
        return Ok(known);
    }
    let text = dataset.settings.write.as_ref();
    let text = text.ok_or_else(|| WriteError::NoStatement(dataset.name().to_owned()))?;
    let described = Arc::new(context.postgres.describe_write(text).await?);
    *dataset.write.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&described));
    Ok(described)
}

/// Whether the dataset has its keys for itself. Asked once, and again while it has not.
async fn check_keys(context: &Context, dataset: &Dataset) -> Result<(), WriteError> {
    if known_statement(dataset).is_some() && !dataset.is_refused() {
        return Ok(());
    }
    match dataset.source(&context.postgres).await {
        Err(EngineError::Dataset { dataset: name, problem }) if dataset.is_refused() => {
            let problem = format!("{}; {}", problem.message, problem.help);
            Err(WriteError::Unusable { dataset: name, problem })
        }
        // Any other trouble with its query is no reason against a write: the entries are loaded once it is mended.
        _ => Ok(()),
    }
}

impl PreparedWrite {
    pub(super) async fn of(context: &Context, dataset: &str, given: &Parameters) -> Result<Self, WriteError> {
        let dataset = context.catalog.get(dataset).ok_or_else(|| WriteError::Dataset(dataset.to_owned()))?;
        Self::new(dataset, statement_of(context, dataset).await?, given)
    }

    /// Binds the values; nothing is carried out yet.
    ///
    /// # Errors
    /// [`WriteError::Parameter`].
    pub fn new(
        dataset: &Arc<Dataset>,
        statement: Arc<WriteStatement>,
        given: &Parameters,
    ) -> Result<Self, WriteError> {
        let values = bind(&statement, given)?;
        let (mut parts, mut has_one_spelling) = (Some(KeyValues::new()), true);
        for column in dataset.settings.key.columns() {
            let place = statement.places.iter().zip(&values).find(|((name, _), _)| name == column);
            let Some(((_, kind), Some(text))) = place else {
                parts = None;
                break;
            };
            let part = match canonical(text, kind) {
                Some(Ok(part)) => part,
                Some(Err(problem)) => return Err(WriteError::Parameter { name: column.to_owned(), problem }),
                None => {
                    has_one_spelling = false;
                    text.clone()
                }
            };
            parts.get_or_insert_default().push(part);
        }
        let key = parts.and_then(|values| Some((dataset.key_of(&values)?, values)));
        Ok(Self { dataset: Arc::clone(dataset), statement, values, key, has_one_spelling })
    }

    /// The queue in which it waits for its turn: of its key, where the parameters hold all of it in one spelling, else of
    /// its dataset.
    #[must_use]
    pub fn queue(&self) -> &str {
        let key = self.key.as_ref().filter(|_| self.has_one_spelling);
        key.map_or(self.dataset.name(), |(key, _)| key)
    }

    /// Carries it out; [`WriteEffects::seal`] comes before the commit.
    ///
    /// # Errors
    /// [`WriteError`]; what was done since the last savepoint must be rolled back.
    pub async fn execute(&self, connection: &mut PgConnection) -> Result<WriteEffects, WriteError> {
        let executed = self.statement.execute(connection, &self.values).await.inspect_err(|error| {
            if error.kind == ErrorKind::Changed {
                self.dataset.forget_source();
            }
        })?;
        if executed.rows == 0 {
            return Err(WriteError::NothingTouched);
        }
        let mut keys: Vec<(String, KeyValues)> = self.key.iter().cloned().collect();
        for row in &executed.returned {
            let value = |column: &str| Some(row.iter().find(|(name, _)| name == column)?.1.clone());
            let found: Option<KeyValues> = self.dataset.settings.key.columns().map(value).collect();
            keys.extend(found.and_then(|values| Some((self.dataset.key_of(&values)?, values))));
        }
        keys.sort_unstable();
        keys.dedup();
        let is_named = executed.rows <= keys.len() as u64;
        Ok(WriteEffects { rows: executed.rows, ..self.effects_on(keys, is_named) })
    }

    /// What it changed, as far as that is known without carrying it out: for one that was carried out before.
    #[must_use]
    pub(crate) fn repeated_effects(&self) -> WriteEffects {
        self.effects_on(self.key.iter().cloned().collect(), self.key.is_some())
    }

    /// `is_named` false: more entries may have been written than these.
    fn effects_on(&self, keys: Vec<(String, KeyValues)>, is_named: bool) -> WriteEffects {
        let name = self.dataset.name().to_owned();
        WriteEffects {
            named: keys.into_iter().map(|(key, values)| (name.clone(), key, values)).collect(),
            unnamed: if is_named { Vec::new() } else { vec![name.clone()] },
            datasets: vec![name],
            ..WriteEffects::default()
        }
    }
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameter {
    /// As JSON has it; what it means is decided by the parameter's type.
    Value(Value),
    /// A text that is read as the type's own input, as a person types it.
    Text(String),
    /// Bytes, as MessagePack has them.
    Bytes(Vec<u8>),
}

impl<T: Into<Value>> From<T> for Parameter {
    fn from(value: T) -> Self {
        Self::Value(value.into())
    }
}

/// Values of parameters, by name.
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

/// The text that a key has for this value of a key column: what Postgres reads as the same value must be the same entry, and
/// wait in the same queue. None: the type has several texts for one value, and only Postgres knows which are the same. The
/// inner error says why it is no value of its type.
fn canonical(text: &str, kind: &str) -> Option<Result<String, String>> {
    match kind {
        "int2" | "int4" | "int8" => {
            let digits = text.trim();
            let number = digits.strip_prefix('+').unwrap_or(digits).parse::<i64>();
            Some(number.map(|number| number.to_string()).map_err(|_wrong| {
                format!("invalid input syntax for type {kind}: {text:?} is no whole number in decimal digits")
            }))
        }
        "uuid" => Some(uuid(text).ok_or_else(|| format!("invalid input syntax for type uuid: {text:?}"))),
        "text" | "varchar" => Some(Ok(text.to_owned())),
        _ => None,
    }
}

/// Upper case, braces, and hyphens behind any four digits are read (PostgreSQL manual, 8.12).
fn uuid(text: &str) -> Option<String> {
    let inner = text.strip_prefix('{').map_or(Some(text), |inner| inner.strip_suffix('}'))?;
    let digits: String = inner.chars().filter(|one| *one != '-').collect::<String>().to_ascii_lowercase();
    let is_hex = digits.len() == 32 && digits.chars().all(|one| one.is_ascii_hexdigit());
    let part = |from, to| digits.get(from..to);
    is_hex
        .then(|| Some([part(0, 8)?, part(8, 12)?, part(12, 16)?, part(16, 20)?, part(20, 32)?].join("-")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_text() {
        for text in ["7", "07", " 7", "+7", "007", "7 "] {
            assert_eq!(canonical(text, "int4"), Some(Ok("7".to_owned())), "{text:?}");
        }
        assert_eq!(canonical("-0", "int8"), Some(Ok("0".to_owned())));
        assert!(canonical("7.0", "int8").unwrap().is_err());
        let uuid = "6fa459ea-ee8a-3ca4-894e-db77e160355e";
        for text in [uuid, "6FA459EA-ee8a3ca4894e-db77e160355e", "{6fa459eaee8a3ca4894edb77e160355e}"] {
            assert_eq!(canonical(text, "uuid"), Some(Ok(uuid.to_owned())), "{text}");
        }
        assert!(canonical("6fa459ea", "uuid").unwrap().is_err());
        assert_eq!(canonical(" a ", "text"), Some(Ok(" a ".to_owned())));
        assert_eq!(canonical("1.50", "numeric"), None);
    }
}
