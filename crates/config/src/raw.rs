//! From the file's text to settings with places: every syntax error, unknown key and wrong type at once.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, did_you_mean};
use super::forms::Form;
use super::key::{Key, Kind};
use super::source::Source;
use super::table::ROOT;

/// A setting's value, as TOML has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leaf {
    Text(String),
    Integer(i64),
    Boolean(bool),
    Texts(Vec<String>),
    /// From names to texts.
    Mapping(Vec<(String, String)>),
    /// A table, whose settings have paths of their own.
    Section,
    /// There is something, and what is wrong with it has been noted.
    Wrong,
}

/// All settings by path (`dataset.product.key`, `dataset.product.watch.0.table`).
pub(crate) type Leaves = BTreeMap<String, Leaf>;

impl Leaf {
    /// Reads a value as an environment variable says it: without quotes, lists with commas.
    pub(crate) fn from_plain(kind: Kind, text: &str) -> Option<Self> {
        match kind {
            Kind::Text(_) | Kind::Choice(_) | Kind::Duration(..) | Kind::Size(..) | Kind::Share(..) => {
                Some(Self::Text(text.to_owned()))
            }
            Kind::Integer(..) => text.parse().ok().map(Self::Integer),
            Kind::Boolean => text.parse().ok().map(Self::Boolean),
            Kind::Texts(_) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Some(Self::Texts(parts.map(str::to_owned).collect()))
            }
            Kind::Table(_) | Kind::Named(_) | Kind::Tables(_) | Kind::Mapping => None,
        }
    }
}

/// Reads the file.
pub fn read(source: &mut Source, problems: &mut Vec<Diagnostic>) -> Leaves {
    let text = source.text().to_owned();
    let (table, errors) = DeTable::parse_recoverable(&text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        problems.push(source.problem_at(span, format!("not TOML: {}", error.message()), None));
    }
    let mut file = File { source, problems, leaves: Leaves::new() };
    file.table(table.get_ref(), ROOT, "");
    file.leaves
}

struct File<'a> {
    source: &'a mut Source,
    problems: &'a mut Vec<Diagnostic>,
    leaves: Leaves,
}

impl File<'_> {
    fn table(&mut self, table: &DeTable<'_>, keys: &'static [Key], path: &str) {
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
                let message = format!("unknown key `{text}` {place}");
                self.problems.push(self.source.problem_at(name.span(), message, help));
                continue;
            };
            self.source.note(&below, value.span());
            let leaf = self.value(value.get_ref(), key.kind, &below);
            self.leaves.insert(below, leaf);
        }
    }

    fn value(&mut self, value: &DeValue<'_>, kind: Kind, path: &str) -> Leaf {
        match (kind, value) {
            (
                Kind::Text(_) | Kind::Choice(_) | Kind::Duration(..) | Kind::Size(..) | Kind::Share(..),
                DeValue::String(text),
            ) => Leaf::Text(text.to_string()),
            (Kind::Integer(..), DeValue::Integer(number)) => {
                match i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()) {
                    Ok(number) => Leaf::Integer(number),
                    Err(_range) => {
                        self.problems.push(self.source.problem(path, "the number is too large", None));
                        Leaf::Wrong
                    }
                }
            }
            (Kind::Boolean, DeValue::Boolean(boolean)) => Leaf::Boolean(*boolean),
            (Kind::Texts(form), DeValue::Array(items)) => {
                let mut texts = Vec::new();
                for (position, item) in items.iter().enumerate() {
                    let below = join(path, &position.to_string());
                    self.source.note(&below, item.span());
                    if let Leaf::Text(text) = self.value(item.get_ref(), Kind::Text(form), &below) {
                        texts.push(text);
                    }
                }
                Leaf::Texts(texts)
            }
            (Kind::Mapping, DeValue::Table(table)) => self.mapping(table, path),
            (Kind::Table(keys), DeValue::Table(table)) => {
                self.table(table, keys, path);
                Leaf::Section
            }
            (Kind::Named(keys), DeValue::Table(table)) => {
                self.named(table, keys, path);
                Leaf::Section
            }
            (Kind::Tables(keys), DeValue::Array(items)) => {
                for (position, item) in items.iter().enumerate() {
                    let below = join(path, &position.to_string());
                    self.source.note(&below, item.span());
                    let leaf = self.value(item.get_ref(), Kind::Table(keys), &below);
                    self.leaves.insert(below, leaf);
                }
                Leaf::Section
            }
            (kind, other) => {
                self.wrong_type(path, kind, other);
                Leaf::Wrong
            }
        }
    }

    fn mapping(&mut self, table: &DeTable<'_>, path: &str) -> Leaf {
        let mut pairs = Vec::new();
        for (name, item) in table {
            let below = join(path, name.get_ref());
            self.source.note(&below, item.span());
            if let Leaf::Text(text) = self.value(item.get_ref(), Kind::Text(Form::Filled), &below) {
                pairs.push((name.get_ref().to_string(), text));
            }
        }
        Leaf::Mapping(pairs)
    }

    fn named(&mut self, table: &DeTable<'_>, keys: &'static [Key], path: &str) {
        for (name, item) in table {
            let text: &str = name.get_ref();
            // A dot would make two settings of one: paths are split at dots.
            if text.is_empty() || text.contains('.') {
                let help = "use letters, digits, `-` and `_`";
                let message = format!("{text:?} cannot be a name in [{path}]");
                self.problems.push(self.source.problem_at(name.span(), message, help.to_owned()));
                continue;
            }
            let below = join(path, text);
            self.source.note(&below, name.span());
            let leaf = self.value(item.get_ref(), Kind::Table(keys), &below);
            self.leaves.insert(below, leaf);
        }
    }

    fn wrong_type(&mut self, path: &str, kind: Kind, found: &DeValue<'_>) {
        let message = format!("expected {}, found {}", expected(kind), article(found.type_str()));
        let number = match found {
            DeValue::Integer(number) => Some(number.as_str()),
            DeValue::Float(number) => Some(number.as_str()),
            _ => None,
        };
        let unit = match kind {
            Kind::Duration(..) => Some("s"),
            Kind::Size(..) => Some("B"),
            Kind::Share(..) => Some("%"),
            _ => None,
        };
        let help = match (number, unit) {
            // A share of one, as a float: 0.2 is 20%.
            (Some(number), Some("%"))
                if number.parse::<f64>().is_ok_and(|share| share <= 1.0) && number.contains('.') =>
            {
                let percent = number.parse::<f64>().unwrap_or_default() * 100.0;
                Some(format!("write it in quotes and with a unit, for example \"{percent:.0}%\""))
            }
            (Some(number), Some(unit)) => {
                Some(format!("write it in quotes and with a unit, for example \"{number}{unit}\""))
            }
            (Some(number), None) if matches!(kind, Kind::Text(_) | Kind::Choice(_)) => {
                Some(format!("write it in quotes: \"{number}\""))
            }
            _ => None,
        };
        self.problems.push(self.source.problem(path, message, help));
    }
}

/// What a kind is called in messages.
pub fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Text(_) | Kind::Choice(_) | Kind::Duration(..) | Kind::Size(..) | Kind::Share(..) => {
            "text in quotes"
        }
        Kind::Integer(..) => "a whole number",
        Kind::Boolean => "true or false",
        Kind::Texts(_) => "a list of texts [\"…\"]",
        Kind::Table(_) | Kind::Named(_) | Kind::Mapping => "a table { … }",
        Kind::Tables(_) => "a list of tables [{ … }]",
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
