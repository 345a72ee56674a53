//! What is no TOML, each mistake once. Behind some mistakes the parser loses its way, so the statement with the first one is blanked in a
//! copy, where every byte keeps its place, and the copy is read again.

mod statements;

use std::ops::Range;

use toml::de::DeTable;

use self::statements::{Statement, statements};

/// So many mistakes are told. A file with more is in another language.
const MISTAKES_MAX: usize = 10;
/// What a merge leaves behind.
const MERGE_MARKS: [&str; 3] = ["<<<<<<<", "=======", ">>>>>>>"];

/// Something that is no TOML.
#[derive(Debug)]
pub struct Mistake {
    /// Where.
    pub span: Range<usize>,
    pub message: String,
    pub help: Option<String>,
    /// The setting that was meant, as far as that can be told, else its section.
    pub path: String,
}

/// The text without the statements that are no TOML, and what is wrong with those.
pub fn without_mistakes(text: &str) -> (String, Vec<Mistake>) {
    let mut copy = text.to_owned();
    let mut mistakes = Vec::new();
    end_lines(&mut copy, &mut mistakes);
    leave_merge_out(&mut copy, &mut mistakes);
    while mistakes.len() < MISTAKES_MAX {
        let (_, errors) = DeTable::parse_recoverable(&copy);
        let start = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
        let Some(first) = errors.into_iter().min_by_key(start) else { break };
        let found = statements(&copy);
        let at = start(&first);
        // What follows an open bracket is told of the lines behind it.
        let open = found.iter().position(|one| one.unclosed.is_some() && one.span.start <= at);
        let last = || found.iter().rposition(|one| one.span.start <= at);
        let position = open.or_else(last).unwrap_or_default();
        let Some(statement) = found.get(position) else { break };
        let (mistake, range) = explain(&copy, &found, (position, statement), &first);
        mistakes.push(mistake);
        // Nothing would be another one the next time.
        if !blank(&mut copy, range) {
            break;
        }
    }
    (copy, mistakes)
}

/// What is wrong with a statement, and how much of the text is left out for it.
fn explain(
    text: &str,
    all: &[Statement],
    (position, statement): (usize, &Statement),
    error: &toml::de::Error,
) -> (Mistake, Range<usize>) {
    let before = all.get(..position).unwrap_or_default();
    let section = before.iter().rev().find_map(|one| one.heading.as_deref()).unwrap_or_default();
    let key = statement.key(text);
    let path = match &statement.heading {
        Some(heading) => heading.clone(),
        None if section.is_empty() || key.is_empty() => format!("{section}{key}"),
        None => format!("{section}.{key}"),
    };
    let whole = statement.span.clone();
    if let Some((bracket, at)) = statement.unclosed {
        let close = if bracket == '[' { ']' } else { '}' };
        let message = format!("not TOML: this `{bracket}` has no `{close}`");
        let help = Some(format!("close it before the next setting, with `{close}`"));
        return (Mistake { span: at..at + 1, message, help, path }, whole);
    }
    let span = error.span().unwrap_or_else(|| whole.clone());
    if error.message().contains("duplicate key")
        && let Some((line, earlier)) = twin(text, all, position)
    {
        let message = format!("{earlier} stands in line {line} already");
        let help = Some("keep one of them".to_owned());
        // What stands below a heading belongs to it.
        let after = all.get(position + 1..).unwrap_or_default();
        let next = after.iter().find(|one| one.heading.is_some()).map_or(text.len(), |one| one.span.start);
        let range = if statement.heading.is_some() { whole.start..next } else { whole };
        return (Mistake { span, message, help, path }, range);
    }
    let written = statement.written(text);
    let is_below = text.get(whole.start..span.start).is_some_and(|before| before.contains('\n'));
    if is_below && ["\"\"\"", "'''"].iter().any(|quotes| written.contains(quotes)) {
        let message = "not TOML: the quotes of this text are not closed as they are opened".to_owned();
        let span = whole.start..whole.start + key.len();
        return (Mistake { span, message, help: None, path }, whole);
    }
    let (message, help) = advise(written, key, format!("not TOML: {}", error.message()));
    (Mistake { span, message, help, path }, whole)
}

/// What to write instead. Values are not repeated: they may be secrets.
fn advise(written: &str, key: &str, message: String) -> (String, Option<String>) {
    if written.starts_with("//") {
        return (message, Some("a comment begins with #".to_owned()));
    }
    let value = written.split_once('=').map(|(_, value)| value.trim()).unwrap_or_default();
    let word = value.split('#').next().unwrap_or_default().trim();
    match word.to_lowercase().as_str() {
        lower @ ("true" | "false") => {
            return ("not TOML: a word in capitals".to_owned(), Some(format!("write {key} = {lower}")));
        }
        "yes" | "on" | "no" | "off" => {
            let help = format!("write {key} = true or false, or a text in quotes: {key} = \"…\"");
            return ("not TOML: this word has no meaning without quotes".to_owned(), Some(help));
        }
        _ => {}
    }
    if value.starts_with(|one: char| one.is_alphabetic() || matches!(one, '/' | '*' | '@')) {
        let message = "not TOML: a text without quotes".to_owned();
        return (message, Some(format!("write it in quotes: {key} = \"…\"")));
    }
    if value.starts_with(|one: char| one.is_ascii_digit()) && word.ends_with(char::is_alphabetic) {
        return (message, Some(format!("write it in quotes: {key} = \"{word}\"")));
    }
    let is_bare = !key.is_empty() && !written.contains('=');
    let help = is_bare.then(|| format!("write {key} = …, with the text in quotes"));
    (message, help)
}

