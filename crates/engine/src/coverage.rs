//! Coverage: whether every relation that a dataset's query reads is watched and captured, so that no committed change
//! of it can be missed; and what a change of each captured tree of tables touches.

mod captures;
mod computation;
mod growth;
mod refusal;
mod relations;
mod script;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use super::catalog::{Catalog, Dataset};
use crate::stores::postgres::write::DIRECT;
use crate::stores::postgres::{CatalogScope, CatalogState, Change, Fingerprint, KeyValues};
pub use captures::{Captured, Captures, Rule, Touches};
pub use computation::{install_exactly, is_current, look};
pub use relations::{Relation, relations_of};
pub use script::migration_script;
pub use survey::TRYING_AGAIN;

/// Which datasets are covered, and what the changes of each capture mean.
#[derive(Debug, Default)]
pub struct Coverage {
    /// For each dataset its coverage fingerprint, which changes with anything that decides about its coverage, or why it is not
    /// covered.
    pub datasets: BTreeMap<String, Result<Fingerprint, String>>,
    /// The incarnation that it was computed in. In another one it means nothing.
    pub incarnation: Option<String>,
    /// What is looked at in the catalogs.
    pub(crate) catalogs: WatchedCatalogs,
    /// The columns that a change of a capture carries, and what it touches.
    pub captures: Captures,
    /// A trigger could not be made because somebody held its table; every change is captured all the same. Worth another attempt.
    pub is_to_be_completed: bool,
    /// The marker of what triggers could not write, as far as it is taken into account.
    pub marker: i64,
}

/// What is looked at in the catalogs, to notice that coverage must be computed anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct WatchedCatalogs {
    /// For each dataset that could be inspected, covered or not.
    scopes: BTreeMap<String, CatalogScope>,
    /// The fingerprints that belong to this coverage.
    pub(crate) seen: BTreeMap<String, Fingerprint>,
    /// Of datasets whose trees only grew, by members whose rows are all known: the fingerprint without these members. Where it is the
    /// recorded one, nothing must be revalidated.
    pub(crate) replaces: BTreeMap<String, Fingerprint>,
    /// The expression that reads the catalogs.
    pub(crate) expression: String,
}

impl WatchedCatalogs {
    fn new(scopes: BTreeMap<String, CatalogScope>) -> Self {
        Self { expression: union(&scopes).expression(), scopes, ..Self::default() }
    }

    /// The datasets whose trees have members that are not looked at.
    pub(crate) fn grown(&self, state: &CatalogState) -> impl Iterator<Item = &str> {
        self.scopes.iter().filter(|(_, scope)| state.has_grown(scope)).map(|(name, _)| name.as_str())
    }

    /// The fingerprints in this state of the catalogs.
    pub(crate) fn fingerprints(
        &self,
        catalog: &Catalog,
        state: &CatalogState,
    ) -> BTreeMap<String, Fingerprint> {
        let of = |(name, scope): (&String, &CatalogScope)| {
            let definition = &catalog.get(name)?.definition;
            Some((name.clone(), state.fingerprint(definition, scope)))
        };
        self.scopes.iter().filter_map(of).collect()
    }
}

fn union(scopes: &BTreeMap<String, CatalogScope>) -> CatalogScope {
    let mut union = CatalogScope::default();
    scopes.values().for_each(|scope| union.add(scope));
    union
}

impl Coverage {
    /// The names of the datasets that are covered.
    pub fn covered(&self) -> impl Iterator<Item = &String> {
        self.datasets.iter().filter_map(|(name, fingerprint)| fingerprint.is_ok().then_some(name))
    }

    /// The datasets that are not, with the reason.
    pub fn gaps(&self) -> impl Iterator<Item = (&String, &String)> {
        self.datasets.iter().filter_map(|(name, fingerprint)| Some((name, fingerprint.as_ref().err()?)))
    }
}

/// Keys in the order in which they were touched: rows that were changed together often lie together, and are loaded faster so.
pub(crate) type TouchedKeys = IndexMap<String, KeyValues>;

