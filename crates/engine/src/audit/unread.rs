//! Entries that nobody has read, which a round in the background leaves alone: to look at them would be a use, and keep them from
//! expiring. Not needed where Redis can tell a look from a use, nor where nothing depends on it.

use crate::catalog::Dataset;
use crate::context::Context;
use crate::epoch;
use crate::error::EngineError;
use crate::stores::postgres::KeyValues;
use crate::stores::redis::UseSign;
use crate::use_scan;
use cachekeeper_config::Scope;

/// How they are told; none: they need not be.
pub(super) async fn sign_of(context: &Context, dataset: &Dataset) -> Result<Option<UseSign>, EngineError> {
    let expires_unread = dataset.settings.refresh_ahead.is_some() && dataset.settings.scope == Scope::Cached;
    if !expires_unread || context.redis.can_look_unnoticed().await? {
        return Ok(None);
    }
    Ok(Some(context.redis.facts().await?.use_sign()))
}

/// One page of a scan over a dataset's keys that were read, and where to go on.
pub(super) async fn page_without(
    context: &Context,
    dataset: &Dataset,
    (cursor, page): (u64, usize),
    sign: UseSign,
) -> Result<(Vec<(String, KeyValues)>, u64), EngineError> {
    let poll = epoch::poll(context).await?;
    let current = epoch::current(context).await?;
    let precondition = dataset.precondition(&current, &poll.incarnation);
    let (entries, next) = use_scan::page(context, dataset, &precondition, (cursor, page), sign).await?;
    let read = entries.into_iter().filter(|entry| entry.disuse.is_some());
    Ok((read.map(|entry| (entry.key, entry.values)).collect(), next))
}
