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
    /// Read as its text, which is all that anybody knows of it.
    Shown,
    /// Read as the JSON that its own cast makes of it.
    ShownAsJson,
    /// Read as JSON, because a part of it is read as text or JSON; where other parts are written otherwise than JSON has them, it
    /// says which.
    Guided(Box<Kind>),
}

/// How a column is read from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAs {
    /// In the binary format of its type.
    Binary,
    /// As the text that the output function of its type makes.
    Text,
    /// As what `to_json` makes of it.
    Json,
}

/// What a column that says how long an entry lives holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LifetimeKind {
    /// A number of seconds.
    Seconds,
    /// An interval.
    Span,
    /// The moment at which it ends.
    End,
}

/// What a domain is made of; any other type is its own.
pub(crate) fn base_type(kind: &PgTypeInfo) -> PgTypeInfo {
    match kind.kind() {
        PgTypeKind::Domain(inner) => base_type(inner),
        PgTypeKind::Simple
        | PgTypeKind::Pseudo
        | PgTypeKind::Composite(_)
        | PgTypeKind::Array(_)
        | PgTypeKind::Enum(_)
        | PgTypeKind::Range(_) => kind.clone(),
    }
}

impl Kind {
    /// How a column of this kind is read.
    pub(crate) fn read_as(&self) -> ReadAs {
        match self {
            Self::Shown => ReadAs::Text,
            Self::ShownAsJson | Self::Guided(_) => ReadAs::Json,
            _ if self.has(&|kind| matches!(kind, Self::Shown | Self::ShownAsJson)) => ReadAs::Json,
            _ => ReadAs::Binary,
        }
    }

    /// What is left of it when it is read so.
    pub(crate) fn when_read(self) -> Self {
        match self.read_as() {
            ReadAs::Json if matches!(self, Self::Guided(_)) => self,
            ReadAs::Json if self.needs_guide() => Self::Guided(Box::new(self)),
            ReadAs::Json => Self::ShownAsJson,
            ReadAs::Text | ReadAs::Binary => self,
        }
    }

    /// Whether a part of it is written otherwise than the JSON that `to_json` makes of it.
    pub(crate) fn needs_guide(&self) -> bool {
        self.has(&|kind| matches!(kind, Self::Numeric | Self::Bytes | Self::Float4 | Self::Float8))
    }

    /// What it is a list of, or a list of lists of.
    pub(crate) fn leaf(&self) -> &Self {
        match self {
            Self::Array(element) => element.leaf(),
            other => other,
        }
    }

    /// Whether it is a single value with a text by which values can be told apart.
    pub(crate) fn can_be_in_keys(&self) -> bool {
        !matches!(
            self,
            Self::Json
                | Self::Jsonb
                | Self::Array(_)
                | Self::Composite(_)
                | Self::Shown
                | Self::ShownAsJson
                | Self::Guided(_)
        )
    }

    /// Whether a value can be larger than a page of the server.
    pub(crate) fn can_be_large(&self) -> bool {
        matches!(
            self,
            Self::Text
                | Self::Bytes
                | Self::Json
                | Self::Jsonb
                | Self::Bits
                | Self::Array(_)
                | Self::Composite(_)
                | Self::Shown
                | Self::ShownAsJson
                | Self::Guided(_)
        )
    }

    /// Whether it is a point in time, a span or a number of seconds: something that a lifetime can be made of.
    pub(crate) fn lifetime(&self) -> Option<LifetimeKind> {
        match self {
            Self::Int2 | Self::Int4 | Self::Int8 | Self::Float4 | Self::Float8 | Self::Numeric => {
                Some(LifetimeKind::Seconds)
            }
            Self::Interval => Some(LifetimeKind::Span),
            Self::TimestampTz => Some(LifetimeKind::End),
            _ => None,
        }
    }

    fn has(&self, wanted: &dyn Fn(&Self) -> bool) -> bool {
        match self {
            Self::Array(element) => element.has(wanted),
            Self::Composite(fields) => fields.iter().any(|(_, kind)| kind.has(wanted)),
            Self::Guided(whole) => whole.has(wanted),
            other => wanted(other),
        }
    }
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
        PgTypeKind::Range(_) => Some(Kind::Shown),
        PgTypeKind::Pseudo => None,
        PgTypeKind::Simple => simple_kind(info.name()),
    }
}

/// The kind of a type of the server's or of an extension, by the name that it has in the catalog.
pub(crate) fn kind_of_catalog_name(name: &str) -> Option<Kind> {
    match name {
        "bpchar" => Some(Kind::Text),
        "char" => Some(Kind::Char),
        _ => simple_kind(&name.to_uppercase()).or_else(|| simple_kind(name)),
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
        "MONEY" | "POINT" | "LSEG" | "PATH" | "BOX" | "POLYGON" | "LINE" | "CIRCLE" | "JSONPATH" => {
            Kind::Shown
        }
        "xml" | "tsvector" | "tsquery" | "pg_lsn" | "xid" | "xid8" | "cid" | "tid" => Kind::Shown,
        "pg_snapshot" | "txid_snapshot" | "regproc" | "regprocedure" | "regoper" | "regoperator" => {
            Kind::Shown
        }
        "regclass" | "regtype" | "regrole" | "regnamespace" | "regconfig" | "regdictionary" => Kind::Shown,
        "regcollation" => Kind::Shown,
        // An extension's type, perhaps qualified.
        name => match name.rsplit('.').next() {
            Some("citext") => Kind::Text,
            Some("ltree" | "lquery" | "ltxtquery") => Kind::Shown,
            Some("hstore") => Kind::ShownAsJson,
            _ => return None,
        },
    })
}
