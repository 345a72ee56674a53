//! What a newer configuration says otherwise than the one that is in use.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Config;
use super::raw::{Leaf, Leaves};
use super::source::may_hold_secret;

/// A setting that another file, or another environment, gives otherwise. A dataset that comes or goes is one setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `dataset.product.ttl`
    pub setting: String,
    /// As it was given; none: it was not.
    pub before: Option<String>,
    /// As it is given now; none: it is not any more.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, before, after } = self;
        match (before, after) {
            (Some(before), Some(after)) => write!(formatter, "{setting}: {before}, now {after}"),
            (None, Some(after)) if after.is_empty() => write!(formatter, "{setting}: new"),
            (None, Some(after)) => write!(formatter, "{setting}: now {after}"),
            (Some(before), None) if before.is_empty() => write!(formatter, "{setting}: gone"),
            (Some(before), None) => write!(formatter, "{setting}: was {before}, now the default"),
            (None, None) => formatter.write_str(setting),
        }
    }
}

impl Config {
    /// What `newer` gives otherwise, in the order of the settings' names. Secrets are hidden; of one that differs the name is told.
    #[must_use]
    pub fn changes(&self, newer: &Self) -> Vec<Change> {
        let (old, new) = (self.source.given(), newer.source.given());
        let mut changes: Vec<Change> = Vec::new();
        let mut settings: Vec<&String> = old.keys().chain(new.keys()).collect();
        settings.sort_unstable();
        settings.dedup();
        for setting in settings {
            let (before, after) = (old.get(setting), new.get(setting));
            // What belongs to something that came or went as a whole is told by that.
            let is_told = changes.last().is_some_and(|last| {
                let is_below = setting.strip_prefix(&last.setting).is_some_and(|rest| rest.starts_with('.'));
                is_below && (last.before.is_none() || last.after.is_none())
            });
            if before != after && !is_told {
                let shown = |text: Option<&String>| text.map(|text| shown(setting, text));
                changes.push(Change { setting: setting.clone(), before: shown(before), after: shown(after) });
            }
        }
        changes
    }
}

impl Config {
    /// Every setting that the file or the environment gives, as text; secrets are hidden. Of sections only their names stand here.
    #[must_use]
    pub fn given(&self) -> BTreeMap<&str, String> {
        let given = self.source.given().iter();
        given.map(|(setting, text)| (setting.as_str(), shown(setting, text))).collect()
    }
}

/// Every setting that the file or the environment gives, as text; of sections only their names.
pub(crate) fn given(leaves: &Leaves) -> BTreeMap<String, String> {
    leaves.iter().map(|(path, leaf)| (path.clone(), text(leaf))).collect()
}

fn text(leaf: &Leaf) -> String {
    match leaf {
        Leaf::Text(text) => format!("{text:?}"),
        Leaf::Integer(number) => number.to_string(),
        Leaf::Boolean(boolean) => boolean.to_string(),
        Leaf::Texts(texts) => format!("{texts:?}"),
        Leaf::Mapping(pairs) => {
            let pairs: Vec<String> = pairs.iter().map(|(name, text)| format!("{name} = {text:?}")).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Leaf::Section | Leaf::Wrong => String::new(),
    }
}

fn shown(setting: &str, text: &str) -> String {
    /// Of a query nobody reads more in a list.
    const CHARACTERS_MAX: usize = 200;
    if may_hold_secret(setting, text) {
        return "(not shown)".to_owned();
    }
    match text.char_indices().nth(CHARACTERS_MAX) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        let base = "[postgres]\nurl = \"postgres://shop:secret@db/shop\"\n[redis]\nurl = \"redis://cache\"\n";
        Config::load(Path::new("f.toml"), format!("{base}{text}"), &BTreeMap::new()).unwrap().0
    }

    fn told(old: &str, new: &str) -> Vec<String> {
        config(old).changes(&config(new)).iter().map(Change::to_string).collect()
    }

    const PRODUCT: &str = "[dataset.product]\nquery = \"select id from products\"\nkey = \"product:{id}\"\n";

    #[test]
    fn each_change_is_told_once() {
        let newer = format!("{PRODUCT}ttl = \"1m\"\ntags = [\"all\"]\n");
        assert_eq!(told(PRODUCT, PRODUCT), Vec::<String>::new());
        let changed = ["dataset.product.tags: now [\"all\"]", "dataset.product.ttl: now \"1m\""];
        assert_eq!(told(PRODUCT, &newer), changed);
        assert_eq!(told(&newer, PRODUCT).last().unwrap(), "dataset.product.ttl: was \"1m\", now the default");
        let other = newer.replace("1m", "2m");
        assert_eq!(told(&newer, &other), ["dataset.product.ttl: \"1m\", now \"2m\""]);
        let more = format!("{PRODUCT}{}", PRODUCT.replace("product", "products"));
        assert_eq!(told(PRODUCT, &more), ["dataset.products: new"]);
        assert_eq!(told(&more, PRODUCT), ["dataset.products: gone"]);
    }

    #[test]
    fn of_a_secret_only_its_name_is_told() {
        let old = config(PRODUCT);
        let text = old.source.text().replace("secret", "hidden");
        let (new, _) = Config::load(Path::new("f.toml"), text, &BTreeMap::new()).unwrap();
        let told: Vec<String> = old.changes(&new).iter().map(Change::to_string).collect();
        assert_eq!(told, ["postgres.url: (not shown), now (not shown)"]);
    }
}
