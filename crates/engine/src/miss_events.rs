//! Whether Redis tells of misses, where datasets are filled by them, and in which words one says that it does not.

use std::time::Duration;

use super::catalog::Catalog;
use super::context::Context;
use crate::stores::redis::CacheError;
use cachekeeper_config::OnMiss;

const REPLY_LIMIT: Duration = Duration::from_secs(5);

/// The first dataset that is filled by misses.
#[must_use]
pub fn wanted_by(catalog: &Catalog) -> Option<&str> {
    let mut datasets = catalog.iter();
    datasets.find(|dataset| dataset.settings.on_miss == OnMiss::Load).map(|dataset| dataset.name())
}

/// Why misses are not filled, where the server refuses to tell of them.
#[must_use]
pub fn told(error: &CacheError) -> String {
    advise(&error.told())
}

fn advise(reason: &str) -> String {
    format!("set notify-keyspace-events to include \"Em\" in the server's configuration: {reason}")
}

/// Why a worker would not be told of misses; none: it would, or is allowed to see to it. Nothing is changed.
///
/// # Errors
/// [`CacheError`] where Redis cannot be asked.
pub async fn obstacle(context: &Context) -> Result<Option<String>, CacheError> {
    let redis = &context.redis;
    let refusal = match redis.has_miss_events().await {
        Ok(true) => return Ok(None),
        Ok(false) => None,
        Err(error) if error.is_unreachable() => return Err(error),
        Err(error) => Some(told(&error)),
    };
    // Somebody else may have turned them on, and what is hidden cannot be read: a miss of our own tells.
    if redis.tells_of_misses(REPLY_LIMIT).await? {
        return Ok(None);
    }
    if refusal.is_some() {
        return Ok(refusal);
    }
    let set = ["config", "set", "notify-keyspace-events", "Em"].map(str::to_owned).to_vec();
    let denied = redis.may_not(&[set]).await?.into_iter().next();
    Ok(denied
        .map(|(_, denied)| advise(&format!("the user in Redis lacks {}", denied.told("config|set", "")))))
}
