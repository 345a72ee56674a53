//! What a captured change means: the columns that it carries, and what it touches by the datasets' watch rules.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::Dataset;
use crate::stores::postgres::write::DIRECT;
use crate::stores::postgres::{Capture, Change};
use cachekeeper_config::WatchTarget;
use cachekeeper_protocol::template::Template;

/// The captures by their numbers in the outbox.
#[derive(Debug, Clone, Default)]
pub struct Captures(HashMap<i32, Captured>);

impl Captures {
    /// What changes of this one mean.
    #[must_use]
    pub fn get(&self, capture: i32) -> Option<&Captured> {
        self.0.get(&capture)
    }

    /// Whether these changes can be read by what is known: their captures, and the columns that they carry.
    #[must_use]
    pub(crate) fn can_read(&self, changes: &[Change]) -> bool {
        changes.iter().all(|change| {
            change.capture == DIRECT
                || self.get(change.capture).is_some_and(|known| change.version <= known.version)
        })
    }

    /// Their numbers.
    #[must_use]
    pub(crate) fn ids(&self) -> Vec<i32> {
        self.0.keys().copied().collect()
    }

    /// The datasets that watch a capture which has missed something since.
    pub(crate) fn with_gaps<'a>(&'a self, now: &'a HashMap<i32, i64>) -> impl Iterator<Item = &'a str> {
        let missed = self.0.iter().filter(|(id, known)| now.get(*id) != Some(&known.gaps));
        missed.flat_map(|(_, known)| known.rules.iter().map(|rule| rule.dataset.name()))
    }

    /// The same rules for the captures as they are now.
    #[must_use]
    pub(crate) fn as_installed(&self, now: &[Capture]) -> Self {
        let captured = |capture: &Capture| {
            let known = self.0.values().filter(|known| known.root == capture.root);
            let rules = known.flat_map(|known| &known.rules);
            let rule = |rule: &Rule| Rule::new(&rule.dataset, &rule.target, &capture.columns);
            (capture.id, Captured::new(capture, rules.map(rule).collect()))
        };
        Self(now.iter().map(captured).collect())
    }

    pub(super) fn insert(&mut self, capture: &Capture, rules: Vec<Rule>) {
        self.0.insert(capture.id, Captured::new(capture, rules));
    }
}

impl Captured {
    fn new(capture: &Capture, rules: Vec<Rule>) -> Self {
        let (root, version, gaps) = (capture.root, capture.version, capture.gaps);
        Self { root, columns: capture.columns.clone(), version, gaps, rules }
    }
}

/// What changes of one captured tree mean.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// The top of the tree.
    pub root: u32,
    /// The columns of a change's rows.
    pub columns: Vec<String>,
    /// Of the columns: it grows when they change.
    pub version: i32,
    /// How often it had missed something.
    pub gaps: i64,
    /// The rules of all datasets that watch it.
    pub rules: Vec<Rule>,
}

/// A watch rule, with columns as positions in a change's rows.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The dataset that has it.
    pub dataset: Arc<Dataset>,
    /// What it says.
    pub target: WatchTarget,
    /// What a row touches.
    pub touches: Touches,
}

/// What a changed row touches.
#[derive(Debug, Clone)]
pub enum Touches {
    /// The entry whose placeholders have these values.
    Key(Vec<usize>),
    /// The members of this tag.
    Tag(Template, Vec<usize>),
    /// The whole dataset; also where a column is not among the captured ones.
    Dataset,
}

impl Rule {
    pub(super) fn new(dataset: &Arc<Dataset>, target: &WatchTarget, columns: &[String]) -> Self {
        let touches = Touches::new(dataset, target, columns);
        Self { dataset: Arc::clone(dataset), target: target.clone(), touches }
    }
}

impl Touches {
    fn new(dataset: &Dataset, target: &WatchTarget, columns: &[String]) -> Self {
        let position = |name: &str| columns.iter().position(|column| column == name);
        let found = match target {
            WatchTarget::Key(pairs) => {
                let column = |placeholder: &str| {
                    let pair = pairs.iter().find(|(name, _)| name == placeholder)?;
                    position(&pair.1)
                };
                dataset.settings.key.columns().map(column).collect::<Option<_>>().map(Self::Key)
            }
            WatchTarget::Tag(template) => {
                let positions = template.columns().map(position).collect::<Option<_>>();
                positions.map(|positions| Self::Tag(template.clone(), positions))
            }
            WatchTarget::Dataset => None,
        };
        found.unwrap_or(Self::Dataset)
    }
}
