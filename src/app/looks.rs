//! What Redis must be, and what this namespace shares with others of it.

use tracing::warn;

use super::start_error::StartError;
use cachekeeper_config::{Config, FeedNeed};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::namespaces;
use cachekeeper_engine::stores::redis::ServerFacts;

/// How a look at Redis ended that found something wrong.
pub(super) enum LookError {
    /// Waiting does not help.
    Final(StartError),
    /// It may be right later.
    NotNow(String),
}

/// What this namespace uses is made known, unless another one uses it.
pub(super) async fn share_names(config: &Config, context: &Context) -> Result<(), LookError> {
    let not_now = |error: EngineError| LookError::NotNow(error.told());
    if let Some(conflict) = namespaces::conflicts(context, config).await.map_err(not_now)?.into_iter().next()
    {
        return Err(LookError::Final(StartError::SharedNames { message: conflict.message }));
    }
    namespaces::register(context, config).await.map_err(not_now)
}

/// Whether a server can be used.
pub(super) fn check_server(config: &Config, facts: ServerFacts) -> Result<(), LookError> {
    if facts.is_too_old() {
        return Err(LookError::Final(StartError::RedisTooOld { version: facts.version }));
    }
    check_eviction(config, &facts)
}

fn check_eviction(config: &Config, facts: &ServerFacts) -> Result<(), LookError> {
    if !facts.evicts_anything() {
        return Ok(());
    }
    let policy = facts.maxmemory_policy.clone();
    if let Some(dataset) = config.datasets.iter().find(|dataset| dataset.feed == FeedNeed::Required) {
        let dataset = dataset.name.clone();
        return Err(LookError::Final(StartError::Evicting { dataset, policy }));
    }
    warn!(
        policy,
        "redis may evict the stamp tables; each time everything is revalidated. Better: volatile-lru, or noeviction"
    );
    Ok(())
}
