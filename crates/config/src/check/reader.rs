//! Typed access to settings that notes problems instead of failing, so that all of them are found.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::raw::{Leaf, Leaves};
use crate::source::Source;
use crate::{ScheduleCheck, Secret};
use cachekeeper_protocol::units::{parse_duration, parse_share, parse_size, show_duration};

/// The settings, and the problems found so far.
pub struct Reader<'a> {
    pub leaves: &'a Leaves,
    pub source: &'a Source,
    pub problems: Vec<Diagnostic>,
    pub check_schedule: ScheduleCheck,
}

impl Reader<'_> {
    pub fn error(&mut self, path: &str, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem(path, message, Some(help.to_owned())));
    }

    pub fn error_within(&mut self, path: &str, offset: usize, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem_within(path, Some(offset), message, Some(help.to_owned())));
    }

    pub fn warning(&mut self, path: &str, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem(path, message, Some(help.to_owned())).into_warning());
    }

    pub fn has(&self, path: &str) -> bool {
        self.leaves.contains_key(path)
    }

    pub fn text(&self, path: &str) -> Option<String> {
        match self.leaves.get(path) {
            Some(Leaf::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    pub fn texts(&self, path: &str) -> Option<Vec<String>> {
        match self.leaves.get(path) {
            Some(Leaf::Texts(texts)) => Some(texts.clone()),
            _ => None,
        }
    }

    pub fn mapping(&self, path: &str) -> Option<Vec<(String, String)>> {
        match self.leaves.get(path) {
            Some(Leaf::Mapping(pairs)) => Some(pairs.clone()),
            _ => None,
        }
    }

    pub fn boolean(&self, path: &str, default: bool) -> bool {
        match self.leaves.get(path) {
            Some(Leaf::Boolean(value)) => *value,
            _ => default,
        }
    }

    pub fn integer(&mut self, path: &str, default: u64, allowed: RangeInclusive<u64>) -> u64 {
        self.optional_integer(path, allowed).unwrap_or(default)
    }

    pub fn optional_integer(&mut self, path: &str, allowed: RangeInclusive<u64>) -> Option<u64> {
        let Some(Leaf::Integer(number)) = self.leaves.get(path) else {
            return None;
        };
        match u64::try_from(*number).ok().filter(|number| allowed.contains(number)) {
            Some(number) => Some(number),
            None => {
                let help = format!("give {} to {}", allowed.start(), allowed.end());
                self.error(path, format!("{number} is out of range"), &help);
                None
            }
        }
    }

    pub fn duration(&mut self, path: &str, default: Duration, allowed: RangeInclusive<Duration>) -> Duration {
        self.optional_duration(path, allowed).unwrap_or(default)
    }

    pub fn optional_duration(&mut self, path: &str, allowed: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text(path)?;
        match parse_duration(&text) {
            Ok(duration) if allowed.contains(&duration) => Some(duration),
            Ok(_) => {
                let help =
                    format!("give {} to {}", show_duration(*allowed.start()), show_duration(*allowed.end()));
                self.error(path, format!("{text:?} is out of range"), &help);
                None
            }
            Err(help) => {
                self.error(path, format!("{text:?} is no duration"), &help);
                None
            }
        }
    }

    pub fn size(&mut self, path: &str, default: u64) -> u64 {
        let Some(text) = self.text(path) else {
            return default;
        };
        parse_size(&text).unwrap_or_else(|help| {
            self.error(path, format!("{text:?} is no size"), &help);
            default
        })
    }

    pub fn share(&mut self, path: &str, default: f64, allowed: RangeInclusive<f64>) -> f64 {
        let Some(text) = self.text(path) else {
            return default;
        };
        match parse_share(&text) {
            Ok(share) if allowed.contains(&share) => share,
            Ok(_) => {
                let help = format!("give {:.0}% to {:.0}%", allowed.start() * 100.0, allowed.end() * 100.0);
                self.error(path, format!("{text:?} is out of range"), &help);
                default
            }
            Err(help) => {
                self.error(path, format!("{text:?} is no share"), &help);
                default
            }
        }
    }

    pub fn choice<T: Copy + Debug>(&mut self, path: &str, choices: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(path) else {
            return default;
        };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let help = match did_you_mean(&text, words.iter().copied()) {
            Some(close) => format!("did you mean {close:?}?"),
            None => format!("one of {}", words.join(", ")),
        };
        self.error(path, format!("{text:?} is not known here"), &help);
        default
    }

    /// A file's content without the line break at its end.
    pub fn secret_file(&mut self, path: &str) -> Option<Secret> {
        let file = self.text(path)?;
        match std::fs::read_to_string(&file) {
            Ok(content) => Some(Secret::new(content.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) => {
                self.error(
                    path,
                    format!("{file} cannot be read: {error}"),
                    "give a file that this user may read",
                );
                None
            }
        }
    }
}
