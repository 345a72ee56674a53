//! A shorter `ttl` counts for entries too that were stored before it did.

use std::time::Duration;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch::{self, with_current_epoch};
use super::error::EngineError;
use super::lifetimes::lifetimes;
use crate::stores::redis::Metadata;

/// Keys that one script looks at.
const PAGE: usize = 500;

/// What is to be done about the lifetimes of a dataset's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing: none is longer, as far as is known.
    Nothing,
    /// The `ttl` that counts now is to be noted: none is, or a shorter one.
    Note,
    /// They are to be shortened first.
    Shorten,
}

/// Compares what was noted, and what some entries have left, with what counts now. A worker that still had the former file may have
/// stored since the note, and an earlier version noted nothing.
///
/// # Errors
/// [`EngineError`] where a server does not answer.
pub async fn due(context: &Context, metadata: &Metadata, dataset: &Dataset) -> Result<Due, EngineError> {
    let ttl = dataset.lifetimes.ttl.as_millis();
    let noted = metadata.longest_lives.get(dataset.name()).map(Duration::as_millis);
    if noted.is_some_and(|noted| ttl < noted) {
        return Ok(Due::Shorten);
    }
    let some = lifetimes(context, dataset).await?;
    let is_longer = some.left_ms.last().is_some_and(|left| ttl < u128::from(*left));
    // Among very many keys of others none of its own may have been met.
    let is_unknown = !some.is_whole && some.left_ms.is_empty();
    Ok(match noted {
        None if is_unknown => Due::Shorten,
        _ if is_longer || 0 < some.endless => Due::Shorten,
        Some(noted) if noted == ttl => Due::Nothing,
        _ => Due::Note,
    })
}

/// Shortens the lifetimes of a dataset's entries that are longer than any that counts now; answers how many. Where it is broken
/// off it is begun anew.
///
/// # Errors
/// [`EngineError`] where a server does not answer, or another definition counts.
pub async fn shorten(context: &Context, dataset: &Dataset) -> Result<u64, EngineError> {
    with_current_epoch(context, || pass(context, dataset)).await
}

async fn pass(context: &Context, dataset: &Dataset) -> Result<u64, EngineError> {
    let context = &*context.pinned().await?;
    epoch::revision(context, dataset).await?;
    let poll = epoch::poll(context).await?;
    let current = epoch::current(context).await?;
    let precondition = dataset.precondition(&current, &poll.incarnation);
    let (mut shortened, mut cursor) = (0, 0);
    loop {
        let prefix = dataset.settings.key.prefix();
        let answer = context.redis.scan_keys(&precondition, "", (cursor, PAGE), prefix).await?;
        let (next, mut keys) = context.checked(Some(dataset), answer)?;
        keys.retain(|key| context.redis.takes(key));
        keys.retain(|key| context.catalog.of_key(key).is_some_and(|(of, _)| of.name() == dataset.name()));
        for chunk in keys.chunks(PAGE) {
            let answer = context.redis.shorten(&precondition, chunk, &dataset.lifetimes).await?;
            shortened += context.checked(Some(dataset), answer)?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(shortened);
        }
    }
}

/// Notes that no entry of a dataset has more than its `ttl` left from now on.
///
/// # Errors
/// [`EngineError`] where Redis does not answer.
pub async fn note(context: &Context, dataset: &Dataset) -> Result<(), EngineError> {
    Ok(context.redis.note_longest_life(dataset.name(), dataset.lifetimes.ttl).await?)
}