/// What changes touch, each thing once.
#[derive(Debug, Clone, Default)]
pub struct AffectedKeys {
    pub(crate) keys: BTreeMap<String, TouchedKeys>,
    pub(crate) tags: BTreeSet<String>,
    pub(crate) whole: BTreeSet<String>,
    pub(crate) key_count: usize,
}

impl AffectedKeys {
    pub(crate) fn add(&mut self, catalog: &Catalog, captures: &Captures, change: &Change) {
        if change.capture == DIRECT {
            return self.add_directly(catalog, change);
        }
        let Some(captured) = captures.get(change.capture) else {
            // Nobody knows what it was: everything is revalidated.
            self.whole.extend(catalog.iter().map(|dataset| dataset.name().to_owned()));
            return;
        };
        // Captured with other columns than now: what stands where is not known.
        let values = change.values.as_ref().filter(|_| change.version == captured.version);
        let width = captured.columns.len().max(1);
        for rule in &captured.rules {
            match (&rule.touches, values) {
                (Touches::Dataset, _) | (_, None) => {
                    self.whole.insert(rule.dataset.name().to_owned());
                }
                (Touches::Key(positions), Some(values)) => {
                    self.add_keys(&rule.dataset, positions, values.chunks(width));
                }
                (Touches::Tag(template, positions), Some(values)) => {
                    for row in values.chunks(width) {
                        let Some(values) = pick(positions, row) else { continue };
                        let values: Vec<&str> = values.iter().map(String::as_str).collect();
                        self.tags.extend(template.render_tag(&values).ok());
                    }
                }
            }
        }
    }

    /// A write through a table that no trigger watches has named its entries itself.
    fn add_directly(&mut self, catalog: &Catalog, change: &Change) {
        for row in change.values.iter().flat_map(|values| values.chunks(2)) {
            let [Some(name), key] = row else { continue };
            let Some(dataset) = catalog.get(name) else { continue };
            let Some(key) = key else {
                self.whole.insert(name.clone());
                continue;
            };
            let Some(values) = dataset.read_key(key) else { continue };
            let keys = self.keys.entry(name.clone()).or_default();
            let units = units_of(key);
            self.key_count += units * usize::from(keys.insert(key.clone(), values).is_none());
        }
    }

    fn add_keys<'a>(
        &mut self,
        dataset: &Dataset,
        positions: &[usize],
        rows: impl Iterator<Item = &'a [Option<String>]>,
    ) {
        if !self.keys.contains_key(dataset.name()) {
            self.keys.insert(dataset.name().to_owned(), TouchedKeys::new());
        }
        let Some(keys) = self.keys.get_mut(dataset.name()) else { return };
        for row in rows {
            let Some(values) = pick(positions, row) else { continue };
            let Some(key) = dataset.key_of(&values) else { continue };
            let units = units_of(&key);
            self.key_count += units * usize::from(keys.insert(key, values).is_none());
        }
    }

    /// Takes the keys of a dataset out, for somebody who sees to them.
    pub(crate) fn take_keys(&mut self, dataset: &str) -> TouchedKeys {
        self.keys.remove(dataset).unwrap_or_default()
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tags.is_empty() && self.whole.is_empty()
    }
}

/// What changes touch, each thing once.
#[must_use]
pub(crate) fn affected_by(catalog: &Catalog, coverage: &Coverage, changes: &[Change]) -> AffectedKeys {
    let mut affected = AffectedKeys::default();
    changes.iter().for_each(|change| affected.add(catalog, &coverage.captures, change));
    affected
}

/// A key counts once, and once more for each KiB of it, so that what is gathered is bounded in bytes too.
fn units_of(key: &str) -> usize {
    1 + key.len() / 1_024
}

/// The values of a row at these positions; none where one is null: no key and no tag has it.
fn pick(positions: &[usize], row: &[Option<String>]) -> Option<KeyValues> {
    positions.iter().map(|position| row.get(*position).cloned().flatten()).collect()
}
