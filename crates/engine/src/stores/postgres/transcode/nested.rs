//! Values of every kind, lists and composites too.

use super::guided::{write_guided, write_numeric};
use super::json::jsonb_text;
use super::kind::Kind;
use super::number;
use super::read::{Malformed, Reader, utf8};
use super::sink::Sink;
use super::text::{TEXT_MAX, with_text};
use super::time::{self, Style};
use cachekeeper_config::Numeric;

/// Postgres allows six (`MAXDIM`).
const DIMENSIONS_MAX: usize = 6;

/// Appends one value that is not null.
pub(crate) fn write_value<S: Sink>(
    kind: &Kind,
    bytes: &[u8],
    numeric: Numeric,
    sink: &mut S,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "integer");
    match kind {
        Kind::Bool => sink.bool(Reader::new(bytes, "bool").u8()? != 0),
        Kind::Int2 => sink.integer(i64::from(reader.i16()?)),
        Kind::Int4 => sink.integer(i64::from(reader.i32()?)),
        Kind::Int8 => sink.integer(reader.i64()?),
        Kind::Float4 => {
            let value = f32::from_bits(Reader::new(bytes, "float4").i32()?.cast_unsigned());
            write_float(sink, |text| number::write_f32(value, text), |sink, text| sink.float4(value, text));
        }
        Kind::Float8 => {
            let value = f64::from_bits(Reader::new(bytes, "float8").i64()?.cast_unsigned());
            write_float(sink, |text| number::write_f64(value, text), |sink, text| sink.float8(value, text));
        }
        Kind::Numeric => with_text(|text| {
            number::write_numeric(bytes, text)?;
            write_numeric(text, numeric, sink)
        })?,
        Kind::Text | Kind::Shown => sink.text(utf8(bytes, "text")?),
        Kind::Bytes => sink.bytes(bytes),
        Kind::Json | Kind::ShownAsJson => sink.json(bytes)?,
        Kind::Jsonb => sink.json(jsonb_text(bytes)?)?,
        Kind::Guided(kind) => write_guided(kind, bytes, numeric, sink)?,
        Kind::Timestamp | Kind::TimestampTz => with_text(|text| {
            time::write_timestamp(bytes, *kind == Kind::TimestampTz, Style::Json, text)?;
            sink.text(text);
            Ok(())
        })?,
        // `to_json` quotes an oid.
        Kind::Oid
        | Kind::Char
        | Kind::Uuid
        | Kind::Date
        | Kind::Time
        | Kind::TimeTz
        | Kind::Interval
        | Kind::Inet
        | Kind::Cidr
        | Kind::MacAddress
        | Kind::Bits => with_text(|text| {
            super::text::write_column_text(kind, bytes, text)?;
            sink.text(text);
            Ok(())
        })?,
        Kind::Array(element) => write_array(element, bytes, numeric, sink)?,
        Kind::Composite(fields) => write_composite(fields, bytes, numeric, sink)?,
    }
    Ok(())
}

fn write_float<S: Sink>(sink: &mut S, print: impl FnOnce(&mut String), write: impl FnOnce(&mut S, &str)) {
    if S::IS_BINARY {
        write(sink, "");
        return;
    }
    let mut text = String::with_capacity(TEXT_MAX);
    print(&mut text);
    write(sink, &text);
}

/// A list of lists for each dimension (src/backend/utils/adt/arrayfuncs.c, `array_send`).
fn write_array<S: Sink>(
    element: &Kind,
    bytes: &[u8],
    numeric: Numeric,
    sink: &mut S,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "array");
    let dimensions = reader.length()?;
    let (_has_null, _element_type) = (reader.i32()?, reader.i32()?);
    if DIMENSIONS_MAX < dimensions {
        return Err(Malformed("array"));
    }
    if dimensions == 0 {
        sink.begin_list(0);
        sink.end_list();
        return reader.end();
    }
    let mut lengths = [0; DIMENSIONS_MAX];
    for length in lengths.iter_mut().take(dimensions) {
        *length = reader.length()?;
        let _lower_bound = reader.i32()?;
    }
    let lengths = lengths.get(..dimensions).unwrap_or_default();
    write_dimension(element, lengths, &mut reader, numeric, sink)?;
    reader.end()
}

fn write_dimension<S: Sink>(
    element: &Kind,
    lengths: &[usize],
    reader: &mut Reader<'_>,
    numeric: Numeric,
    sink: &mut S,
) -> Result<(), Malformed> {
    let Some((length, inner)) = lengths.split_first() else {
        return Ok(());
    };
    sink.begin_list(*length);
    for position in 0..*length {
        if 0 < position {
            sink.separate();
        }
        if !inner.is_empty() {
            write_dimension(element, inner, reader, numeric, sink)?;
            continue;
        }
        match reader.value()? {
            Some(bytes) => write_value(element, bytes, numeric, sink)?,
            None => sink.null(),
        }
    }
    sink.end_list();
    Ok(())
}

/// The texts of a list's elements, also of lists in it; nulls are left out.
pub(crate) fn texts_of(element: &Kind, bytes: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut reader = Reader::new(bytes, "array");
    let dimensions = reader.length()?;
    let (_has_null, _element_type) = (reader.i32()?, reader.i32()?);
    if DIMENSIONS_MAX < dimensions {
        return Err(Malformed("array"));
    }
    let mut count = usize::from(dimensions != 0);
    for _dimension in 0..dimensions {
        count = count.saturating_mul(reader.length()?);
        let _lower_bound = reader.i32()?;
    }
    let mut texts = Vec::new();
    for _element in 0..count {
        if let Some(bytes) = reader.value()? {
            let mut text = String::new();
            super::text::write_column_text(element, bytes, &mut text)?;
            texts.push(text);
        }
    }
    reader.end()?;
    Ok(texts)
}

/// A map with the names of the fields (src/backend/utils/adt/rowtypes.c, `record_send`).
fn write_composite<S: Sink>(
    fields: &[(String, Kind)],
    bytes: &[u8],
    numeric: Numeric,
    sink: &mut S,
) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes, "composite");
    if reader.length()? != fields.len() {
        return Err(Malformed("composite: its type was altered"));
    }
    sink.begin_map(fields.len());
    for (position, (name, kind)) in fields.iter().enumerate() {
        if 0 < position {
            sink.separate();
        }
        sink.field(name);
        let _type = reader.i32()?;
        match reader.value()? {
            Some(bytes) => write_value(kind, bytes, numeric, sink)?,
            None => sink.null(),
        }
    }
    sink.end_map();
    reader.end()
}
