//! Problems with the configuration: what, where, and what to do.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably not as meant.
    Warning,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The setting, as `dataset.product.key`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Where in the file, if it came from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The environment variable, if it came from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variable: Option<String>,
}

/// A place in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How many characters.
    pub width: usize,
    /// The line's text.
    pub excerpt: String,
}

impl Diagnostic {
    /// A problem without a place.
    #[must_use]
    pub fn error(message: impl Into<String>, help: impl Into<Option<String>>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            help: help.into(),
            path: String::new(),
            position: None,
            variable: None,
        }
    }

    /// The same as a warning.
    #[must_use]
    pub fn into_warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let word = if self.severity == Severity::Error { "error" } else { "warning" };
        writeln!(text, "{word}: {}", self.message)?;
        match (&self.position, &self.variable) {
            (_, Some(variable)) => writeln!(text, "  --> environment variable {variable}")?,
            (Some(position), None) => {
                let number = position.line.to_string();
                let margin = " ".repeat(number.len());
                writeln!(text, "{margin}--> {}:{}:{}", position.file, position.line, position.column)?;
                writeln!(text, "{margin} |")?;
                writeln!(text, "{number} | {}", position.excerpt)?;
                let indent = " ".repeat(position.column.saturating_sub(1));
                writeln!(text, "{margin} | {indent}{}", "^".repeat(position.width.max(1)))?;
            }
            (None, None) if !self.path.is_empty() => writeln!(text, "  --> {}", self.path)?,
            (None, None) => {}
        }
        if let Some(help) = &self.help {
            writeln!(text, "  = help: {help}")?;
        }
        formatter.write_str(text.trim_end())
    }
}

/// All problems as a person reads them.
#[must_use]
pub fn render(problems: &[Diagnostic]) -> String {
    let mut text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n");
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if 0 < errors {
        let plural = if errors == 1 { "" } else { "s" };
        text.push_str(&format!("\n\n{errors} error{plural}"));
    }
    text
}

/// The closest of the known words, if it is close enough to be meant.
#[must_use]
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distance_to = |candidate: &str| distance(&word, &candidate.to_lowercase());
    let close = known.into_iter().map(|candidate| (distance_to(candidate), candidate)).min();
    close
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .map(|(_, word)| word)
}

/// Levenshtein's edit distance, where two neighbours that changed places are one mistake.
#[expect(
    clippy::indexing_slicing,
    reason = "each row has one more element than the right word has characters"
)]
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().collect();
    let right: Vec<char> = right.chars().collect();
    let mut before = Vec::new();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let substituted = row[j] + usize::from(a != b);
            let mut best = substituted.min(next[j] + 1).min(row[j + 1] + 1);
            if 0 < i && 0 < j && left[i - 1] == *b && *a == right[j - 1] {
                let swapped: &Vec<usize> = &before;
                best = best.min(swapped[j - 1] + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_that_was_meant_is_found() {
        let known = ["url", "url_file", "key", "query", "write", "json", "raw", "ttl_jitter"];
        for (word, meant) in [
            ("ULR", Some("url")),
            ("kye", Some("key")),
            ("qurey", Some("query")),
            ("wirte", Some("write")),
            ("JSON", Some("json")),
            ("jsn", Some("json")),
            ("ttl_jiter", Some("ttl_jitter")),
            ("password", None),
        ] {
            assert_eq!(did_you_mean(word, known), meant, "{word}");
        }
    }
}
