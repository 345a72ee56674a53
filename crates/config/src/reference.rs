//! The commented file with every key, as the table of keys has it.

use super::key::{Key, Kind};
use super::raw::join;
use super::table::ROOT;

const WIDTH: usize = 118;

const HEADER: &str = "Every key that Cachekeeper knows, with its default where it has one. Durations and sizes carry \
    units (\"30s\", \"1KiB\"), shares a percent sign. Every key can be overridden by an environment variable: \
    CACHEKEEPER__REDIS__URL, CACHEKEEPER__DATASET__PRODUCT__TTL. `cachekeeper check` says what is wrong, and where. \
    `cachekeeper schema --toml` prints this file, `cachekeeper schema` its JSON Schema for editors.";

/// An example: the keys that it shows, and a value where it is not the one of the table.
type Example = (&'static str, &'static [(&'static str, &'static str)]);

const DATASETS: [Example; 2] = [
    (
        "product",
        &[
            ("query", ""),
            ("key", ""),
            ("tags", ""),
            ("watch", ""),
            ("# reads", ""),
            ("scope", ""),
            ("compression.codec", ""),
            ("compression.min_size", ""),
            ("refresh.ahead", ""),
            ("warm.on_start", ""),
            ("warm.schedule", ""),
            ("warm.timezone", ""),
            ("warm.order_by", ""),
            ("warm.limit", ""),
            ("# warm.rate", ""),
            ("write.statement", ""),
        ],
    ),
    (
        "reviews",
        &[
            ("query", "\"select r.product_id, r.id, r.stars, r.body from reviews r\""),
            ("key", "\"reviews:{product_id}\""),
            ("rows", "\"many\""),
            ("sort", ""),
            ("watch", "[{ table = \"reviews\", key = { product_id = \"product_id\" } }]"),
            ("# value", ""),
            ("# ttl_column", ""),
        ],
    ),
];

/// The file.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    comment(&mut text, HEADER);
    for section in ROOT {
        match section.kind {
            Kind::Table(keys) => {
                text.push('\n');
                comment(&mut text, section.help);
                text.push_str(&format!("[{}]\n", section.name));
                // Tables within are shown with a dataset.
                for key in keys.iter().filter(|key| !matches!(key.kind, Kind::Table(_))) {
                    comment(&mut text, key.help);
                    let mark = if key.default.is_some() { "" } else { "# " };
                    text.push_str(&format!("{mark}{} = {}\n", key.name, value(key)));
                }
            }
            Kind::Named(keys) => datasets(&mut text, section, keys),
            _ => {}
        }
    }
    text
}

fn datasets(text: &mut String, section: &Key, keys: &'static [Key]) {
    for (number, (name, shown)) in DATASETS.iter().enumerate() {
        // What a key means is said where it is shown first.
        let earlier = DATASETS.iter().take(number).flat_map(|(_, shown)| shown.iter());
        let explained: Vec<&str> = earlier.map(|(path, _)| bare(path)).collect();
        let path = join(section.name, name);
        text.push('\n');
        if number == 0 {
            comment(text, section.help);
        }
        text.push_str(&format!("[{path}]\n"));
        settings(text, "", keys, shown, &explained);
        for table in keys {
            let Kind::Table(keys) = table.kind else {
                continue;
            };
            if shown.iter().any(|(path, _)| bare(path).starts_with(&join(table.name, ""))) {
                text.push('\n');
                comment(text, table.help);
                text.push_str(&format!("[{}]\n", join(&path, table.name)));
                settings(text, table.name, keys, shown, &explained);
            }
        }
    }
}

/// The settings of one table, those that are shown.
fn settings(text: &mut String, table: &str, keys: &[Key], shown: &[(&str, &str)], explained: &[&str]) {
    for key in keys {
        let path = join(table, key.name);
        let Some((written, instead)) = shown.iter().find(|(written, _)| bare(written) == path) else {
            continue;
        };
        if !explained.contains(&path.as_str()) {
            comment(text, key.help);
            if let Kind::Tables(keys) = key.kind {
                for key in keys {
                    comment(text, &format!("- `{}`: {}", key.name, key.help));
                }
            }
        }
        let mark = if bare(written) == *written { "" } else { "# " };
        let value = if instead.is_empty() { value(key) } else { (*instead).to_owned() };
        text.push_str(&format!("{mark}{} = {value}\n", key.name));
    }
}

/// A path without the mark of those that are shown as a comment.
fn bare(path: &str) -> &str {
    path.trim_start_matches("# ")
}

/// The key's default or example as TOML.
fn value(key: &Key) -> String {
    let Some(default) = key.default else {
        return key.example.unwrap_or_default().to_owned();
    };
    match key.kind {
        Kind::Integer(..) | Kind::Boolean => default.to_owned(),
        Kind::Texts(_) => {
            let texts = default.split(',').map(str::trim).filter(|text| !text.is_empty());
            let texts: Vec<String> = texts.map(|text| format!("{text:?}")).collect();
            format!("[{}]", texts.join(", "))
        }
        _ => format!("{default:?}"),
    }
}

/// A text as lines of a comment.
fn comment(output: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if WIDTH < line.chars().count() + 1 + word.chars().count() {
            output.push_str(&line);
            output.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    output.push_str(&line);
    output.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that the table explains, but for what datasets inherit, which stands in `[defaults]`.
    fn missing(keys: &[Key], path: &str, text: &str, found: &mut Vec<String>) {
        let one_line = text.replace("\n# ", " ");
        for key in keys.iter().filter(|key| !key.is_inherited || matches!(key.kind, Kind::Table(_))) {
            let below = join(path, key.name);
            let shown = format!("{} = ", key.name);
            let is_shown = match key.kind {
                Kind::Table(_) | Kind::Named(_) => true,
                _ => {
                    text.contains(&format!("\n{shown}"))
                        || text.contains(&format!("# {shown}"))
                        || path.ends_with("watch")
                }
            };
            if !is_shown || !one_line.contains(key.help) {
                found.push(below.clone());
            }
            match key.kind {
                Kind::Table(keys) | Kind::Named(keys) | Kind::Tables(keys) => {
                    missing(keys, &below, text, found);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn it_shows_and_explains_every_key() {
        let mut found = Vec::new();
        missing(ROOT, "", &reference(), &mut found);
        // Shown with a dataset.
        found.retain(|path| path != "defaults.compression");
        assert!(found.is_empty(), "not in the reference: {}", found.join(", "));
    }

    #[test]
    fn lines_are_short_and_every_key_that_is_named_exists() {
        let text = reference();
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH || !line.starts_with('#'), "{line}");
        }
        let shown = DATASETS.iter().flat_map(|(_, shown)| shown.iter());
        for (path, _) in shown {
            let path = join("dataset.p", bare(path));
            assert!(super::super::table::find(&path).is_some(), "{path}");
        }
    }
}
