//! Coverage: whether every relation that a dataset's query reads is watched and captured, so that no committed change
//! of it can be missed; and what a change of each captured tree of tables means.

mod survey;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::catalog::Dataset;
use crate::stores::postgres::Change;
use crate::stores::postgres::write::DIRECT;
use cachekeeper_config::WatchTarget;
use cachekeeper_protocol::template::Template;
pub use survey::{TRYING_AGAIN, look};

/// Which datasets are covered, and what the changes of each capture mean.
#[derive(Debug, Default)]
pub struct Coverage {
    /// For each dataset its coverage fingerprint, which changes with anything that decides about its coverage, or why it is not
    /// covered.
    pub datasets: BTreeMap<String, Result<String, String>>,
    /// The columns that a change of a capture carries, and what it touches.
    pub captures: HashMap<i32, Captured>,
}

/// What changes of one captured tree mean.
#[derive(Debug, Default)]
pub struct Captured {
    /// The columns of a change's rows.
    pub columns: Vec<String>,
    /// Of the columns: it grows when they change.
    pub version: i32,
    /// The rules of all datasets that watch it.
    pub rules: Vec<Rule>,
}

/// A watch rule, with columns as positions in a change's rows.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The dataset that has it.
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
    pub(crate) fn can_read(&self, changes: &[Change]) -> bool {
        changes.iter().all(|change| {
            change.capture == DIRECT
                || self.captures.get(&change.capture).is_some_and(|known| change.version <= known.version)
        })
    }

    /// The datasets that are covered, with their fingerprints.
    #[must_use]
    pub fn covered(&self) -> Vec<(String, String)> {
        let covered = self
            .datasets
            .iter()
            .filter_map(|(name, fingerprint)| Some((name.clone(), fingerprint.clone().ok()?)));
        covered.collect()
    }

    /// The datasets that are not, with the reason.
    pub fn gaps(&self) -> impl Iterator<Item = (&String, &String)> {
        self.datasets.iter().filter_map(|(name, fingerprint)| Some((name, fingerprint.as_ref().err()?)))
    }
}
