//! What a query reads, for the watch rules of what has no key of its own.

use std::collections::BTreeSet;

use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;

/// The tables that a query reads, through views too.
pub async fn tables_of(context: &Context, query: &str) -> Result<Vec<String>, EngineError> {
    match context.postgres.inspect(query).await {
        Ok(inspection) => {
            let tables = inspection.relations.iter().filter(|relation| matches!(relation.kind, 'r' | 'p'));
            let names: BTreeSet<String> = tables
                .filter(|relation| !relation.is_catalog)
                .map(|relation| relation.name.clone())
                .collect();
            Ok(names.into_iter().collect())
        }
        Err(error) if error.is_transient() => Err(error.into()),
        // Whoever settles the proposal says why.
        Err(_cannot_be_told) => Ok(Vec::new()),
    }
}
