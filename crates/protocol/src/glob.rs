//! Patterns of keys, as Redis has them in `KEYS` and `SCAN … MATCH`: `*`, `?`, `[a-z]`, `[^a]`, `\` before a character
//! that means itself.

/// A pattern that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Any number of bytes.
    Any,
    /// One byte, whichever.
    One,
    /// This byte.
    Byte(u8),
    /// One byte of these ranges, or of none of them.
    Class { ranges: Vec<(u8, u8)>, is_negated: bool },
}

impl Part {
    fn has(&self, byte: u8) -> bool {
        match self {
            Self::Any => false,
            Self::One => true,
            Self::Byte(own) => *own == byte,
            Self::Class { ranges, is_negated } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *is_negated
            }
        }
    }
}

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// Says what is wrong: an open `[`, or a `\` at the end. Redis takes such patterns in ways of its own.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut parts = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            let part = match byte {
                b'*' => Part::Any,
                b'?' => Part::One,
                b'[' => class(&mut bytes)?,
                b'\\' => Part::Byte(bytes.next().ok_or("it ends in a backslash")?),
                other => Part::Byte(other),
            };
            if part != Part::Any || parts.last() != Some(&Part::Any) {
                parts.push(part);
            }
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a key has this pattern. The work is bounded by the product of both lengths, whatever the pattern.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        let (key, parts) = (key.as_bytes(), self.parts.as_slice());
        let (mut at, mut part) = (0, 0);
        // The last `*`, and where in the key what follows it was tried: the only place to go back to.
        let mut last_any: Option<(usize, usize)> = None;
        while let Some(byte) = key.get(at) {
            match parts.get(part) {
                Some(Part::Any) => {
                    last_any = Some((part, at));
                    part += 1;
                }
                Some(one) if one.has(*byte) => {
                    at += 1;
                    part += 1;
                }
                _ => {
                    let Some((any, tried)) = last_any else { return false };
                    last_any = Some((any, tried + 1));
                    part = any + 1;
                    at = tried + 1;
                }
            }
        }
        parts.iter().skip(part).all(|rest| *rest == Part::Any)
    }
}

/// A name as a pattern that fits it. White space becomes `?`: access rules of Redis are separated by it.
#[must_use]
pub fn escape(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '*' | '?' | '[' | ']' | '\\' => pattern.extend(['\\', character]),
            blank if blank.is_ascii_whitespace() || blank == '\0' => pattern.push('?'),
            other => pattern.push(other),
        }
    }
    pattern
}

/// What stands between brackets.
fn class(bytes: &mut std::str::Bytes<'_>) -> Result<Part, &'static str> {
    const OPEN: &str = "a `[` is never closed";
    let mut ranges: Vec<(u8, u8)> = Vec::new();
    let mut rest = bytes.clone();
    let is_negated = rest.next() == Some(b'^');
    if is_negated {
        *bytes = rest;
    }
    loop {
        let first = match bytes.next().ok_or(OPEN)? {
            b']' => return Ok(Part::Class { ranges, is_negated }),
            b'\\' => bytes.next().ok_or(OPEN)?,
            other => other,
        };
        let mut rest = bytes.clone();
        let range = match (rest.next(), rest.next()) {
            (Some(b'-'), Some(last)) if last != b']' => {
                *bytes = rest;
                let last = if last == b'\\' { bytes.next().ok_or(OPEN)? } else { last };
                (first.min(last), first.max(last))
            }
            _ => (first, first),
        };
        ranges.push(range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, key: &str) -> bool {
        Glob::parse(pattern).is_ok_and(|glob| glob.matches(key))
    }

    #[test]
    fn patterns_mean_what_they_mean_to_redis() {
        let table = [
            ("page:*", "page:1", true),
            ("page:*", "page:", true),
            ("page:*", "pag:1", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*:1", "a:b:1", true),
            ("*:1", "a:b:12", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hallo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-]llo", "h-llo", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[\\]]", "]", true),
            ("[]]", "]", false),
        ];
        for (pattern, key, expected) in table {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
        assert!(Glob::parse("[a").is_err());
        assert!(Glob::parse("a\\").is_err());
    }

    #[test]
    fn a_malicious_pattern_costs_little() {
        let pattern = format!("{}b", "*a".repeat(200));
        assert!(!matches(&pattern, &"a".repeat(4_000)));
    }
}
