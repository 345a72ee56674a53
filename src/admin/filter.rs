//! Which touches somebody wants to see.

use serde::Deserialize;

use cachekeeper_engine::history::Touch;
use cachekeeper_protocol::glob::Glob;

/// Touches of one answer.
const LIMIT: usize = 200;
pub(super) const LIMIT_MAX: usize = 1_000;

/// As it is asked for.
#[derive(Deserialize)]
pub(super) struct Wanted {
    pub after: Option<u64>,
    limit: Option<usize>,
    dataset: Option<String>,
    what: Option<String>,
    /// A pattern of Redis.
    key: Option<String>,
}

/// As it is looked for.
pub(super) struct Filter {
    /// Filters with the same text let the same through.
    pub text: String,
    pub limit: usize,
    dataset: Option<String>,
    what: Option<String>,
    key: Option<Glob>,
}

impl Filter {
    pub(super) fn new(wanted: Wanted) -> Result<Self, &'static str> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let limit = wanted.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX);
        let (dataset, what, key) = (given(wanted.dataset), given(wanted.what), given(wanted.key));
        let text = format!("{limit} {dataset:?} {what:?} {key:?}");
        let key = key.map(|key| Glob::parse(&key)).transpose()?;
        Ok(Self { text, limit, dataset, what, key })
    }

    pub(super) fn wants(&self, touch: &Touch) -> bool {
        let what = self.what.as_deref().is_none_or(|what| *what == *touch.what.as_str());
        let dataset = self.dataset.as_deref().is_none_or(|dataset| *dataset == *touch.dataset);
        what && dataset && self.key.as_ref().is_none_or(|glob| glob.matches(&touch.key))
    }
}
