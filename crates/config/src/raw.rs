//! From the file's text to settings with places: every syntax error, unknown key and wrong type at once.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, did_you_mean};
use super::forms::Form;
use super::key::{Key, Kind};
use super::source::Source;
use super::syntax::{Mistake, without_mistakes};
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
    let (text, mistakes) = without_mistakes(&text);
    let (table, _told) = DeTable::parse_recoverable(&text);
    let mut file = File { source, problems, leaves: Leaves::new() };
    file.table(table.get_ref(), ROOT, "");
    for Mistake { span, message, help, path } in mistakes {
        // It was given, so that nobody misses it.
        if super::table::find(&path).is_some() && !file.leaves.contains_key(&path) {
            file.source.note(&path, span.clone());
            file.leaves.insert(path.clone(), Leaf::Wrong);
        }
        file.problems.push(file.source.problem_at(&path, span, message, help));
    }
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
                let is_dataset = matches!(value.get_ref(), DeValue::Table(table) if path.is_empty() && table.contains_key("query"));
                if is_dataset {
                    let help = format!("datasets have sections of their own: [dataset.{text}]");
                    let message = format!("unknown section `{text}` at the top");
                    self.problems.push(self.source.problem_at(text, name.span(), message, help));
                    continue;
                }
                let meant = self.unknown((text, name.span()), keys, path);
                // A table is read as if its name were right, so that what is wrong in it is told too.
                if let Some(meant) = meant.filter(|_| matches!(value.get_ref(), DeValue::Table(_))) {
                    let below = join(path, meant.name);
                    let leaf = self.value(value.get_ref(), meant.kind, &below);
                    self.leaves.entry(below).or_insert(leaf);
                }
                continue;
            };
            self.source.note(&below, value.span());
            let leaf = self.value(value.get_ref(), key.kind, &below);
            self.leaves.insert(below, leaf);
        }
    }

    /// Says that a key is not known; which one was meant.
    fn unknown(
        &mut self,
        (name, span): (&str, Range<usize>),
        keys: &'static [Key],
        path: &str,
    ) -> Option<&'static Key> {
        let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
        let close = did_you_mean(name, known.iter().copied());
        let help = match (close, elsewhere(name, path)) {
            (Some(close), _) => format!("did you mean `{close}`?"),
            (None, Some(place)) => place,
            (None, None) => format!("known here: {}", known.join(", ")),
        };
        let place = if path.is_empty() { "at the top".to_owned() } else { format!("in [{path}]") };
        let message = format!("unknown key `{name}` {place}");
        self.problems.push(self.source.problem_at(&join(path, name), span.clone(), message, help));
        let meant = keys.iter().find(|key| Some(key.name) == close)?;
        // Nobody misses what was given under another name.
        let meant_path = join(path, meant.name);
        if meant.is_required && !self.leaves.contains_key(&meant_path) {
            self.source.note(&meant_path, span);
            self.leaves.insert(meant_path, Leaf::Wrong);
        }
        Some(meant)
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
                self.problems.push(self.source.problem_at(path, name.span(), message, help.to_owned()));
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
            _ => super::table::find(path).and_then(form).map(|form| format!("for example {form}")),
        };
        self.problems.push(self.source.problem(path, message, help));
    }
}

/// Where a key belongs that does not belong here.
fn elsewhere(name: &str, path: &str) -> Option<String> {
    if path.is_empty() {
        return None;
    }
    let sections = ROOT.iter().filter_map(|section| match section.kind {
        Kind::Table(keys) => keys.iter().any(|key| key.name == name).then_some(section.name),
        _ => None,
    });
    let sections: Vec<String> = sections.map(|section| format!("[{section}]")).collect();
    let is_of_dataset = super::table::find(&format!("dataset.NAME.{name}")).is_some();
    let places = sections.into_iter().chain(is_of_dataset.then(|| "[dataset.NAME]".to_owned()));
    let places: Vec<String> = places.filter(|place| *place != format!("[{path}]")).collect();
    (!places.is_empty()).then(|| format!("it belongs into {}", places.join(" or ")))
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

/// How a key with parts is written.
fn form(key: &Key) -> Option<String> {
    let value = match (key.kind, key.example) {
        (Kind::Table(keys), _) => {
            let first = keys.first()?;
            let value = first.example.or(first.default)?;
            let is_text = !matches!(first.kind, Kind::Boolean | Kind::Integer(..))
                && !value.starts_with(['"', '[', '{']);
            let value = if is_text { format!("\"{value}\"") } else { value.to_owned() };
            format!("{{ {} = {value} }}", first.name)
        }
        (Kind::Tables(_) | Kind::Texts(_), Some(example)) => {
            example.split_whitespace().collect::<Vec<_>>().join(" ")
        }
        (Kind::Mapping, _) => "{ id = \"id\" }".to_owned(),
        _ => return None,
    };
    Some(format!("{} = {value}", key.name))
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// A path and a name below it.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
