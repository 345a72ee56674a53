//! How a row becomes a value, decided once from the types of its columns.

use sqlx::postgres::{PgRow, PgTypeInfo, PgTypeKind, PgValueFormat};
use sqlx::{Row as _, TypeInfo, ValueRef};

use super::hash;
use super::kind::{Kind, LifetimeKind, ReadAs, base_type, kind_of};
use super::nested::{texts_of, write_value};
use super::read::Malformed;
use super::sink::{JsonSink, PackSink, Sink};
use super::text::write_column_text;
use cachekeeper_config::{Format, Numeric};
use cachekeeper_protocol::fields;

/// How the rows of a query become values.
#[derive(Debug)]
pub struct RowPlan {
    columns: Vec<Column>,
    format: Format,
    /// MessagePack: the map's header.
    header: Vec<u8>,
    /// Raw: which column.
    raw: usize,
    /// Hash: the columns' positions in the order of their names.
    by_name: Vec<usize>,
}

#[derive(Debug)]
struct Column {
    name: String,
    kind: Kind,
    read_as: ReadAs,
    /// What stands before the value: name, separator.
    lead: Vec<u8>,
}

/// A column of a query.
#[derive(Debug, Clone)]
pub struct QueryColumn {
    /// Its name.
    pub name: String,
    /// Its type as the driver has it, or `text` where the driver does not know it.
    pub info: PgTypeInfo,
    /// Its type as people know it.
    pub type_name: String,
    /// How it is written; none: its type has no form here.
    kind: Option<Kind>,
    /// How its size is found out; none: it is small, or known only by computing it.
    pub(crate) measure: Option<Measure>,
}

/// How the server tells the size of a value without reading it where it is stored out of line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Its bytes.
    Octets,
    /// Its bytes as they are stored, perhaps compressed: the least that it can have.
    Stored,
}

/// The driver's name of a type that it has not looked up.
const UNRESOLVED: &str = "?";

impl QueryColumn {
    /// A column of a type that the driver knows.
    pub(crate) fn new(name: &str, info: &PgTypeInfo) -> Self {
        let type_name = info.name().to_lowercase();
        let kind = if info.name() == UNRESOLVED { None } else { kind_of(info) };
        Self { name: name.to_owned(), info: info.clone(), type_name, kind, measure: None }
    }

    /// How the size of such a value can be told by its type.
    pub(crate) fn measure_of_type(&self) -> Option<Measure> {
        match (self.kind.as_ref()?, base_type(&self.info).name()) {
            (Kind::Text, "TEXT" | "VARCHAR" | "CHAR") | (Kind::Bytes, _) => Some(Measure::Octets),
            (Kind::Text, "NAME") => None,
            (Kind::Text, _) if matches!(base_type(&self.info).kind(), PgTypeKind::Enum(_)) => None,
            (kind, _) if kind.can_be_large() => Some(Measure::Stored),
            _ => None,
        }
    }

    /// Whether the driver has looked its type up.
    pub(crate) fn is_resolved(&self) -> bool {
        self.info.name() != UNRESOLVED
    }

    /// Whether its type has a form here.
    pub(crate) fn has_form(&self) -> bool {
        self.kind.is_some()
    }

    /// Whether its values can stand in keys and tags.
    pub(crate) fn can_be_in_keys(&self) -> bool {
        self.kind.as_ref().is_some_and(|kind| kind.clone().when_read().can_be_in_keys())
    }

    /// Whether its values may be large.
    pub(crate) fn can_be_large(&self) -> bool {
        self.kind.as_ref().is_some_and(Kind::can_be_large)
    }

    /// What kind of lifetime its values say; none: none.
    pub(crate) fn lifetime(&self) -> Option<LifetimeKind> {
        self.kind.as_ref().and_then(Kind::lifetime)
    }

    /// A column of a type that the driver cannot describe.
    pub(crate) fn of_kind(name: &str, type_name: &str, kind: Option<Kind>) -> Self {
        let info = <String as sqlx::Type<sqlx::Postgres>>::type_info();
        // Its binary form would come with its type.
        let kind = kind.map(|kind| match kind.read_as() {
            ReadAs::Binary => Kind::Guided(Box::new(kind)),
            ReadAs::Text | ReadAs::Json => kind,
        });
        Self { name: name.to_owned(), info, type_name: type_name.to_owned(), kind, measure: None }
    }
}

