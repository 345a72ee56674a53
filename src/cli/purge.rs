//! `cachekeeper purge`

use serde_json::json;

use super::output::{Exit, Output};
use cachekeeper_config::Config;
use cachekeeper_engine::commands::group_of;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::stores::redis::{LeaseAttempt, OwnKeys};

/// Takes this namespace's own keys out of Redis. A worker that runs would begin anew at once, so there may be none.
pub async fn purge(
    context: &Context,
    config: &Config,
    is_confirmed: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    let redis = &context.redis;
    let namespace = redis.keys().namespace();
    let leases = [LeaseName::FEED, LeaseName::COMMANDS, LeaseName::REVALIDATION, LeaseName::AUDIT];
    let names: Vec<String> = leases.into_iter().map(|lease| lease.name.into_owned()).collect();
    if let Some(LeaseAttempt::Held { owner, .. }) = redis.lock_holder(&names).await? {
        out.failure(&format!("the worker {owner} runs in the namespace {namespace:?}: stop it first"));
        return Ok(Exit::Failed);
    }
    let server = config.redis.url.redacted();
    out.note(&format!(
        "all keys that begin with {} in {server} are deleted: metadata, stamp tables, sets of tags. The entries of datasets \
         stay until their end, and nothing keeps them right any more; streams stay too.",
        redis.keys().own_prefix()
    ));
    if let Err(exit) = out.confirm(is_confirmed) {
        return Ok(exit);
    }
    let mut purged = 0;
    for layout in [OwnKeys::Present, OwnKeys::Former] {
        let mut cursor = 0;
        loop {
            let (deleted, next) = redis.purge_page(cursor, layout).await?;
            purged += deleted;
            if next == 0 {
                break;
            }
            cursor = next;
        }
    }
    for stream in [&config.invalidation.stream, &config.writes.stream].into_iter().flatten() {
        redis.leave_stream(stream, &group_of(namespace)).await?;
    }
    out.result(&format!("{purged} keys deleted"), &json!({ "deleted": purged }));
    Ok(Exit::Ok)
}
