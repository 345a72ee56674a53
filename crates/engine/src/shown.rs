//! Names that anybody may have chosen, as they are shown: never longer than a line bears, and nothing that steers a terminal.

use std::borrow::Cow;

use cachekeeper_protocol::keyspace::key_hash;

/// The longest text that is shown or kept of a key or a reason, in bytes.
pub const SHOWN_MAX: usize = 256;
const ELLIPSIS: &str = "…";
/// What tells apart long names that begin alike.
const HASH_BYTES: usize = 16;

/// The beginning of a text, with an ellipsis where it is longer.
#[must_use]
pub fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN_MAX {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}{ELLIPSIS}", beginning(text, SHOWN_MAX - ELLIPSIS.len())))
}

/// The same for a name: two that begin alike stay two.
#[must_use]
pub fn cut_name(name: &str) -> Cow<'_, str> {
    if name.len() <= SHOWN_MAX {
        return Cow::Borrowed(name);
    }
    let begins = beginning(name, SHOWN_MAX - ELLIPSIS.len() - HASH_BYTES);
    Cow::Owned(format!("{begins}{ELLIPSIS}{:016x}", key_hash(name.as_bytes())))
}

/// The same text with what steers a terminal written out.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for one in text.chars() {
        if one.is_control() { shown.extend(one.escape_default()) } else { shown.push(one) }
    }
    Cow::Owned(shown)
}

/// Names of which a line bears so many; of more the first ones, and how many others there are.
#[must_use]
pub fn few(names: &[impl AsRef<str>]) -> String {
    /// That many are read at a glance.
    const MOST: usize = 6;
    let shown: Vec<&str> = names.iter().take(MOST).map(AsRef::as_ref).collect();
    match names.len().saturating_sub(MOST) {
        0 => shown.join(", "),
        more => format!("{}, and {more} more", shown.join(", ")),
    }
}

fn beginning(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_cut_between_characters_and_long_names_stay_apart() {
        assert_eq!(cut("short"), "short");
        let long = "ü".repeat(300);
        let shown = cut(&long);
        assert!(shown.len() <= SHOWN_MAX && shown.ends_with("ü…"), "{shown}");
        let (one, other) = (cut_name(&long).into_owned(), format!("{long}x"));
        assert!(one.len() <= SHOWN_MAX && one.contains('…'));
        assert_ne!(one, cut_name(&other));
    }

    #[test]
    fn of_many_names_a_few_are_shown() {
        assert_eq!(few(&["a", "b"]), "a, b");
        let many: Vec<String> = (1..=9).map(|number| number.to_string()).collect();
        assert_eq!(few(&many), "1, 2, 3, 4, 5, 6, and 3 more");
    }

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(escaped("a\u{1b}[2Jb\n\u{9b}"), "a\\u{1b}[2Jb\\n\\u{9b}");
        assert_eq!(escaped("köln"), "köln");
    }
}