/// Columns that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedType {
    /// Their types are not known: all such columns, with their types.
    #[error("{}, which has no form in MessagePack or JSON here", list(.columns))]
    Types {
        /// Names and types.
        columns: Vec<(String, String)>,
    },
    /// A hash would have a field twice.
    #[error("two columns are named {column}, and a hash has each field once")]
    Twice {
        /// The name.
        column: String,
    },
    /// `value` names no column.
    #[error("value = {column:?} names no column of the query")]
    NoColumn {
        /// The name.
        column: String,
    },
}

fn list(columns: &[(String, String)]) -> String {
    let one = |(name, kind): &(String, String)| format!("column {name} has the type {kind}");
    columns.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A value that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A column has no form.
    #[error("column {column}: {reason}")]
    Column {
        /// Which.
        column: String,
        /// Why.
        reason: String,
    },
    /// Redis has no hash without fields.
    #[error("all columns are null, and a hash without fields is nothing")]
    NoFields,
}

impl RowPlan {
    /// Decides how rows with these columns become values.
    pub fn new(columns: &[QueryColumn], format: &Format) -> Result<Self, UnsupportedType> {
        let mut planned = Vec::with_capacity(columns.len());
        let mut unknown = Vec::new();
        for (position, QueryColumn { name, type_name, kind, .. }) in columns.iter().enumerate() {
            let Some(kind) = kind.clone() else {
                unknown.push((name.clone(), type_name.clone()));
                continue;
            };
            let read_as = kind.read_as();
            let kind = kind.when_read();
            let mut lead = Vec::new();
            match format {
                Format::MessagePack { .. } => PackSink(&mut lead).field(name),
                Format::Json { .. } => {
                    lead.push(if position == 0 { b'{' } else { b',' });
                    JsonSink(&mut lead).field(name);
                }
                Format::Raw { .. } => {}
                Format::Hash => fields::push(&mut lead, name.as_bytes()),
            }
            planned.push(Column { name: name.clone(), kind, read_as, lead });
        }
        if !unknown.is_empty() {
            return Err(UnsupportedType::Types { columns: unknown });
        }
        let mut header = Vec::new();
        let mut raw = 0;
        let mut by_name = Vec::new();
        match format {
            Format::MessagePack { .. } => PackSink(&mut header).begin_map(planned.len()),
            Format::Json { .. } => {}
            Format::Raw { column } => {
                let found = planned.iter().position(|known| known.name == *column);
                raw = found.ok_or_else(|| UnsupportedType::NoColumn { column: column.clone() })?;
            }
            Format::Hash => {
                let found = hash::by_name(planned.iter().map(|known| known.name.as_str()));
                by_name = found.map_err(|column| UnsupportedType::Twice { column: column.to_owned() })?;
            }
        }
        Ok(Self { columns: planned, format: format.clone(), header, raw, by_name })
    }

    /// How the column at this position is read.
    pub(crate) fn read_as(&self, position: usize) -> ReadAs {
        self.columns.get(position).map_or(ReadAs::Binary, |column| column.read_as)
    }

    /// Whether the column at this position is a list whose elements can be part of a tag.
    pub(crate) fn is_list(&self, position: usize) -> bool {
        let kind = self.columns.get(position).map(|column| &column.kind);
        kind.is_some_and(|kind| matches!(kind, Kind::Array(_)) && kind.leaf().can_be_in_keys())
    }

    /// The texts of the elements of a column that [`Self::is_list`]; none where it is null.
    ///
    /// # Errors
    /// [`EncodeError`]
    pub(crate) fn texts(&self, row: &PgRow, first: usize, index: usize) -> Result<Vec<String>, EncodeError> {
        let Some(column) = self.columns.get(index) else { return Ok(Vec::new()) };
        let Some(bytes) = column.bytes(row, first + index)? else { return Ok(Vec::new()) };
        texts_of(column.kind.leaf(), bytes).map_err(|malformed| column.error(malformed))
    }

    /// Whether the values of the column at this position can be part of a key or tag.
    pub(crate) fn can_be_in_keys(&self, position: usize) -> bool {
        self.columns.get(position).is_some_and(|column| column.kind.can_be_in_keys())
    }

