//! Where a setting comes from: a line of the file, a variable of the environment, or the default.

use schemars::JsonSchema;
use serde::Serialize;

use cachekeeper_config::source::Source;

/// Where a setting comes from.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub(super) enum Origin {
    /// The file.
    File {
        /// The line, from 1 on; null: it is not known.
        line: Option<usize>,
    },
    /// A variable of the environment.
    Environment { variable: String },
    /// Nobody gave it.
    Default,
}

/// A setting that somebody gave.
#[derive(Serialize, JsonSchema)]
pub(super) struct Given {
    /// Such as `dataset.product.ttl`.
    name: String,
    /// As text; no secrets.
    value: String,
    origin: Origin,
}

impl Given {
    pub(super) fn new(source: &Source, name: &str, value: String) -> Self {
        Self { name: name.to_owned(), value, origin: origin(source, name) }
    }
}

/// Where a setting comes from.
pub(super) fn origin(source: &Source, setting: &str) -> Origin {
    if !source.has(setting) {
        return Origin::Default;
    }
    let place = source.problem(setting, "", None);
    match place.variable {
        Some(variable) => Origin::Environment { variable },
        None => Origin::File { line: place.position.map(|position| position.line) },
    }
}

/// Where a setting of a dataset comes from, which it may inherit.
pub(super) fn origin_of_dataset(source: &Source, dataset: &str, setting: &str) -> Origin {
    let (own, inherited) = (format!("dataset.{dataset}.{setting}"), format!("defaults.{setting}"));
    origin(source, if source.has(&own) { &own } else { &inherited })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;
    use cachekeeper_config::Config;

    #[test]
    fn a_setting_comes_from_a_line_a_variable_or_nowhere() {
        let text = "[postgres]\nurl = \"postgres://db/shop\"\n[defaults]\nttl = \"2h\"\n\n[dataset.product]\n\
                    query = \"select 1 as id\"\nkey = \"product:{id}\"\nbatch = 7\n";
        let variable = "CACHEKEEPER__REDIS__URL".to_owned();
        let environment = BTreeMap::from([(variable, "redis://cache".to_owned())]);
        let (config, _) = Config::load(Path::new("f.toml"), text.to_owned(), &environment).unwrap();
        let json = |origin: Origin| serde_json::to_string(&origin).unwrap();
        let of = |setting| json(origin_of_dataset(&config.source, "product", setting));
        assert_eq!(of("ttl"), r#"{"from":"file","line":4}"#);
        assert_eq!(of("batch"), r#"{"from":"file","line":9}"#);
        assert_eq!(of("rows"), r#"{"from":"default"}"#);
        let variable = r#"{"from":"environment","variable":"CACHEKEEPER__REDIS__URL"}"#;
        assert_eq!(json(origin(&config.source, "redis.url")), variable);
    }
}
