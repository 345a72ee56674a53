//! What verbs have in common: the datasets that they are asked for, and how they end.

use std::sync::Arc;

use super::output::{Exit, Output};
use cachekeeper_config::diagnostic::did_you_mean;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::ErrorKind;
use cachekeeper_engine::stores::redis::Refusal;

/// The datasets of these names, or all.
pub(super) fn choose<'a>(
    context: &'a Context,
    names: &[String],
    out: &Output,
) -> Result<Vec<&'a Arc<Dataset>>, Exit> {
    let mut chosen = Vec::new();
    for name in names {
        let Some(dataset) = context.catalog.get(name) else {
            let known: Vec<&str> = context.catalog.iter().map(|dataset| dataset.name()).collect();
            let close = did_you_mean(name, known.iter().copied());
            let rest =
                close.map_or("; there are".to_owned(), |close| format!(", did you mean {close}? There are"));
            out.failure(&format!("no dataset is named {name}{rest} {}", known.join(", ")));
            return Err(Exit::Usage);
        };
        chosen.push(dataset);
    }
    Ok(if names.is_empty() { context.catalog.iter().collect() } else { chosen })
}

/// The same error, with what only Postgres knows about it: why no connection was had, or who holds a table.
pub(super) async fn with_reason(context: &Context, error: EngineError) -> EngineError {
    match error {
        EngineError::Source(error) => {
            let error = context.postgres.explain(error).await;
            context.postgres.explain_lock(error).await.into()
        }
        other => other,
    }
}

/// The exit code of an error.
pub(super) fn exit_of(error: &EngineError) -> Exit {
    match error {
        EngineError::Source(error) if error.kind == ErrorKind::Unavailable => Exit::Unavailable,
        EngineError::Source(error) if error.is_of_configuration() || error.kind == ErrorKind::Forbidden => {
            Exit::Configuration
        }
        EngineError::Cache(error) if error.is_of_configuration() => Exit::Configuration,
        EngineError::Cache(error) if error.refusal == Refusal::Unknown => Exit::Unavailable,
        EngineError::Dataset { .. } | EngineError::Superseded { .. } => Exit::Configuration,
        _ => Exit::Failed,
    }
}
