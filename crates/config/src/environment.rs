//! Overrides from environment variables: `CACHEKEEPER__REDIS__URL`, `CACHEKEEPER__DATASET__PRODUCT__TTL`.
//!
//! The environment comes in as a map; nothing here reads the process's own.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;

use config::Source as _;

use super::diagnostic::{Diagnostic, did_you_mean};
use super::key::{Key, Kind};
use super::raw::{Leaf, Leaves, expected, join};
use super::secret::Secret;
use super::source::Source;
use super::table::ROOT;

const PREFIX: &str = "CACHEKEEPER__";
/// Stands for bytes that are not UTF-8.
const UNREADABLE: char = char::REPLACEMENT_CHARACTER;

/// A process's environment as the configuration takes it. A value that is not UTF-8 keeps its place: who meant to override a setting
/// is told, instead of being left with the file's.
pub fn variables(environment: impl Iterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    environment.filter_map(text).collect()
}

/// Puts the variables over the file's settings.
pub fn apply(
    environment: &BTreeMap<String, String>,
    leaves: &mut Leaves,
    source: &mut Source,
    problems: &mut Vec<Diagnostic>,
) {
    warn_of_overlooked(environment, problems);
    let ours = readable(environment, problems);
    let names: BTreeMap<String, String> = ours.keys().map(|name| (setting_of(name), name.clone())).collect();
    let layer = config::Environment::with_prefix("CACHEKEEPER")
        .prefix_separator("__")
        .separator("__")
        .source(Some(ours.clone()));
    let collected = match layer.collect() {
        Ok(collected) => collected,
        Err(error) => {
            problems.push(Diagnostic::error(format!("the environment cannot be read: {error}"), None));
            return;
        }
    };
    let mut flat = Vec::new();
    for (name, value) in collected {
        flatten(&name, value, &mut flat);
    }
    flat.sort();
    for (path, text) in flat {
        let variable = names.get(&path).cloned().unwrap_or_else(|| path.clone());
        match find(&path, leaves) {
            Ok((path, kind)) => {
                source.note_variable(&path, &variable);
                match Leaf::from_plain(kind, &text) {
                    Some(leaf) => insert(leaves, path, leaf),
                    None => {
                        problems.push(source.problem(&path, format!("expected {}", expected(kind)), None));
                    }
                }
            }
            Err(help) => {
                let mut problem =
                    Diagnostic::error(format!("environment variable {variable} names no setting"), help);
                problem.variable = Some(variable);
                problems.push(problem);
            }
        }
    }
    leave_password_file(leaves, source);
}

