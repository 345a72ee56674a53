//! Pieces of TOML, and comments.

/// The longest line of a comment.
const WIDTH: usize = 110;

/// A text on one line, in quotes.
pub fn quoted(text: &str) -> String {
    let mut written = String::from("\"");
    for one in text.chars() {
        match one {
            '"' => written.push_str("\\\""),
            '\\' => written.push_str("\\\\"),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            control if control.is_control() => written.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => written.push(other),
        }
    }
    written.push('"');
    written
}

/// A text of several lines, as little disguised as it can be.
pub fn block(text: &str) -> String {
    let is_plain = |one: char| !one.is_control() || one == '\n' || one == '\t';
    if !text.chars().all(is_plain) {
        return quoted(text);
    }
    match () {
        () if !text.contains(['\\', '"']) => format!("\"\"\"\n{text}\"\"\""),
        () if !text.contains("''") && !text.ends_with('\'') => format!("'''\n{text}'''"),
        () => format!("\"\"\"\n{}\"\"\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// A name of a key.
pub fn name(text: &str) -> String {
    let is_bare =
        !text.is_empty() && text.chars().all(|one| one.is_ascii_alphanumeric() || matches!(one, '-' | '_'));
    if is_bare { text.to_owned() } else { quoted(text) }
}

/// A list of texts.
pub fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// A sentence, or several, as lines of a comment.
pub fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if WIDTH < line.chars().count() + 1 + word.chars().count() && line != "#" {
            lines.push_str(&line);
            lines.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        // What a name may hold must not end the comment.
        line.extend(word.chars().map(|one| if one.is_control() { '?' } else { one }));
    }
    lines + &line + "\n"
}

/// Lines as a comment, each as it is.
pub fn commented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "#\n".to_owned() } else { format!("# {line}\n") }).collect()
}

/// Text of a template that means itself.
pub fn literal(text: &str) -> String {
    text.replace('{', "{{").replace('}', "}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back() {
        for text in
            ["", "a", "it's \"quoted\"", "back\\slash", "'''\"\"\"", "a\r\u{1}", "ends in '", "line\nline\n"]
        {
            for written in [quoted(text), block(text)] {
                let read = read(&format!("[log]\nlevel = {written}"));
                assert_eq!(read, text, "{written}");
            }
        }
        assert_eq!((name("a-b_1"), name("a b")), ("a-b_1".to_owned(), "\"a b\"".to_owned()));
    }

    fn read(toml: &str) -> String {
        let table: toml::Table = toml.parse().unwrap();
        table["log"]["level"].as_str().unwrap().to_owned()
    }

    #[test]
    fn comments_are_wrapped_and_stay_comments() {
        let text = comment(&"word ".repeat(60));
        assert!(text.lines().all(|line| line.starts_with("# word") && line.len() <= WIDTH), "{text}");
        assert_eq!(comment("a\nb"), "# a b\n");
    }
}
