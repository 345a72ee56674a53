//! A definition in full, as it stands in Redis: what whoever leads needs to follow the changes of a dataset that another worker has.

use serde::{Deserialize, Serialize};

use cachekeeper_config::{
    CaptureMode, Dataset, FeedNeed, Format, Numeric, OnChange, OnMiss, Rows, Scope, Watch, WatchTarget,
};
use cachekeeper_protocol::template::Template;
use std::time::Duration;

/// How the tables and the query decide what a change touches. What lifetimes and schedules say is left out: such a dataset is
/// followed, and never loaded.
#[derive(Serialize, Deserialize)]
struct Definition {
    query: String,
    key: String,
    /// The key without the names of its placeholders: two with the same form render the same keys.
    form: String,
    is_many: bool,
    sort: Option<String>,
    tags: Vec<String>,
    watch: Vec<Rule>,
    reads: Vec<String>,
    is_whole: bool,
}

#[derive(Serialize, Deserialize)]
struct Rule {
    table: String,
    touches: Touches,
    by_statement: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Touches {
    Key(Vec<(String, String)>),
    Tag(String),
    Dataset,
}

/// Rows of one load; nothing is loaded here.
const BATCH: usize = 500;

/// A key template without the names of its placeholders.
pub(super) fn form(key: &Template) -> String {
    let text = key.to_string();
    let mut form = String::with_capacity(text.len());
    let mut is_name = false;
    for one in text.chars() {
        match one {
            '{' => is_name = true,
            '}' => {
                is_name = false;
                form.push_str("{}");
            }
            one if !is_name => form.push(one),
            _ => {}
        }
    }
    form
}

/// Writes it.
pub(super) fn write(dataset: &Dataset, is_whole: bool) -> String {
    let rule = |watch: &Watch| Rule {
        table: watch.table.clone(),
        touches: match &watch.target {
            WatchTarget::Key(columns) => Touches::Key(columns.clone()),
            WatchTarget::Tag(template) => Touches::Tag(template.to_string()),
            WatchTarget::Dataset => Touches::Dataset,
        },
        by_statement: watch.capture == CaptureMode::Statement,
    };
    let definition = Definition {
        query: dataset.query.clone(),
        key: dataset.key.to_string(),
        form: form(&dataset.key),
        is_many: dataset.rows == Rows::Many,
        sort: dataset.sort.clone(),
        tags: dataset.tags.iter().map(ToString::to_string).collect(),
        watch: dataset.watch.iter().map(rule).collect(),
        reads: dataset.reads.clone(),
        is_whole,
    };
    serde_json::to_string(&definition).unwrap_or_default()
}

/// Reads it, under a name; none: a version of the worker that is not known has written it.
pub(super) fn read(name: &str, text: &str) -> Option<Dataset> {
    let definition: Definition = serde_json::from_str(text).ok()?;
    let template = |text: &String| Template::parse(text).ok();
    let rule = |rule: Rule| {
        let target = match rule.touches {
            Touches::Key(columns) => WatchTarget::Key(columns),
            Touches::Tag(text) => WatchTarget::Tag(template(&text)?),
            Touches::Dataset => WatchTarget::Dataset,
        };
        let capture = if rule.by_statement { CaptureMode::Statement } else { CaptureMode::Row };
        Some(Watch { table: rule.table, target, capture })
    };
    Some(Dataset {
        name: name.to_owned(),
        query: definition.query,
        key: template(&definition.key)?,
        rows: if definition.is_many { Rows::Many } else { Rows::One },
        sort: definition.sort,
        tags: definition.tags.iter().map(template).collect::<Option<_>>()?,
        watch: definition.watch.into_iter().map(rule).collect::<Option<_>>()?,
        reads: definition.reads,
        format: Format::Json { numeric: Numeric::Text },
        compression: None,
        ttl: Duration::ZERO,
        ttl_jitter: 0.0,
        ttl_column: None,
        max_stale: Duration::ZERO,
        negative_ttl: None,
        on_change: OnChange::Delete,
        on_miss: OnMiss::Ignore,
        feed: FeedNeed::Wanted,
        scope: if definition.is_whole { Scope::All } else { Scope::Cached },
        refresh_ahead: None,
        warm: None,
        write: None,
        batch: BATCH,
        revalidation_rate: None,
        max_value_size: usize::MAX,
        max_key_size: usize::MAX,
    })
}
