//! Entries of former definitions, whose keys no definition of now renders: they go when no worker lives any more that has it, or when
//! a change of them was missed. Nobody stores such entries any more, so none comes back.

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::following;
use crate::context::Context;
use crate::epoch;
use crate::error::EngineError;

/// Keys of one script.
const PAGE: usize = 500;

/// A former definition of a dataset that is this process's now, whose entries are to go.
#[must_use]
pub fn left_behind(context: &Context) -> Option<(String, String)> {
    let registered = context.registered();
    let is_own = |name: &str| context.catalog.get(name).is_some_and(|dataset| !dataset.is_superseded());
    let mut former = registered.former.iter();
    former.find_map(|(former, is_of_use)| (!is_of_use && is_own(&former.0)).then(|| former.clone()))
}

/// Deletes the entries of a former definition; answers how many.
///
/// # Errors
/// [`EngineError`]; whoever looks next begins again.
pub async fn delete_entries(
    context: &Context,
    (name, definition): (&str, &str),
    cancel: &CancellationToken,
) -> Result<u64, EngineError> {
    let context = &*context.pinned().await?;
    // What another dataset renders too is not among its keys.
    let followed = following(context).await?;
    let Some(own) = context.catalog.get(name) else { return Ok(0) };
    let mut deleted = 0;
    if let Some(former) = followed.catalog.get(&super::former_name(name, definition)) {
        let state = epoch::ensure(context, "").await?;
        // Where somebody has taken the former definition back meanwhile, these entries are current ones.
        let precondition = own.precondition(&state.epoch, &state.poll.incarnation);
        let (mut cursor, prefix) = (0, former.settings.key.prefix());
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let answer = context.redis.scan_keys(&precondition, "", (cursor, PAGE), prefix).await?;
            let (next, keys) = context.checked(Some(own), answer)?;
            let is_its = |key: &&String| {
                followed.catalog.of_key(key).is_some_and(|(dataset, _)| dataset.name() == former.name())
            };
            let keys = keys.iter().filter(|key| context.redis.takes(key));
            let keys: Vec<&str> = keys.filter(is_its).map(String::as_str).collect();
            if !keys.is_empty() {
                let stamp = state.poll.snapshot.stamp();
                let answer = context.redis.invalidate(&precondition, stamp, &keys, "", "").await?;
                deleted += context.checked(Some(own), answer)?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    context.redis.forget_former((name, definition)).await?;
    info!(dataset = name, definition, deleted, "entries of a former definition are deleted");
    Ok(deleted)
}
