//! What a dataset's columns mean for SQL: names, types, texts, and how the values of a key are bound and compared.

use sqlx::TypeInfo;
use sqlx::postgres::{PgTypeInfo, PgTypeKind};

use crate::stores::postgres::transcode::base_type;

/// How the values of a key column are bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyType {
    /// As `int8[]`; equality with the smaller integers uses their indexes too.
    Integer,
    /// As `text[]`, cast to an array of this type.
    Cast(String),
}

impl KeyType {
    pub(super) fn parameter(&self, number: usize) -> String {
        match self {
            Self::Integer => format!("${number}::int8[]"),
            Self::Cast(name) => format!("${number}::text[]::{name}[]"),
        }
    }
}

/// A column of the key.
pub(crate) struct KeyColumn {
    /// Quoted.
    pub(super) name: String,
    pub(super) kind: KeyType,
    /// Whether values with different texts can be equal.
    pub(super) is_coarse: bool,
}

impl KeyColumn {
    /// The text that a value of this column has in a key, as SQL.
    pub(super) fn text(&self, value: &str) -> String {
        match &self.kind {
            // The one type whose text in keys is not that of its output function: `true`, not `t`.
            KeyType::Cast(name) if name == "bool" => format!("{value}::text"),
            KeyType::Integer | KeyType::Cast(_) => text_of(value),
        }
    }
}

/// What the output function of a value's type makes of it: a cast could be another function, and leaves the blanks of `character`.
pub(crate) fn text_of(value: &str) -> String {
    format!("case when pg_catalog.num_nulls({value}) = 0 then pg_catalog.concat({value}) end")
}

/// An identifier as SQL text.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn key_type(kind: &PgTypeInfo) -> KeyType {
    match base_type(kind).name() {
        "INT2" | "INT4" | "INT8" => KeyType::Integer,
        "UUID" => KeyType::Cast("uuid".to_owned()),
        "TEXT" | "VARCHAR" => KeyType::Cast("text".to_owned()),
        // Of a domain its base: what the domain does not allow is a key of no row, and no error.
        _ => KeyType::Cast(type_name(&base_type(kind))),
    }
}

/// Whether values of this type with different texts can be equal, whatever their collation.
pub(crate) fn is_coarse(kind: &PgTypeInfo) -> bool {
    let base = base_type(kind);
    matches!(base.name(), "FLOAT4" | "FLOAT8" | "NUMERIC" | "CHAR" | "INTERVAL")
        || base.name().rsplit('.').next() == Some("citext")
}

/// The type as SQL text, for a null of it: here `bit` may be `bit(1)`.
pub(super) fn null_of(kind: &PgTypeInfo) -> String {
    fn name(kind: &PgTypeInfo) -> String {
        match (kind.kind(), kind.name()) {
            (PgTypeKind::Array(element), _) => format!("{}[]", name(element)),
            (_, "BIT") => "bit".to_owned(),
            _ => type_name(kind),
        }
    }
    format!("null::{}", name(kind))
}

/// The type as SQL text. Names of built-in types are SQL but for their case; the others come from `regtype`, quoted
/// and qualified as needed.
pub(crate) fn type_name(kind: &PgTypeInfo) -> String {
    match (kind.kind(), kind.name()) {
        (PgTypeKind::Array(element), _) => format!("{}[]", type_name(element)),
        // `char` would be `char(1)`.
        (_, "CHAR") => "bpchar".to_owned(),
        (_, "BIT") => "varbit".to_owned(),
        (_, name) if name == name.to_uppercase() => name.to_lowercase(),
        (_, name) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
    }
}
