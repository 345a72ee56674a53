//! The statements of a file: settings and headings, each with all of its lines. Also of a text that is no TOML.

use std::ops::Range;

/// A setting or a heading.
#[derive(Debug)]
pub(super) struct Statement {
    /// With the line ends.
    pub span: Range<usize>,
    /// The name in a heading, without quotes and blanks.
    pub heading: Option<String>,
    /// A bracket that is open at the end, and where it stands.
    pub unclosed: Option<(char, usize)>,
}

impl Statement {
    /// Its text from the first character that is no blank.
    pub(super) fn written<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.span.clone()).unwrap_or_default().trim()
    }

    /// The name of a setting.
    pub(super) fn key<'a>(&self, text: &'a str) -> &'a str {
        let written = self.written(text);
        let end = written.find(|one: char| !is_of_key(one)).unwrap_or(written.len());
        written.get(..end).unwrap_or_default()
    }
}

/// All statements, in their order. Lines without one belong to that before them.
pub(super) fn statements(text: &str) -> Vec<Statement> {
    let mut found = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let (end, unclosed) = end_of(text, start);
        let line = text.get(start..end).unwrap_or_default().lines().next().unwrap_or_default();
        found.push(Statement { span: start..end, heading: heading(line), unclosed });
        start = end;
    }
    found
}

/// Where a statement ends, and which bracket it leaves open.
fn end_of(text: &str, start: usize) -> (usize, Option<(char, usize)>) {
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut at = start;
    while let Some(one) = text.get(at..).and_then(|rest| rest.chars().next()) {
        let rest = text.get(at..).unwrap_or_default();
        at += match one {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => quoted(rest, one),
            '[' | '{' => {
                open.push((one, at));
                1
            }
            ']' | '}' => {
                open.pop();
                1
            }
            '\n' => {
                let next = rest.get(1..).unwrap_or_default().lines().next().unwrap_or_default();
                match open.last() {
                    None => return (at + 1, None),
                    Some((bracket, _)) if begins_another(next, *bracket) => {
                        return (at + 1, open.first().copied());
                    }
                    Some(_) => 1,
                }
            }
            other => other.len_utf8(),
        };
    }
    (text.len(), open.first().copied())
}

/// How long the text in quotes is that begins here, with its quotes. A plain one ends at its line's end.
fn quoted(text: &str, quote: char) -> usize {
    let long = String::from(quote).repeat(3);
    let is_long = text.starts_with(&long);
    let marks = if is_long { 3 } else { 1 };
    let mut is_escaped = false;
    for (at, one) in text.char_indices().skip(marks) {
        let rest = text.get(at..).unwrap_or_default();
        if is_escaped {
            is_escaped = false;
        } else if one == '\\' && quote == '"' {
            is_escaped = true;
        } else if is_long && rest.starts_with(&long) {
            // Two quotes may stand before the closing ones.
            return at + rest.len() - rest.trim_start_matches(quote).len().min(rest.len());
        } else if !is_long && one == quote {
            return at + 1;
        } else if !is_long && one == '\n' {
            return at;
        }
    }
    text.len()
}

fn is_of_key(one: char) -> bool {
    one.is_ascii_alphanumeric() || matches!(one, '_' | '-' | '.')
}

/// Whether a line within brackets is the next setting or heading. Settings may stand in braces.
fn begins_another(line: &str, bracket: char) -> bool {
    let line = line.trim_start();
    let behind = line.trim_start_matches(is_of_key);
    let is_setting =
        behind.len() < line.len() && behind.trim_start().starts_with('=') && !line.starts_with('.');
    heading(line).is_some() || bracket == '[' && is_setting
}

/// The name in a heading; none: the line is none.
fn heading(line: &str) -> Option<String> {
    let line = line.trim_start();
    let name = line.trim_start_matches('[');
    if name.len() == line.len() || !name.trim_start().starts_with(|one: char| one.is_ascii_alphabetic()) {
        return None;
    }
    let end = name.find([']', '#', '=', ',', '\n']).unwrap_or(name.len());
    let (name, rest) = name.split_at_checked(end)?;
    let is_alone = rest.trim_start_matches(']').trim_start();
    let is_heading = is_alone.is_empty() || is_alone.starts_with('#');
    is_heading.then(|| name.chars().filter(|one| !matches!(one, '"' | '\'' | ' ' | '\t')).collect())
}
