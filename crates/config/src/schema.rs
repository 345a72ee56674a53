//! The JSON Schema of the file, for editors: what the table of keys says, in their language.

use serde_json::{Map, Value, json};

use super::key::{Key, Kind};
use super::raw::Leaf;
use super::table::ROOT;
use super::values;
use cachekeeper_protocol::units::{DURATIONS, SIZES};

/// The schema, of draft 2020-12.
#[must_use]
pub fn json_schema() -> Value {
    let mut schema = Map::from_iter([
        ("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema")),
        ("title".to_owned(), json!("Configuration of Cachekeeper")),
    ]);
    schema.extend(table(ROOT));
    Value::Object(schema)
}

fn table(keys: &[Key]) -> Map<String, Value> {
    let properties: Map<String, Value> =
        keys.iter().map(|key| (key.name.to_owned(), Value::Object(property(key)))).collect();
    let required: Vec<&str> = keys.iter().filter(|key| key.is_required).map(|key| key.name).collect();
    let mut schema = object(json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    }));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema
}

fn property(key: &Key) -> Map<String, Value> {
    let mut schema = kind(key.kind);
    let mut description = key.help.to_owned();
    if let Some(range) = values::range(key.kind) {
        description.push_str(&format!(" {range}."));
    }
    if key.is_inherited {
        description.push_str(" A dataset without it takes what [defaults] says.");
    }
    schema.insert("description".to_owned(), json!(description));
    if let Some(default) = key.default.and_then(|default| Leaf::from_plain(key.kind, default)) {
        schema.insert("default".to_owned(), plain(default));
    }
    if let Some(example) = key.example.and_then(read_toml) {
        schema.insert("examples".to_owned(), json!([example]));
    }
    schema
}

fn kind(kind: Kind) -> Map<String, Value> {
    match kind {
        Kind::Text(form) => text(form.schema()),
        Kind::Choice(words) => text(json!({ "enum": words })),
        Kind::Duration(..) => text(json!({ "pattern": amounts(&DURATIONS) })),
        Kind::Size(..) => text(json!({ "pattern": amounts(&SIZES) })),
        Kind::Share(..) => text(json!({ "pattern": "^\\s*(?:[0-9]+\\.?[0-9]*|\\.[0-9]+)\\s*%\\s*$" })),
        Kind::Integer(min, max) => object(json!({ "type": "integer", "minimum": min, "maximum": max })),
        Kind::Boolean => object(json!({ "type": "boolean" })),
        Kind::Texts(form) => object(json!({ "type": "array", "items": text(form.schema()) })),
        Kind::Mapping => object(
            json!({ "type": "object", "additionalProperties": { "type": "string", "pattern": "\\S" } }),
        ),
        Kind::Table(keys) => table(keys),
        Kind::Tables(keys) => object(json!({ "type": "array", "items": table(keys) })),
        Kind::Named(keys) => object(json!({
            "type": "object",
            // Settings are addressed by paths with dots.
            "propertyNames": { "pattern": "^[^.]+$" },
            "additionalProperties": table(keys),
        })),
    }
}

/// Whole numbers with units, one behind the other: `1h 30m`.
fn amounts(units: &[(&str, u64)]) -> String {
    let units: Vec<&str> = units.iter().map(|(unit, _)| *unit).collect();
    format!("^\\s*(?:[0-9]+(?:{})\\s*)+$", units.join("|"))
}

fn text(more: Value) -> Map<String, Value> {
    let mut schema = object(json!({ "type": "string" }));
    schema.extend(object(more));
    schema
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn plain(leaf: Leaf) -> Value {
    match leaf {
        Leaf::Text(text) => json!(text),
        Leaf::Integer(number) => json!(number),
        Leaf::Boolean(value) => json!(value),
        Leaf::Texts(texts) => json!(texts),
        Leaf::Mapping(_) | Leaf::Section | Leaf::Wrong => Value::Null,
    }
}

/// A value written as TOML.
fn read_toml(text: &str) -> Option<Value> {
    let table: Map<String, Value> = toml::from_str(&format!("value = {text}")).ok()?;
    table.get("value").cloned()
}