/// The variables that override settings, without those that say nothing clear.
fn readable(
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<Diagnostic>,
) -> HashMap<String, String> {
    let mut about = |name: &str, message: String, help: &str| {
        let mut problem = Diagnostic::error(message, help.to_owned());
        problem.variable = Some(name.to_owned());
        problems.push(problem);
    };
    let mut ours: BTreeMap<String, (&String, &String)> = BTreeMap::new();
    for (name, value) in environment.iter().filter(|(name, _)| name.to_uppercase().starts_with(PREFIX)) {
        if value.contains(UNREADABLE) {
            about(name, "the value of this variable is not UTF-8".to_owned(), "give it as UTF-8");
            continue;
        }
        match ours.get(&setting_of(name)) {
            // Which of them counts would be chance.
            Some((other, known)) if *known != value => {
                let message =
                    format!("{other} and {name} are two spellings of one setting, with different values");
                about(name, message, "keep one of them");
            }
            Some(_) => {}
            None => drop(ours.insert(setting_of(name), (name, value))),
        }
    }
    ours.into_values().map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The setting that a variable means, in lower case.
fn setting_of(name: &str) -> String {
    name.get(PREFIX.len()..).unwrap_or_default().to_lowercase().replace("__", ".")
}

/// Variables that were meant for a setting, and are not read: one underscore stands where two belong.
fn warn_of_overlooked(environment: &BTreeMap<String, String>, problems: &mut Vec<Diagnostic>) {
    const FILE: &str = "CACHEKEEPER_CONFIG";
    let letters = |text: &str| text.to_lowercase().replace(['_', '.'], "");
    let sections = ROOT.iter().filter_map(|section| match section.kind {
        Kind::Table(keys) => Some(keys.iter().map(move |key| (section.name, key.name))),
        _ => None,
    });
    let settings: Vec<(&str, &str)> = sections.flatten().collect();
    for name in environment.keys() {
        let Some(rest) = name.strip_prefix("CACHEKEEPER_").filter(|rest| !rest.starts_with('_')) else {
            continue;
        };
        let setting = settings.iter().find(|(section, key)| letters(rest) == letters(&join(section, key)));
        let meant = match setting {
            Some((section, key)) => format!("{PREFIX}{section}__{key}").to_uppercase(),
            None if rest != "CONFIG" && did_you_mean(rest, ["CONFIG"]).is_some() => FILE.to_owned(),
            None => continue,
        };
        let help = format!("did you mean {meant}?");
        let mut problem = Diagnostic::error("this variable is not read", help).into_warning();
        problem.variable = Some(name.clone());
        problems.push(problem);
    }
}

fn flatten(path: &str, value: config::Value, flat: &mut Vec<(String, String)>) {
    match value.kind {
        config::ValueKind::Table(table) => {
            for (name, value) in table {
                flatten(&join(path, &name), value, flat);
            }
        }
        _ => flat.push((path.to_owned(), value.into_string().unwrap_or_default())),
    }
}

/// Puts in a setting, and the sections around it: a variable alone can switch `warm` or `refresh` on.
/// An owner's URL beside the worker's file, for `migrate`: where it brings its password, the password file belongs to the file's URL.
fn leave_password_file(leaves: &mut Leaves, source: &Source) {
    const URL: &str = "postgres.url";
    const PASSWORD: &str = "postgres.password_file";
    let is_whole =
        matches!(leaves.get(URL), Some(Leaf::Text(text)) if Secret::new(text.clone()).has_password());
    if is_whole && source.is_of_variable(URL) && !source.is_of_variable(PASSWORD) {
        leaves.remove(PASSWORD);
    }
}

fn insert(leaves: &mut Leaves, path: String, leaf: Leaf) {
    for (dot, _) in path.match_indices('.') {
        let section = path.get(..dot).unwrap_or_default();
        leaves.entry(section.to_owned()).or_insert(Leaf::Section);
    }
    leaves.insert(path, leaf);
}

/// The setting that a lower-case path means. Names of datasets are found without regard to case.
fn find(path: &str, leaves: &Leaves) -> Result<(String, Kind), String> {
    let mut keys: &[Key] = ROOT;
    let mut found = String::new();
    let mut parts = path.split('.').peekable();
    while let Some(part) = parts.next() {
        let Some(key) = keys.iter().find(|key| key.name == part) else {
            let known: Vec<&str> = keys.iter().map(|key| key.name).collect();
            let close = did_you_mean(part, known.iter().copied());
            return Err(close.map_or_else(
                || format!("known: {}", known.join(", ")),
                |close| format!("did you mean {close}?"),
            ));
        };
        found = join(&found, key.name);
        match key.kind {
            Kind::Table(below) => keys = below,
            Kind::Named(below) => {
                let Some(name) = parts.next() else {
                    return Err("give the dataset's name behind it".to_owned());
                };
                let wanted = join(&found, name);
                let dataset = leaves.keys().find(|known| known.to_lowercase() == wanted);
                found = dataset.cloned().ok_or_else(|| {
                    let names = super::values::names(leaves, &found);
                    let close = did_you_mean(name, names.iter().map(String::as_str));
                    let meant = close.map(|close| format!("; did you mean {close}?")).unwrap_or_default();
                    format!("the file has no [{wanted}]{meant}")
                })?;
                keys = below;
            }
            Kind::Tables(_) | Kind::Mapping => {
                return Err("this setting can only be given in the file".to_owned());
            }
            kind => {
                return if parts.peek().is_none() {
                    Ok((found, kind))
                } else {
                    Err(format!("{found} has no parts"))
                };
            }
        }
    }
    Err("this is a section, not a setting".to_owned())
}
