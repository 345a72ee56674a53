//! Trees of tables that only grew: whether anything has to be revalidated for that.

use std::collections::{BTreeMap, BTreeSet};

use super::{WatchedCatalogs, union};
use crate::context::Context;
use crate::error::EngineError;
use crate::stores::postgres::{CatalogScope, CatalogState, Fingerprint};

/// Datasets whose trees only grew since the coverage was computed last.
#[derive(Default)]
pub(super) struct Growth {
    /// In this incarnation.
    incarnation: Option<String>,
    /// For each dataset its new members, and what was looked at before.
    datasets: BTreeMap<String, (BTreeSet<u32>, CatalogScope)>,
}

impl Growth {
    /// What has grown.
    pub(super) fn since(context: &Context, now: &WatchedCatalogs) -> Self {
        let Some(before) = context.coverage() else { return Self::default() };
        let of = |(name, scope): (&String, &CatalogScope)| {
            let known = before.catalogs.scopes.get(name)?;
            let members = scope.grown_since(known).filter(|members| !members.is_empty())?;
            Some((name.clone(), (members, known.clone())))
        };
        let datasets = now.scopes.iter().filter_map(of).collect();
        Self { incarnation: before.incarnation.clone(), datasets }
    }

    /// What reads the catalogs for the coverage of now and of before.
    pub(super) fn expression(&self, now: &WatchedCatalogs) -> String {
        if self.datasets.is_empty() {
            return now.expression.clone();
        }
        let mut both = union(&now.scopes);
        self.datasets.values().for_each(|(_, before)| both.add(before));
        both.expression()
    }

    /// The fingerprints that those of now take the place of, where all rows of the new members are known. That is asked after the
    /// state was read: what is as it was at first now was so then.
    pub(super) async fn replaced(
        self,
        context: &Context,
        state: &CatalogState,
        incarnation: Option<&String>,
    ) -> Result<BTreeMap<String, Fingerprint>, EngineError> {
        if self.datasets.is_empty() || self.incarnation.as_ref() != incarnation {
            return Ok(BTreeMap::new());
        }
        let members: BTreeSet<u32> =
            self.datasets.values().flat_map(|(members, _)| members).copied().collect();
        let known: BTreeSet<u32> =
            self.datasets.values().flat_map(|(_, before)| before.all_relations()).collect();
        let harmless = context.postgres.came_without_rows(&members, &known).await?;
        let of = |(name, (members, before)): (String, (BTreeSet<u32>, CatalogScope))| {
            let definition = &context.catalog.get(&name)?.definition;
            members.is_subset(&harmless).then(|| {
                let fingerprint = state.fingerprint(definition, &before);
                (name, fingerprint)
            })
        };
        Ok(self.datasets.into_iter().filter_map(of).collect())
    }
}
