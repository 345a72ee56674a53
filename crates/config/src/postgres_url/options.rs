//! The `options` of a URL: settings as a server's command line has them.

/// `-c name=value`, `-cname=value` and `--name=value`, divided by blanks; a backslash keeps what follows it. None where it holds
/// anything else.
pub(super) fn settings(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut words = words(text).into_iter();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("--") {
            Some(pair) => pair.to_owned(),
            None => match word.strip_prefix("-c")? {
                "" => words.next()?,
                pair => pair.to_owned(),
            },
        };
        let (name, value) = pair.split_once('=')?;
        // On the command line a dash stands for an underscore.
        found.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(found)
}

fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.get_or_insert_default().extend(characters.next()),
            blank if blank.is_ascii_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}