/// The line of an earlier statement with the same name in the same section, and what it is.
fn twin(text: &str, all: &[Statement], position: usize) -> Option<(usize, String)> {
    let statement = all.get(position)?;
    let before = all.get(..position)?;
    let (found, shown) = match &statement.heading {
        Some(heading) => {
            let found = before.iter().find(|one| one.heading.as_ref() == Some(heading))?;
            (found, format!("[{heading}]"))
        }
        None => {
            let key = statement.key(text);
            let of_section = before.iter().rev().take_while(|one| one.heading.is_none());
            (of_section.filter(|one| one.key(text) == key).last()?, format!("`{key}`"))
        }
    };
    let line = text.get(..found.span.start).unwrap_or_default().matches('\n').count() + 1;
    Some((line, shown))
}

/// Lines that end in a carriage return alone are read as lines.
fn end_lines(copy: &mut String, mistakes: &mut Vec<Mistake>) {
    let bytes = copy.as_bytes();
    let is_alone = |at: &usize| bytes.get(*at) == Some(&b'\r') && bytes.get(at + 1) != Some(&b'\n');
    let Some(first) = (0..bytes.len()).find(is_alone) else { return };
    let message = "not TOML: a line ends in a carriage return alone".to_owned();
    let help = Some("end each line in a line feed".to_owned());
    mistakes.push(Mistake { span: first..first + 1, message, help, path: String::new() });
    *copy = copy.replace("\r\n", " \n").replace('\r', "\n");
}

/// Of an unfinished merge the first side is read, and the other one is not.
fn leave_merge_out(copy: &mut String, mistakes: &mut Vec<Mistake>) {
    let mut ranges = Vec::new();
    let (mut at, mut is_other) = (0, false);
    for line in copy.split_inclusive('\n') {
        let mark = MERGE_MARKS.iter().position(|mark| line.starts_with(mark));
        match mark {
            Some(1) => is_other = true,
            Some(2) => is_other = false,
            _ => {}
        }
        if mark.is_some() || is_other {
            ranges.push(at..at + line.len());
        }
        at += line.len();
    }
    let Some(first) = ranges.first().cloned() else { return };
    let message = "not TOML: a merge was not finished here".to_owned();
    let help = Some("keep one of the two sides, and remove the marks".to_owned());
    mistakes.push(Mistake { span: first, message, help, path: String::new() });
    for range in ranges {
        blank(copy, range);
    }
}

/// Puts blanks in the place of everything but line ends; whether that changes anything.
fn blank(text: &mut String, range: Range<usize>) -> bool {
    let Some(part) = text.get(range.clone()) else { return false };
    let blanks: String = part
        .chars()
        .map(|one| if matches!(one, '\n' | '\r') { one.to_string() } else { " ".repeat(one.len_utf8()) })
        .collect();
    let is_news = part != blanks;
    text.replace_range(range, &blanks);
    is_news
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let (copy, mistakes) = without_mistakes(text);
        assert_eq!(copy.len(), text.len());
        let line = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        let one =
            |mistake: &Mistake| format!("{} {}: {}", line(mistake.span.start), mistake.path, mistake.message);
        mistakes.iter().map(one).collect()
    }

    #[test]
    fn each_mistake_is_told_once_at_its_line() {
        for (text, expected) in [
            ("[feed]\nmax_lag \"30s\"\nmax_rows = 5\n", &["2 feed.max_lag"][..]),
            ("[log]\nlevel = info\nformat = json # x\n", &["2 log.level", "3 log.format"]),
            ("ttl: \"1h\"\n// a comment\n[x]\n", &["1 ttl", "2 "]),
            (
                "[a.b]\ntags = [\n \"x\",\nkey = \"k\"\n[a.c]\nkey = \"open\nquery = 1\n",
                &["2 a.b.tags: not TOML: this `[`", "6 a.c.key"],
            ),
            ("[dataset.p\nquery = 1\nkey = 2\n", &["1 "]),
            (
                "[d.p]\nkey = 1\n[d.q]\nkey = 1\n[d.p]\nkey = 2\nttl = 3\n[x]\ny = 1\n",
                &["5 d.p: [d.p] stands in line 1 already"],
            ),
            (
                "[d]\nkey = 1\nkey = 2\nkey = 3\n",
                &["3 d.key: `key` stands in line 2", "4 d.key: `key` stands in line 2"],
            ),
            ("[d]\n<<<<<<< a\nx = 1\n=======\nx = 2\n>>>>>>> b\ny = 1\n", &["2 : not TOML: a merge"]),
            ("x = \"\"\"\nnever closed\n[y]\n", &["1 x"]),
            ("x = { a = [\"1\", \"2\" }\ny = 1\n", &["1 x"]),
        ] {
            let told = told(text);
            let is_right = told.len() == expected.len()
                && told.iter().zip(expected).all(|(told, expected)| told.starts_with(expected));
            assert!(is_right, "{text}\n{told:#?}");
        }
    }

    #[test]
    fn a_right_file_has_no_mistakes_and_a_wrong_one_ends() {
        let right = "a = [ # [\n  { b = \"=\", c = '[' },\n  [1],\n]\nd = \"\"\"\n[x\ny = \"\"\"\n[e.\"f g\"]\nh = { i = 1,\n  j = 2 }\n";
        assert_eq!(told(right), Vec::<String>::new());
        let yaml = "service:\n  namespace: x\n  - y\n".repeat(20);
        assert_eq!(told(&yaml).len(), MISTAKES_MAX);
        for text in ["", "\n", "\u{0}", "[", "]", "=", "é", "x = \"é\n[", "\"", "'''", "a.b.c", "[[x]]\n[x]"]
        {
            drop(told(text));
        }
    }
}
