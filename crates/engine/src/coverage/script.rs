//! What `migrate` would do, as statements for somebody who runs them by hand.

use std::collections::{BTreeMap, BTreeSet};

use super::survey::CoverageSurvey;
use crate::context::Context;
use crate::error::EngineError;
use crate::stores::postgres::{Before, Postgres};

/// Names that are not qualified are the server's own, whoever runs it.
const PATH: &str = "set search_path = pg_catalog, pg_temp";

/// The statements that bring the schema up, capture what the watch rules ask for, note who uses it, and give `role` its rights. Empty:
/// nothing is to be done.
///
/// # Errors
/// [`EngineError`], also where the schema is to be mended first.
pub async fn migration_script(context: &Context, role: Option<&str>) -> Result<Vec<String>, EngineError> {
    let postgres = &context.postgres;
    let schema = postgres.schema_script().await?;
    let mut script = schema.statements;
    if schema.was == Before::Older {
        script.insert(0, PATH.to_owned());
        script.push("-- print again after this, for the triggers".to_owned());
        return Ok(script);
    }
    let is_installed = schema.was == Before::Current;
    let rules = context.catalog.iter().flat_map(|dataset| dataset.settings.watch.iter());
    let tables: BTreeSet<String> = rules.map(|rule| rule.table.clone()).collect();
    let tables: Vec<String> = tables.into_iter().collect();
    let (members, mut number) = match is_installed {
        true => (postgres.trees(&tables).await?, postgres.next_capture().await?),
        false => (postgres.trees_without_schema(&tables).await?, 1),
    };
    let survey = CoverageSurvey::of_tables(members);
    let wanted = if context.feed.is_on { survey.wanted(context) } else { BTreeMap::new() };
    for (root, wanted) in &wanted {
        let members = survey.members_of(*root);
        let limits = &context.feed.limits;
        let capture =
            postgres.capture_script((&members, *root), wanted, limits, number, is_installed).await?;
        number += i32::from(capture.iter().any(|statement| statement.starts_with("insert into")));
        script.extend(capture);
    }
    if !script.is_empty() {
        script.extend(Postgres::use_script(context.redis.keys().namespace(), wanted.keys().copied()));
    }
    if let Some(role) = role {
        script.extend(Postgres::grant_script(role));
    }
    if !script.is_empty() {
        script.insert(0, PATH.to_owned());
    }
    Ok(script)
}
