//! The fields of a hash: the text of each column.

use super::guided::{hex, write_guided};
use super::kind::Kind;
use super::nested::write_value;
use super::read::Malformed;
use super::sink::JsonSink;
use super::text::{with_text, write_column_text};
use cachekeeper_config::Numeric;
use cachekeeper_protocol::fields;

/// The positions of columns in the order of their names, so that the same row is always the same bytes; an error is the name of two.
pub(super) fn by_name<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<usize>, &'a str> {
    let mut named: Vec<(&str, usize)> = names.enumerate().map(|(position, name)| (name, position)).collect();
    named.sort_unstable();
    if let Some(((name, _), _)) =
        named.iter().zip(named.iter().skip(1)).find(|((one, _), (next, _))| one == next)
    {
        return Err(name);
    }
    Ok(named.into_iter().map(|(_, position)| position).collect())
}

/// Text and bytes as they are, lists and composites as their JSON, anything else as the text that Postgres prints.
pub(super) fn push_text(kind: &Kind, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), Malformed> {
    match kind {
        Kind::Text | Kind::Bytes | Kind::Json | Kind::Shown | Kind::ShownAsJson => {
            fields::push(output, bytes);
        }
        Kind::Array(_) | Kind::Composite(_) => {
            let mut json = Vec::new();
            write_value(kind, bytes, Numeric::Text, &mut JsonSink(&mut json))?;
            fields::push(output, &json);
        }
        Kind::Guided(whole) => push_guided(whole, bytes, output)?,
        _ => with_text(|text| {
            write_column_text(kind, bytes, text)?;
            fields::push(output, text.as_bytes());
            Ok(())
        })?,
    }
    Ok(())
}

/// What comes as JSON because a part of it has no other form, or because its type is one that the driver does not know.
fn push_guided(kind: &Kind, json: &[u8], output: &mut Vec<u8>) -> Result<(), Malformed> {
    if matches!(kind, Kind::Array(_) | Kind::Composite(_)) {
        let mut whole = Vec::new();
        write_guided(kind, json, Numeric::Text, &mut JsonSink(&mut whole))?;
        fields::push(output, &whole);
        return Ok(());
    }
    match serde_json::from_slice::<String>(json) {
        Ok(text) if *kind == Kind::Bytes => {
            fields::push(output, &hex(&text).ok_or(Malformed("bytea"))?);
        }
        Ok(text) => fields::push(output, text.as_bytes()),
        Err(_no_text) => fields::push(output, json),
    }
    Ok(())
}
