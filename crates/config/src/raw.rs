//! From the file's text to settings with places: every syntax error, unknown key and wrong type at once.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, did_you_mean};
use super::schema::{Key, ROOT, Shape};
use super::source::Source;

/// A setting's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaf {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// True or false.
    Boolean(bool),
    /// A list of texts.
    Texts(Vec<String>),
    /// From names to texts.
    Mapping(Vec<(String, String)>),
    /// A section that is there.
    Section,
}

/// All settings by path (`dataset.product.key`, `dataset.product.watch.0.table`).
pub type Leaves = BTreeMap<String, Leaf>;

/// Reads the file.
pub fn read(source: &mut Source, problems: &mut Vec<Diagnostic>) -> Leaves {
    let text = source.text().to_owned();
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        problems.push(source.problem_at(span, format!("not TOML: {}", error.message()), None));
    }
    let mut walk = Walk { source, problems, leaves: Leaves::new() };
    walk.table(table.get_ref(), ROOT, "");
    walk.leaves
}

struct Walk<'a> {
    source: &'a mut Source,
    problems: &'a mut Vec<Diagnostic>,
    leaves: Leaves,
}

impl Walk<'_> {
    fn table(&mut self, table: &DeTable<'_>, keys: &[Key], path: &str) {
        for (name, value) in table {
            let text: &str = name.get_ref();
            let below = join(path, text);
            let Some(key) = keys.iter().find(|key| key.name == text) else {
                let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
                let help = match did_you_mean(text, known.iter().copied()) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                let place = if path.is_empty() { "at the top".to_owned() } else { format!("in [{path}]") };
                self.problems.push(self.source.problem_at(
                    name.span(),
                    format!("unknown key `{text}` {place}"),
                    help,
                ));
                continue;
            };
            self.source.note(&below, value.span());
            self.value(value.get_ref(), value.span(), key.shape, &below);
        }
    }

    fn value(&mut self, value: &DeValue<'_>, span: std::ops::Range<usize>, shape: Shape, path: &str) {
        let leaf = match (shape, value) {
            (Shape::Text, DeValue::String(text)) => Leaf::Text(text.to_string()),
            (Shape::Integer, DeValue::Integer(number)) => {
                match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                    Ok(number) => Leaf::Integer(number),
                    Err(_range) => {
                        self.problems.push(self.source.problem(path, "the number is too large", None));
                        return;
                    }
                }
            }
            (Shape::Boolean, DeValue::Boolean(boolean)) => Leaf::Boolean(*boolean),
            (Shape::Texts, DeValue::Array(items)) => {
                let mut texts = Vec::new();
                for (position, item) in items.iter().enumerate() {
                    let below = format!("{path}.{position}");
                    self.source.note(&below, item.span());
                    match item.get_ref() {
                        DeValue::String(text) => texts.push(text.to_string()),
                        other => self.wrong_type(&below, "text in quotes", other),
                    }
                }
                Leaf::Texts(texts)
            }
            (Shape::Mapping, DeValue::Table(table)) => {
                let mut pairs = Vec::new();
                for (name, item) in table {
                    let below = join(path, name.get_ref());
                    self.source.note(&below, item.span());
                    match item.get_ref() {
                        DeValue::String(text) => pairs.push((name.get_ref().to_string(), text.to_string())),
                        other => self.wrong_type(&below, "text in quotes", other),
                    }
                }
                Leaf::Mapping(pairs)
            }
            (Shape::Table(keys), DeValue::Table(table)) => {
                self.table(table, keys, path);
                Leaf::Section
            }
            (Shape::Named(keys), DeValue::Table(table)) => {
                for (name, item) in table {
                    let below = join(path, name.get_ref());
                    self.source.note(&below, name.span());
                    match item.get_ref() {
                        DeValue::Table(table) => {
                            self.leaves.insert(below.clone(), Leaf::Section);
                            self.table(table, keys, &below);
                        }
                        other => self.wrong_type(&below, "a table", other),
                    }
                }
                Leaf::Section
            }
            (Shape::Tables(keys), DeValue::Array(items)) => {
                for (position, item) in items.iter().enumerate() {
                    let below = format!("{path}.{position}");
                    self.source.note(&below, item.span());
                    match item.get_ref() {
                        DeValue::Table(table) => {
                            self.leaves.insert(below.clone(), Leaf::Section);
                            self.table(table, keys, &below);
                        }
                        other => self.wrong_type(&below, "a table { … }", other),
                    }
                }
                Leaf::Section
            }
            (shape, other) => {
                self.source.note(path, span);
                self.wrong_type(path, expected(shape), other);
                return;
            }
        };
        self.leaves.insert(path.to_owned(), leaf);
    }

    fn wrong_type(&mut self, path: &str, expected: &str, found: &DeValue<'_>) {
        let message = format!("expected {expected}, found {}", article(found.type_str()));
        let help = match found {
            DeValue::Integer(number) if expected.starts_with("text") => {
                Some(format!("write it in quotes and with a unit, for example \"{}s\"", number.as_str()))
            }
            _ => None,
        };
        self.problems.push(self.source.problem(path, message, help));
    }
}

/// What a shape is called in messages.
pub fn expected(shape: Shape) -> &'static str {
    match shape {
        Shape::Text => "text in quotes",
        Shape::Integer => "a whole number",
        Shape::Boolean => "true or false",
        Shape::Texts => "a list of texts [\"…\"]",
        Shape::Table(_) | Shape::Named(_) | Shape::Mapping => "a table { … }",
        Shape::Tables(_) => "a list of tables [{ … }]",
    }
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A path and a name below it.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
