//! What the feed follows: which datasets are covered, and what a change of each captured tree touches.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::catalog::Dataset;
use crate::stores::postgres::Change;
use crate::stores::postgres::write::DIRECT;
use cachekeeper_config::WatchTarget;
use cachekeeper_protocol::template::Template;

/// What the feed follows.
#[derive(Debug, Default)]
pub struct Coverage {
    /// For each dataset a mark that changes with anything that follows it, or why it is not covered.
    pub datasets: BTreeMap<String, Result<String, String>>,
    /// The columns that a change of a capture carries, and what it touches.
    pub captures: HashMap<i32, Captured>,
}

/// What changes of one captured tree mean.
#[derive(Debug, Default)]
pub struct Captured {
    /// The columns of a change's rows.
    pub columns: Vec<String>,
    /// Of the columns.
    pub version: i32,
    /// The rules of all datasets that watch it.
    pub rules: Vec<Rule>,
}

/// A watch rule, with columns as positions in a change's rows.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Whose.
    pub dataset: Arc<Dataset>,
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

impl Touches {
    pub(super) fn new(dataset: &Dataset, target: &WatchTarget, columns: &[String]) -> Self {
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

impl Coverage {
    /// Whether these changes can be read by what is known: their captures, and the columns that they carry.
    #[must_use]
    pub fn can_read(&self, changes: &[Change]) -> bool {
        changes.iter().all(|change| {
            change.capture == DIRECT
                || self.captures.get(&change.capture).is_some_and(|known| change.version <= known.version)
        })
    }

    /// The datasets that are covered, with their marks.
    #[must_use]
    pub fn followed(&self) -> Vec<(String, String)> {
        let covered =
            self.datasets.iter().filter_map(|(name, mark)| Some((name.clone(), mark.clone().ok()?)));
        covered.collect()
    }

    /// The datasets that are not, with the reason.
    pub fn gaps(&self) -> impl Iterator<Item = (&String, &String)> {
        self.datasets.iter().filter_map(|(name, mark)| Some((name, mark.as_ref().err()?)))
    }
}