    /// Appends one row's value. `first` is the position of the query's first column in the row.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing is appended then.
    pub(crate) fn write_row(
        &self,
        row: &PgRow,
        first: usize,
        output: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let start = output.len();
        let written = match &self.format {
            Format::MessagePack { numeric } => {
                output.extend_from_slice(&self.header);
                self.write_columns(row, first, *numeric, &mut PackSink(output))
            }
            Format::Json { numeric } => {
                let written = self.write_columns(row, first, *numeric, &mut JsonSink(output));
                output.extend_from_slice(if self.columns.is_empty() { b"{}" } else { b"}" });
                written
            }
            Format::Raw { .. } => self.write_raw(row, first, output),
            Format::Hash => self.write_hash(row, first, output),
        };
        if written.is_err() {
            output.truncate(start);
        }
        written
    }

    fn write_columns<S: Sink>(
        &self,
        row: &PgRow,
        first: usize,
        numeric: Numeric,
        sink: &mut S,
    ) -> Result<(), EncodeError> {
        for (position, column) in self.columns.iter().enumerate() {
            sink.output().extend_from_slice(&column.lead);
            match column.bytes(row, first + position)? {
                Some(bytes) => {
                    write_value(&column.kind, bytes, numeric, sink)
                        .map_err(|malformed| column.error(malformed))?;
                }
                None => sink.null(),
            }
        }
        Ok(())
    }

    /// The bytes of one column: those of text and bytea as they are, else the text of the value.
    fn write_raw(&self, row: &PgRow, first: usize, output: &mut Vec<u8>) -> Result<(), EncodeError> {
        let Some(column) = self.columns.get(self.raw) else {
            return Ok(());
        };
        let Some(bytes) = column.bytes(row, first + self.raw)? else {
            return Err(EncodeError::Column {
                column: column.name.clone(),
                reason: "is null, and raw bytes have no null".into(),
            });
        };
        if column.read_as != ReadAs::Binary || matches!(column.kind, Kind::Text | Kind::Bytes | Kind::Json) {
            output.extend_from_slice(bytes);
            return Ok(());
        }
        let mut text = String::new();
        write_column_text(&column.kind, bytes, &mut text).map_err(|malformed| column.error(malformed))?;
        output.extend_from_slice(text.as_bytes());
        Ok(())
    }

    /// A field for each column that is not null.
    fn write_hash(&self, row: &PgRow, first: usize, output: &mut Vec<u8>) -> Result<(), EncodeError> {
        let start = fields::begin(output);
        let mut count = 0;
        for position in &self.by_name {
            let Some(column) = self.columns.get(*position) else { continue };
            let Some(bytes) = column.bytes(row, first + position)? else { continue };
            output.extend_from_slice(&column.lead);
            hash::push_text(&column.kind, bytes, output).map_err(|malformed| column.error(malformed))?;
            count += 1;
        }
        if count == 0 {
            return Err(EncodeError::NoFields);
        }
        fields::end(output, start, count);
        Ok(())
    }

    /// Appends the text of a column, as Postgres prints it; false: it is null.
    ///
    /// # Errors
    /// [`EncodeError`]; lists and composites have no text here.
    pub(crate) fn write_text(
        &self,
        row: &PgRow,
        first: usize,
        index: usize,
        output: &mut String,
    ) -> Result<bool, EncodeError> {
        let Some(column) = self.columns.get(index) else {
            return Ok(false);
        };
        let Some(bytes) = column.bytes(row, first + index)? else {
            return Ok(false);
        };
        let start = output.len();
        write_column_text(&column.kind, bytes, output).map_err(|malformed| {
            output.truncate(start);
            column.error(malformed)
        })?;
        Ok(true)
    }
}

impl Column {
    fn bytes<'r>(&self, row: &'r PgRow, position: usize) -> Result<Option<&'r [u8]>, EncodeError> {
        let failed = |reason: String| EncodeError::Column { column: self.name.clone(), reason };
        let value = row.try_get_raw(position).map_err(|error| failed(error.to_string()))?;
        if value.is_null() {
            return Ok(None);
        }
        if value.format() != PgValueFormat::Binary {
            return Err(failed("came as text, not in binary format".to_owned()));
        }
        value.as_bytes().map(Some).map_err(|error| failed(error.to_string()))
    }

    fn error(&self, malformed: Malformed) -> EncodeError {
        EncodeError::Column { column: self.name.clone(), reason: malformed.to_string() }
    }
}
