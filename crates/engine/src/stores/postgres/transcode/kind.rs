//! What a column's type means for its bytes.

use sqlx::TypeInfo;
use sqlx::postgres::{PgTypeInfo, PgTypeKind};

/// How a column's bytes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    /// One byte.
    Char,
    Bytes,
    Uuid,
    Json,
    Jsonb,
    Date,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    Interval,
    Inet,
    Cidr,
    MacAddress,
    Bits,
    Array(Box<Kind>),
    Composite(Vec<(String, Kind)>),
}

/// The kind of a type; none: it has no form here.
pub(crate) fn kind_of(info: &PgTypeInfo) -> Option<Kind> {
    match info.kind() {
        PgTypeKind::Array(element) => Some(Kind::Array(Box::new(kind_of(element)?))),
        PgTypeKind::Domain(base) => kind_of(base),
        PgTypeKind::Enum(_) => Some(Kind::Text),
        PgTypeKind::Composite(fields) => {
            let known = fields.iter().map(|(name, info)| Some((name.to_string(), kind_of(info)?)));
            known.collect::<Option<Vec<_>>>().map(Kind::Composite)
        }
        PgTypeKind::Range(_) | PgTypeKind::Pseudo => None,
        PgTypeKind::Simple => simple_kind(info.name()),
    }
}

fn simple_kind(name: &str) -> Option<Kind> {
    Some(match name {
        "BOOL" => Kind::Bool,
        "INT2" => Kind::Int2,
        "INT4" => Kind::Int4,
        "INT8" => Kind::Int8,
        "OID" => Kind::Oid,
        "FLOAT4" => Kind::Float4,
        "FLOAT8" => Kind::Float8,
        "NUMERIC" => Kind::Numeric,
        "TEXT" | "VARCHAR" | "CHAR" | "NAME" | "UNKNOWN" => Kind::Text,
        "\"CHAR\"" => Kind::Char,
        "BYTEA" => Kind::Bytes,
        "UUID" => Kind::Uuid,
        "JSON" => Kind::Json,
        "JSONB" => Kind::Jsonb,
        "DATE" => Kind::Date,
        "TIME" => Kind::Time,
        "TIMETZ" => Kind::TimeTz,
        "TIMESTAMP" => Kind::Timestamp,
        "TIMESTAMPTZ" => Kind::TimestampTz,
        "INTERVAL" => Kind::Interval,
        "INET" => Kind::Inet,
        "CIDR" => Kind::Cidr,
        "MACADDR" | "MACADDR8" => Kind::MacAddress,
        "BIT" | "VARBIT" => Kind::Bits,
        // An extension's type, perhaps qualified.
        name if name.rsplit('.').next() == Some("citext") => Kind::Text,
        "xml" | "XML" => Kind::Text,
        _ => return None,
    })
}
