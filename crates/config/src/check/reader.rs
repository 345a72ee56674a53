//! Typed access to settings that are right by themselves, or the table's default.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::certificate::{oddity_of_authorities, oddity_of_identity};
use crate::diagnostic::Diagnostic;
use crate::raw::{Leaf, Leaves};
use crate::source::Source;
use crate::words::Words;
use crate::{Password, ScheduleCheck, Secret, table};
use cachekeeper_protocol::units::{parse_duration, parse_share, parse_size};

/// The settings, and the problems found so far.
pub struct Reader<'a> {
    pub leaves: &'a Leaves,
    pub source: &'a Source,
    pub problems: Vec<Diagnostic>,
    pub check_schedule: ScheduleCheck,
    /// What was asked for, to be compared with the table.
    #[cfg(test)]
    pub asked: std::collections::BTreeSet<String>,
}

impl Reader<'_> {
    pub fn error(&mut self, path: &str, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem(path, message, Some(help.to_owned())));
    }

    pub(crate) fn error_within(&mut self, path: &str, offset: usize, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem_within(path, Some(offset), message, Some(help.to_owned())));
    }

    pub fn warning(&mut self, path: &str, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem(path, message, Some(help.to_owned())).into_warning());
    }

    /// Whether the user gave this setting, be it a wrong one.
    pub fn has(&self, path: &str) -> bool {
        self.leaves.contains_key(path)
    }

    /// Whether what the user gave is wrong by itself.
    pub(crate) fn is_wrong(&self, path: &str) -> bool {
        self.leaves.get(path) == Some(&Leaf::Wrong)
    }

    /// The setting as given, else as `[defaults]` says where datasets inherit it, else the table's default.
    fn leaf(&mut self, path: &str) -> Option<Leaf> {
        #[cfg(test)]
        self.asked.insert(path.to_owned());
        if let Some(leaf) = self.leaves.get(path).filter(|leaf| **leaf != Leaf::Wrong) {
            return Some(leaf.clone());
        }
        let Some(key) = table::find(path) else {
            self.missing(path);
            return None;
        };
        if key.is_inherited {
            return self.leaf(&format!("defaults.{}", key.name));
        }
        Leaf::from_plain(key.kind, key.default?)
    }

    /// Code and table disagree. Every test that loads a configuration shows it.
    fn missing(&mut self, path: &str) {
        let message = format!("{path} is read as something that the table of keys does not have");
        self.problems
            .push(Diagnostic::error(message, "this is a fault of Cachekeeper, please report it".to_owned()));
    }

    fn always<T>(&mut self, path: &str, value: Option<T>, instead: T) -> T {
        value.unwrap_or_else(|| {
            self.missing(path);
            instead
        })
    }

    pub(crate) fn optional_text(&mut self, path: &str) -> Option<String> {
        match self.leaf(path)? {
            Leaf::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn text(&mut self, path: &str) -> String {
        let text = self.optional_text(path);
        self.always(path, text, String::new())
    }

    /// A text of which the empty one means that there is none.
    pub(crate) fn text_unless_empty(&mut self, path: &str) -> Option<String> {
        Some(self.text(path)).filter(|text| !text.is_empty())
    }

    pub fn texts(&mut self, path: &str) -> Vec<String> {
        match self.leaf(path) {
            Some(Leaf::Texts(texts)) => texts,
            _ => Vec::new(),
        }
    }

    pub(crate) fn mapping(&mut self, path: &str) -> Option<Vec<(String, String)>> {
        match self.leaf(path)? {
            Leaf::Mapping(pairs) => Some(pairs),
            _ => None,
        }
    }

    pub fn boolean(&mut self, path: &str) -> bool {
        let value = match self.leaf(path) {
            Some(Leaf::Boolean(value)) => Some(value),
            _ => None,
        };
        self.always(path, value, false)
    }

    pub(crate) fn optional_number<T: TryFrom<i64>>(&mut self, path: &str) -> Option<T> {
        match self.leaf(path)? {
            Leaf::Integer(number) => T::try_from(number).ok(),
            _ => None,
        }
    }

    pub fn number<T: TryFrom<i64> + Default>(&mut self, path: &str) -> T {
        let number = self.optional_number(path);
        self.always(path, number, T::default())
    }

    pub(crate) fn optional_duration(&mut self, path: &str) -> Option<Duration> {
        parse_duration(&self.optional_text(path)?).ok()
    }

    pub fn duration(&mut self, path: &str) -> Duration {
        let duration = self.optional_duration(path);
        self.always(path, duration, Duration::ZERO)
    }

    pub fn size(&mut self, path: &str) -> usize {
        let size = self.optional_text(path).and_then(|text| parse_size(&text).ok());
        // A threshold that no value reaches is one that no machine can hold either.
        self.always(path, size.map(|size| usize::try_from(size).unwrap_or(usize::MAX)), usize::MAX)
    }

    pub fn share(&mut self, path: &str) -> f64 {
        let share = self.optional_text(path).and_then(|text| parse_share(&text).ok());
        self.always(path, share, 0.0)
    }

    pub(crate) fn optional_choice<T: Words>(&mut self, path: &str) -> Option<T> {
        T::from_word(&self.optional_text(path)?)
    }

    pub(crate) fn choice<T: Words>(&mut self, path: &str) -> T {
        let word = self.optional_choice(path);
        self.always(path, word, T::FIRST)
    }

    /// A password in a file that can be read now, and will be again.
    pub(crate) fn password_file(&mut self, path: &str) -> Option<Password> {
        self.readable_file(path).map(Password::InFile)
    }

    /// A file that can be read now, and is read again later.
    pub(crate) fn readable_file(&mut self, path: &str) -> Option<PathBuf> {
        self.secret_file(path)?;
        self.optional_text(path).map(PathBuf::from)
    }

    /// The one line that a file holds.
    pub(crate) fn secret_file(&mut self, path: &str) -> Option<Secret> {
        let file = self.optional_text(path)?;
        match Secret::of_file(file.as_ref()) {
            Ok(secret) => {
                self.warn_of_readers(path, &file);
                Some(secret)
            }
            Err(error) => {
                let help = match error.kind() {
                    std::io::ErrorKind::InvalidData => "write it as one line of UTF-8, and nothing else",
                    _ => "give a file that this user may read",
                };
                self.error(path, error.to_string(), help);
                None
            }
        }
    }

    /// Of a file with a secret that everybody on this machine may read.
    pub(crate) fn warn_of_readers(&mut self, path: &str, file: &str) {
        if let Some(mode) = mode_for_everybody(file.as_ref()) {
            let message = format!("everybody on this machine may read {file} (mode {mode:03o})");
            let help =
                format!("chmod 600 {file}, or 640 with a group of its own (Kubernetes: defaultMode: 0440)");
            self.warning(path, message, &help);
        }
    }

    /// Of a file with the certificates of authorities where one's own belongs, or the reverse.
    pub(crate) fn warn_of_certificate(&mut self, path: &str, file: &str, of_authorities: bool) {
        let (oddity, help) = if of_authorities {
            (oddity_of_authorities(file.as_ref()), "give the certificate of the authority")
        } else {
            (
                oddity_of_identity(file.as_ref()),
                "give one's own certificate first, and behind it those that lead to its authority",
            )
        };
        if let Some(oddity) = oddity {
            self.warning(path, format!("{file} {oddity}"), help);
        }
    }

    /// What a file holds.
    pub(crate) fn file(&mut self, path: &str) -> Option<Vec<u8>> {
        let file = self.optional_text(path)?;
        match std::fs::read(&file) {
            Ok(content) => Some(content),
            Err(error) => {
                let help = "give a file that this user may read";
                self.error(path, format!("{file} cannot be read: {error}"), help);
                None
            }
        }
    }
}

/// Where containers find their secrets, often with a mode for everybody: nobody else is in there.
#[cfg(unix)]
const OF_CONTAINERS: &str = "/run/secrets";

/// The mode of a file that every user may read: it says so, and each directory that leads there lets everybody pass.
#[cfg(unix)]
fn mode_for_everybody(file: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| Some(std::fs::metadata(path).ok()?.permissions().mode() & 0o777);
    // Links are followed: what they name is what is read.
    let real = file.canonicalize().ok()?;
    if real.starts_with(OF_CONTAINERS) {
        return None;
    }
    let found = mode(&real).filter(|mode| mode & 0o004 != 0)?;
    let is_open = |directory: &Path| mode(directory).is_some_and(|mode| mode & 0o001 != 0);
    real.ancestors().skip(1).all(is_open).then_some(found)
}

#[cfg(not(unix))]
fn mode_for_everybody(_file: &Path) -> Option<u32> {
    None
}
