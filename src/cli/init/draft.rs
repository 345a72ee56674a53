//! A dataset as it is proposed, and its text.

use serde_json::{Value, json};

use super::toml::{block, comment, commented, list, literal, name, quoted};

/// A proposed dataset.
#[derive(Debug, Clone, Default)]
pub struct Draft {
    /// What it is made of, for people.
    pub origin: String,
    /// What it may be called, the best first. Its keys and its tags begin with that.
    pub names: Vec<String>,
    /// What is said before it.
    pub about: Vec<String>,
    /// The SQL.
    pub query: String,
    /// The placeholders of its key.
    pub key: Vec<String>,
    /// The whole template of its keys, where they are to be as they were.
    pub template: Option<String>,
    /// Further settings, each as TOML, with what is said before it.
    pub settings: Vec<Setting>,
    /// Its tags, and what they are for.
    pub tags: Vec<String>,
    /// What is said before the tags.
    pub about_tags: String,
    /// Its watch rules.
    pub watch: Vec<Rule>,
    /// What is said before the watch rules, also where there are none.
    pub about_watch: String,
    /// What is said behind it.
    pub hints: Vec<String>,
}

/// A setting beyond those that every dataset has.
#[derive(Debug, Clone)]
pub struct Setting {
    /// What is said before it.
    pub about: String,
    /// Its line.
    pub line: String,
}

/// A watch rule.
#[derive(Debug, Clone)]
pub enum Rule {
    /// A row touches the entry with its values: from placeholders to columns.
    Key {
        /// The table, as SQL.
        table: String,
        /// The pairs.
        pairs: Vec<(String, String)>,
    },
    /// A row touches the whole dataset.
    Dataset {
        /// The table, as SQL.
        table: String,
    },
}

impl Rule {
    fn text(&self) -> String {
        match self {
            Self::Key { table, pairs } => {
                let pairs: Vec<String> =
                    pairs.iter().map(|(to, from)| format!("{} = {}", name(to), quoted(from))).collect();
                format!("{{ table = {}, key = {{ {} }} }}", quoted(table), pairs.join(", "))
            }
            Self::Dataset { table } => format!("{{ table = {}, dataset = true }}", quoted(table)),
        }
    }
}

impl Draft {
    /// The template of its keys.
    pub fn template(&self, called: &str) -> String {
        let columns: Vec<String> = self.key.iter().map(|column| format!("{{{column}}}")).collect();
        let template = || format!("{}:{}", literal(called), columns.join(":"));
        self.template.clone().unwrap_or_else(template)
    }

    /// Its table as TOML.
    pub fn text(&self, called: &str) -> String {
        let mut text: String = self.about.iter().map(|about| comment(about)).collect();
        text.push_str(&format!("[dataset.{}]\n", name(called)));
        text.push_str(&format!("query = {}\n", block(&self.query)));
        text.push_str(&format!("key = {}\n", quoted(&self.template(called))));
        for Setting { about, line } in &self.settings {
            text.push_str(&if about.is_empty() { String::new() } else { comment(about) });
            text.push_str(&format!("{line}\n"));
        }
        if !self.tags.is_empty() {
            text.push_str(&comment(&self.about_tags));
            text.push_str(&format!("tags = {}\n", list(&self.tags)));
        }
        if !self.about_watch.is_empty() {
            text.push_str(&comment(&self.about_watch));
        }
        match self.watch.as_slice() {
            [] => {}
            [rule] => text.push_str(&format!("watch = [{}]\n", rule.text())),
            rules => {
                let rules: Vec<String> = rules.iter().map(|rule| format!("  {},\n", rule.text())).collect();
                text.push_str(&format!("watch = [\n{}]\n", rules.concat()));
            }
        }
        self.hints.iter().for_each(|hint| text.push_str(&comment(hint)));
        text
    }
}

/// What could not become a dataset.
#[derive(Debug, Clone, Default)]
pub struct Refusal {
    /// What it is about.
    pub origin: String,
    /// Why.
    pub reason: String,
    /// What to do.
    pub help: String,
    /// The dataset that is refused, where there is one.
    pub text: String,
}

impl Refusal {
    pub fn new(origin: &str, reason: impl Into<String>, help: impl Into<String>) -> Self {
        let (reason, help) = (reason.into(), help.into());
        Self { origin: origin.to_owned(), reason, help, text: String::new() }
    }

    /// The whole in one sentence.
    pub fn told(&self) -> String {
        let help = if self.help.is_empty() { String::new() } else { format!("; {}", self.help) };
        format!("{}: {}{help}", self.origin, self.reason)
    }

    /// As a comment.
    pub fn text(&self) -> String {
        format!("{}{}", comment(&format!("Not proposed: {}.", self.told())), commented(&self.text))
    }

    pub fn facts(&self) -> Value {
        json!({ "from": self.origin, "reason": self.reason, "help": self.help })
    }
}
