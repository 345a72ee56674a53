//! Which touches somebody wants to see.

use schemars::JsonSchema;
use serde::Deserialize;

use cachekeeper_engine::history::Touch;
use cachekeeper_protocol::glob::Glob;

/// Touches of one answer.
const LIMIT: usize = 200;
pub(super) const LIMIT_MAX: usize = 1_000;

/// As it is asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only what happened behind the touch of this number
    pub after: Option<u64>,
    /// The newest so many, of each event where it is a stream
    limit: Option<usize>,
    /// Of these datasets: one, or several with commas between them
    dataset: Option<String>,
    /// What happened
    what: Option<String>,
    /// What happened, or why: one of several, with commas between them, is enough
    kind: Option<String>,
    /// Of keys that match this pattern of Redis
    key: Option<String>,
}

/// As it is looked for.
pub(super) struct Filter {
    /// Filters with the same text let the same through.
    pub text: String,
    pub limit: usize,
    datasets: Vec<String>,
    what: Option<String>,
    kinds: Vec<String>,
    key: Option<Glob>,
}

impl Filter {
    pub(super) fn new(wanted: Wanted) -> Result<Self, &'static str> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let limit = wanted.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
        let (what, key) = (given(wanted.what), given(wanted.key));
        let (datasets, kinds) = (list(wanted.dataset), list(wanted.kind));
        let text = format!("{limit} {datasets:?} {what:?} {kinds:?} {key:?}");
        let key = key.map(|key| Glob::parse(&key)).transpose()?;
        Ok(Self { text, limit, datasets, what, kinds, key })
    }

    pub(super) fn wants(&self, touch: &Touch) -> bool {
        let what = self.what.as_deref().is_none_or(|what| *what == *touch.what.as_str());
        let is_one_of = |wanted: &[String], word: &str| wanted.iter().any(|one| one == word);
        let dataset = self.datasets.is_empty() || is_one_of(&self.datasets, &touch.dataset);
        let is_kind = |word: &str| is_one_of(&self.kinds, word);
        let kind = self.kinds.is_empty() || is_kind(touch.what.as_str()) || is_kind(touch.cause);
        what && dataset && kind && self.key.as_ref().is_none_or(|glob| glob.matches(&touch.key))
    }
}

fn list(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect()
}
