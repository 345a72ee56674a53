//! Where in the file a setting stands.

use std::collections::BTreeMap;
use std::ops::Range;

use super::diagnostic::{Diagnostic, Position};

/// The file's path and text, where each setting stands in it, and which come from the environment.
#[derive(Clone, Debug, Default)]
pub struct Source {
    file: String,
    text: String,
    spans: BTreeMap<String, Range<usize>>,
    variables: BTreeMap<String, String>,
    /// Each setting as it was given, by the file or the environment.
    #[cfg(feature = "file")]
    given: BTreeMap<String, String>,
}

impl Source {
    /// Begins with a file.
    #[must_use]
    pub fn new(file: String, text: String) -> Self {
        Self { file, text, ..Self::default() }
    }

    /// The file's path.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    #[cfg(feature = "file")]
    pub(crate) fn given(&self) -> &BTreeMap<String, String> {
        &self.given
    }

    #[cfg(feature = "file")]
    pub(crate) fn set_given(&mut self, given: BTreeMap<String, String>) {
        self.given = given;
    }

    /// The file's text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Notes where a setting's value stands.
    pub fn note(&mut self, path: &str, span: Range<usize>) {
        self.spans.insert(path.to_owned(), span);
    }

    /// Notes that a setting comes from an environment variable.
    #[cfg(feature = "file")]
    pub(crate) fn note_variable(&mut self, path: &str, variable: &str) {
        self.variables.insert(path.to_owned(), variable.to_owned());
    }

    /// Whether an environment variable gives this setting.
    #[cfg(feature = "file")]
    pub(crate) fn is_of_variable(&self, path: &str) -> bool {
        self.variables.contains_key(path)
    }

    /// Whether the file itself has this setting.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.spans.contains_key(path) || self.variables.contains_key(path)
    }

    /// A problem with a setting; where the file does not have it, its section is shown.
    #[must_use]
    pub fn problem(
        &self,
        path: &str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Diagnostic {
        self.problem_within(path, None, message, help)
    }

    /// A problem at a byte of a text.
    #[must_use]
    pub fn problem_within(
        &self,
        path: &str,
        offset: Option<usize>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Diagnostic {
        let mut problem = Diagnostic::error(message, help);
        path.clone_into(&mut problem.path);
        if let Some(variable) = self.variables.get(path) {
            problem.variable = Some(variable.clone());
            return problem;
        }
        let mut shown = path;
        let span = loop {
            if let Some(span) = self.spans.get(shown) {
                break Some(span.clone());
            }
            match shown.rsplit_once('.') {
                Some((parent, _)) => shown = parent,
                None => break None,
            }
        };
        problem.position = span.map(|span| {
            let span =
                offset.filter(|_| shown == path).map_or(span.clone(), |offset| self.inside(&span, offset));
            self.position(span, |line| may_hold_secret(path, line))
        });
        problem
    }

    /// A problem at a place of the file where something stands that is not understood. It may be a secret, whatever it is called,
    /// so no more than its name is shown.
    #[cfg(feature = "file")]
    #[must_use]
    pub(crate) fn problem_at(
        &self,
        path: &str,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Diagnostic {
        let mut problem = Diagnostic::error(message, help);
        path.clone_into(&mut problem.path);
        problem.position = Some(self.position(span, |_line| true));
        problem
    }

    /// The place of a byte of a text within its quotes. Exact unless escapes stand before it.
    fn inside(&self, span: &Range<usize>, offset: usize) -> Range<usize> {
        let written = self.text.get(span.clone()).unwrap_or_default();
        let quotes = if written.starts_with("\"\"\"") || written.starts_with("'''") {
            // A line break right behind the quotes is not part of the text.
            let behind = written.get(3..).unwrap_or_default();
            3 + behind.len()
                - behind.strip_prefix("\r\n").or_else(|| behind.strip_prefix('\n')).unwrap_or(behind).len()
        } else {
            1
        };
        let start = (span.start + quotes + offset).min(span.end.saturating_sub(1));
        let rest = self.text.get(start..span.end).unwrap_or_default();
        let word = rest
            .find(|character: char| !(character.is_alphanumeric() || character == '_'))
            .unwrap_or(rest.len());
        start..start + word.max(1)
    }

    /// Of a line that may hold a secret only what stands before the value is shown.
    fn position(&self, span: Range<usize>, may_hold_secret: impl Fn(&str) -> bool) -> Position {
        let start = (0..=span.start.min(self.text.len()))
            .rev()
            .find(|at| self.text.is_char_boundary(*at))
            .unwrap_or(0);
        let before = self.text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = self.text.get(line_start..).unwrap_or_default();
        let excerpt = rest.lines().next().unwrap_or_default();
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        let marked = self.text.get(start..span.end.min(self.text.len())).unwrap_or_default();
        let width = marked.lines().next().unwrap_or_default().chars().count();
        let excerpt = if may_hold_secret(excerpt) { without_value(excerpt) } else { excerpt.to_owned() };
        // Nor does the mark tell how long it is.
        let room = (excerpt.chars().count() + 1).saturating_sub(column);
        let width = width.min(room).max(1);
        Position { file: self.file.clone(), line: before.matches('\n').count() + 1, column, width, excerpt }
    }
}

/// Whether the line of a known setting may hold a secret: a URL, or what stands beside one in an inline table.
pub(crate) fn may_hold_secret(path: &str, line: &str) -> bool {
    let of_server = path.split('.').next().is_some_and(|section| matches!(section, "postgres" | "redis"));
    line.contains("://") || of_server && (path.ends_with(".url") || line.contains('{'))
}

/// `name = …`; the heading of a section as it is.
fn without_value(line: &str) -> String {
    match line.split_once('=') {
        Some((name, _value)) if !name.contains(['"', '\'', ':']) => format!("{name}= …"),
        None if line.trim_start().starts_with('[') && !line.contains("://") => line.to_owned(),
        _ => "…".to_owned(),
    }
}
