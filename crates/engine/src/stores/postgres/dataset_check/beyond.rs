//! What a change may touch beyond the keys that its watch rules name. It cannot be proved, so it is a warning: a person knows whether
//! it is so.

use super::watched::Origins;
use super::{Finding, Weight};
use cachekeeper_config::{Dataset, Watch, WatchTarget};

/// Keys that the query computes and a rule takes from a column as it is.
pub(super) fn computed_key(
    setting: &str,
    dataset: &Dataset,
    rule: &Watch,
    origins: &Origins,
) -> Vec<Finding> {
    let WatchTarget::Key(pairs) = &rule.target else { return Vec::new() };
    let is_taken_as_it_is = |shown: &str| origins.get(shown).is_some_and(|origin| !origin.is_computed());
    let computed = pairs.iter().filter(|(shown, column)| {
        !is_taken_as_it_is(shown)
            && !is_cast_of(&dataset.query, column)
            && dataset.key.columns().any(|one| one == *shown)
    });
    let warn = |(shown, column): (&String, &String)| {
        let message = format!(
            "the query computes {shown}, and a changed row of {} touches the entry whose {shown} is its {column} as it stands: where the \
             two differ, no entry is touched, and it stays as it was",
            rule.table
        );
        let help = "watch a column that holds the key's own text (a generated one, for example), watch by a tag, or with dataset = true";
        Finding::new(format!("{setting}.key.{shown}"), message, help).weighing(Weight::Odd)
    };
    computed.map(|(shown, column)| warn((shown, column))).collect()
}

/// A query of which one row's change moves others in or out, where every rule names keys or tags.
pub(super) fn moved_rows(dataset: &Dataset) -> Option<Finding> {
    let by_row = |rule: &Watch| !matches!(rule.target, WatchTarget::Dataset);
    if dataset.watch.is_empty() || !dataset.watch.iter().all(by_row) {
        return None;
    }
    let words = outer_words(&dataset.query);
    let has = |one: &str| words.iter().any(|word| word == one);
    let follows = |one: &str, next: &str| {
        words.windows(2).any(|pair| matches!(pair, [first, second] if first == one && second == next))
    };
    let what = if has("limit") || has("offset") || follows("fetch", "first") || follows("fetch", "next") {
        "`limit`, `offset` or `fetch`"
    } else if follows("over", "(") {
        "a window (`over`)"
    } else {
        return None;
    };
    let message = format!(
        "the query has {what}: a changed row may move others in or out of the result or change their values, and no rule touches their \
         entries"
    );
    let help = "use dataset = true in the watch rule of that table, if it is so";
    Some(Finding::new("query", message, help).weighing(Weight::Odd))
}

/// Whether the query has a column with a cast: its text is most likely the same.
fn is_cast_of(query: &str, column: &str) -> bool {
    let words = outer_words(query);
    let is_column = |word: &str| word == column;
    let by_colons =
        words.windows(2).any(|pair| matches!(pair, [name, cast] if is_column(name) && cast == "::"));
    // What stands in brackets is left out but for its first word.
    by_colons || words
            .windows(3)
            .any(|three| matches!(three, [cast, opening, name] if cast == "cast" && opening == "(" && is_column(name)))
}

/// The words of a query outside of brackets, texts and comments, in small letters; of what stands in brackets the opening one and the
/// first word.
fn outer_words(query: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut depth = 0_usize;
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let (end, word) = match first {
            '\'' | '"' => (behind_quotes(rest, first), None),
            '-' if rest.starts_with("--") => (rest.find('\n').unwrap_or(rest.len()), None),
            '/' if rest.starts_with("/*") => (rest.find("*/").map_or(rest.len(), |at| at + 2), None),
            ':' if rest.starts_with("::") => (2, Some("::".to_owned())),
            '(' => (1, Some("(".to_owned())),
            ')' => (1, None),
            _ if first.is_alphanumeric() || first == '_' => {
                let is_part = |one: char| one.is_alphanumeric() || one == '_';
                let end = rest.find(|one: char| !is_part(one)).unwrap_or(rest.len());
                (end, rest.get(..end).map(str::to_lowercase))
            }
            _ => (first.len_utf8(), None),
        };
        let is_first_within = words.last().is_some_and(|last| last == "(") && depth == 1;
        if let Some(word) = word.filter(|_| depth == 0 || is_first_within) {
            words.push(word);
        }
        match first {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        rest = rest.get(end.max(1)..).unwrap_or_default();
    }
    words
}

/// Behind the closing one of these quotes.
fn behind_quotes(text: &str, quote: char) -> usize {
    text.char_indices()
        .skip(1)
        .find(|(_, one)| *one == quote)
        .map_or(text.len(), |(at, one)| at + one.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_outside_counts() {
        let words = outer_words(
            "select a, (select b from t limit 1) -- limit\n from \"limit\" where c = 'offset 1' /* over ( */",
        );
        assert!(!words.iter().any(|word| ["limit", "offset", "over"].contains(&word.as_str())), "{words:?}");
        assert!(outer_words("select a from t order by a LIMIT 10").contains(&"limit".to_owned()));
        let words = outer_words("select rank() over (order by a) from t");
        assert!(words.windows(2).any(|pair| pair[0] == "over" && pair[1] == "("), "{words:?}");
    }

    #[test]
    fn a_cast_is_taken_to_have_the_same_text() {
        assert!(is_cast_of("select id::text as id from t", "id"));
        assert!(is_cast_of("select cast(id as text) as id from t", "id"));
        assert!(!is_cast_of("select lower(name) as name from t", "name"));
        assert!(!is_cast_of("select id + 1000 as id from t", "id"));
    }
}
