//! YAML as it is needed to read the files of other programs: tables, lists and texts.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// The deepest that tables and lists may stand in each other.
const DEPTH_MAX: usize = 64;

/// A file's documents. Every scalar is a text; none is null.
///
/// # Errors
/// What is wrong, and where.
pub fn read(text: &str) -> Result<Vec<Value>, String> {
    let mut documents = Vec::new();
    // Tables and lists that are open, each with the name that its next value gets.
    let mut open: Vec<(Value, Option<String>)> = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| error.to_string())?;
        let line = span.start.line();
        let done = match event {
            Event::Scalar(text, style, ..) => {
                let is_null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                if is_null { Value::Null } else { Value::String(text.into_owned()) }
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if DEPTH_MAX <= open.len() => {
                return Err(format!("line {line}: tables and lists stand too deep in each other"));
            }
            Event::SequenceStart(..) => {
                open.push((Value::Array(Vec::new()), None));
                continue;
            }
            Event::MappingStart(..) => {
                open.push((Value::Object(Map::new()), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some((value, _)) => value,
                None => continue,
            },
            Event::Alias(_) => {
                return Err(format!(
                    "line {line}: aliases (*name) are not read; write out what they stand for"
                ));
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => continue,
        };
        match open.last_mut() {
            None => documents.push(done),
            Some((Value::Array(list), _)) => list.push(done),
            Some((Value::Object(table), name)) => match (name.take(), done) {
                (Some(name), value) => drop(table.insert(name, value)),
                (None, Value::String(text)) => *name = Some(text),
                (None, _) => return Err(format!("line {line}: a name is a text")),
            },
            Some(_) => {}
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_lists_and_texts_are_read_and_the_rest_is_refused() {
        let read_one = |text: &str| read(text).unwrap().remove(0);
        assert_eq!(
            read_one("a: 1\nb:\n  - x\n  - {c: \"null\", d: }\n"),
            serde_json::json!({ "a": "1", "b": ["x", { "c": "null", "d": null }] })
        );
        assert!(read("a: &x 1\nb: *x").unwrap_err().contains("aliases"));
        assert!(read("a: [1").is_err() && read(&"[".repeat(100)).is_err());
        assert_eq!(read("").unwrap(), Vec::<Value>::new());
    }
}
