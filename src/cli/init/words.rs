//! SQL as words: as much of it as is needed to see how a statement is made up. Whether it is right, Postgres says.

/// A word of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub kind: WordKind,
    /// As it was written.
    pub text: String,
    /// Whether blanks stand before it.
    pub is_apart: bool,
    /// In how many parentheses it stands; those themselves stand outside of them.
    pub depth: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WordKind {
    /// A keyword or a name.
    Name,
    /// A name in quotes.
    Quoted,
    /// `$1`
    Parameter,
    /// A text or a number.
    Constant,
    /// Anything else.
    Symbol,
}

impl Word {
    /// Whether it is this keyword or symbol.
    pub fn is(&self, text: &str) -> bool {
        matches!(self.kind, WordKind::Name | WordKind::Symbol) && self.text.eq_ignore_ascii_case(text)
    }

    /// The name that it is, as the catalogs have it.
    pub fn name(&self) -> Option<String> {
        match self.kind {
            WordKind::Name => Some(self.text.to_lowercase()),
            WordKind::Quoted => {
                let inner = self.text.trim_start_matches('"').strip_suffix('"')?;
                Some(inner.replace("\"\"", "\""))
            }
            WordKind::Parameter | WordKind::Constant | WordKind::Symbol => None,
        }
    }
}

/// The words of a statement, without comments; none: it ends within a text or a comment.
pub fn words(sql: &str) -> Option<Vec<Word>> {
    let all: Vec<char> = sql.chars().collect();
    let (mut words, mut at, mut depth, mut is_apart) = (Vec::new(), 0, 0_usize, false);
    while let Some(first) = all.get(at).copied() {
        let next = all.get(at + 1).copied();
        if first.is_whitespace() {
            (at, is_apart) = (at + 1, true);
            continue;
        }
        if first == '-' && next == Some('-') {
            at += all.iter().skip(at).take_while(|one| **one != '\n').count();
            continue;
        }
        if first == '/' && next == Some('*') {
            let rest: String = all.iter().skip(at + 2).collect();
            at += 4 + rest.find("*/").map(|end| rest.get(..end).map_or(0, |text| text.chars().count()))?;
            is_apart = true;
            continue;
        }
        let (kind, length) = match first {
            '"' => (WordKind::Quoted, quoted(&all, at, '"')?),
            '\'' => (WordKind::Constant, quoted(&all, at, '\'')?),
            '$' if next.is_some_and(|next| next.is_ascii_digit()) => {
                (WordKind::Parameter, 1 + run(&all, at + 1, |one| one.is_ascii_digit()))
            }
            // A body in dollars is a text that nobody compares with.
            '$' => return None,
            one if one.is_ascii_digit() => {
                (WordKind::Constant, run(&all, at, |one| one.is_alphanumeric() || one == '.'))
            }
            one if one.is_alphabetic() || one == '_' => {
                (WordKind::Name, run(&all, at, |one| one.is_alphanumeric() || matches!(one, '_' | '$')))
            }
            '(' | ')' | ',' | ';' | '.' | '[' | ']' => (WordKind::Symbol, 1),
            ':' if next == Some(':') => (WordKind::Symbol, 2),
            _ => (WordKind::Symbol, run(&all, at, |one| "+-*/<>=~!@#%^&|`?:".contains(one)).max(1)),
        };
        let text: String = all.iter().skip(at).take(length).collect();
        depth = if text == ")" { depth.saturating_sub(1) } else { depth };
        words.push(Word { kind, depth, is_apart, text: text.clone() });
        depth += usize::from(text == "(");
        (at, is_apart) = (at + length, false);
    }
    Some(words)
}

fn run(all: &[char], at: usize, is_part: impl Fn(char) -> bool) -> usize {
    all.iter().skip(at).take_while(|one| is_part(**one)).count()
}

/// The length of what stands in quotes; a doubled one is part of it.
fn quoted(all: &[char], at: usize, quote: char) -> Option<usize> {
    let mut length = 1;
    loop {
        length += run(all, at + length, |one| one != quote) + 1;
        all.get(at + length - 1)?;
        if all.get(at + length) != Some(&quote) {
            return Some(length);
        }
        length += 1;
    }
}

/// Words as text again.
pub fn text(words: &[Word]) -> String {
    let mut text = String::new();
    for (position, word) in words.iter().enumerate() {
        if 0 < position && word.is_apart {
            text.push(' ');
        }
        text.push_str(&word.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_and_comments_go() {
        for (sql, shown) in [
            (
                "select  a.\"b\"\"c\" from t -- x\n where d='it''s' and e = $12",
                "select a.\"b\"\"c\" from t where d='it''s' and e = $12",
            ),
            ("select /* $1 */ a::text[], count(*)", "select a::text[], count(*)"),
            ("a>=1.5 and b<>c", "a>=1.5 and b<>c"),
        ] {
            assert_eq!(text(&words(sql).unwrap()), shown, "{sql}");
        }
        assert!(words("select 'open").is_none() && words("select /* open").is_none());
        let depths: Vec<usize> = words("a (b, (c)) d").unwrap().iter().map(|word| word.depth).collect();
        assert_eq!(depths, [0, 0, 1, 1, 1, 2, 1, 0, 0]);
    }
}
