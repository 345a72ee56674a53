//! The relations of one dataset, each with what is right and wrong of it: what its query reads, what its rules watch, and whether every
//! change is captured.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::survey::{CoverageSurvey, flaw};
use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::EngineError;

/// A relation that a dataset reads or watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Relation {
    /// Its name.
    pub name: String,
    /// The query reads it, as far as can be told.
    pub is_read: bool,
    /// A rule of the dataset watches it.
    pub is_watched: bool,
    /// Every change of it is captured.
    pub is_captured: bool,
    /// What is wrong with it; none: nothing.
    pub flaw: Option<String>,
}

/// Looks at the relations of a dataset, as they are in the database now.
///
/// # Errors
/// [`EngineError`] where Postgres does not answer, or cannot tell what the query reads.
pub async fn relations_of(context: &Context, dataset: &Dataset) -> Result<Vec<Relation>, EngineError> {
    let settings = &dataset.settings;
    let inspection = context.postgres.inspect(&settings.query).await?;
    let mut reads: BTreeSet<String> = inspection.tables().into_iter().map(str::to_owned).collect();
    reads.extend(settings.reads.iter().cloned());
    let watched: BTreeSet<String> = settings.watch.iter().map(|rule| rule.table.clone()).collect();
    let tables: Vec<String> = reads.union(&watched).cloned().collect();
    let members = context.postgres.trees(&tables).await?;
    let mut survey = CoverageSurvey::of_tables(members);
    survey.captures = context.postgres.captures().await?;
    // One table may be named in several ways.
    let mut found: BTreeMap<String, Relation> = BTreeMap::new();
    for table in tables {
        let (name, captured) = match survey.root_of(&table) {
            Ok(root) => (survey.name_of(root).unwrap_or(&table).to_owned(), captured(&survey, root)),
            Err(reason) => (table.clone(), Err(reason)),
        };
        let relation = found.entry(name.clone()).or_insert_with(|| Relation {
            name,
            is_read: false,
            is_watched: false,
            is_captured: captured.is_ok(),
            flaw: captured.err(),
        });
        relation.is_read |= reads.contains(&table);
        relation.is_watched |= watched.contains(&table);
    }
    let unwatched = |relation: &Relation| relation.is_read && !relation.is_watched;
    for relation in found.values_mut().filter(|relation| unwatched(relation)) {
        relation.flaw = Some("no watch rule of the dataset names it; add one to `watch`".to_owned());
    }
    Ok(found.into_values().collect())
}

/// Whether every change of a tree of tables is captured, or why not.
fn captured(survey: &CoverageSurvey, root: u32) -> Result<(), String> {
    let Some(capture) = survey.captures.iter().find(|capture| capture.root == root) else {
        return Err("it has no triggers; run `cachekeeper migrate`".to_owned());
    };
    if !capture.is_on {
        return Err("its capture is switched off; `cachekeeper capture on`".to_owned());
    }
    if capture.is_outdated {
        return Err("its functions are of an earlier version; run `cachekeeper migrate`".to_owned());
    }
    let flaw = survey.members_of(root).into_iter().find_map(|member| flaw(member, capture));
    flaw.map_or(Ok(()), Err)
}
