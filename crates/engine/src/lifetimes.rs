//! How long the entries of a dataset still live: of some of them, so that a look costs the same however many there are.

use serde::Serialize;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch::with_current_epoch;
use super::error::EngineError;

/// Entries that are looked at.
const ENTRIES_MAX: usize = 500;
/// Keys of one step of the scan, whatever they are.
const PAGE: usize = 1_000;
/// Steps of the scan: among more keys of others, fewer entries are met.
const PAGES_MAX: usize = 20;

/// What is left to some entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lifetimes {
    /// Of each that ends, in milliseconds, the shortest first.
    pub left_ms: Vec<u64>,
    /// How many have no end.
    pub endless: usize,
    /// All keys of the dataset were looked at.
    pub is_whole: bool,
}

/// Looks at some entries, as they lie in Redis: by the hash of their keys, which is as good as at random.
///
/// # Errors
/// [`EngineError`] where Redis does not answer.
pub async fn lifetimes(context: &Context, dataset: &Dataset) -> Result<Lifetimes, EngineError> {
    with_current_epoch(context, || look(context, dataset)).await
}

async fn look(context: &Context, dataset: &Dataset) -> Result<Lifetimes, EngineError> {
    let context = &*context.pinned().await?;
    let (keys, is_whole) = some_keys(context, dataset).await?;
    let mut lifetimes = Lifetimes { is_whole, ..Lifetimes::default() };
    for left in context.redis.lives(&keys).await? {
        match u64::try_from(left) {
            Ok(left) => lifetimes.left_ms.push(left),
            Err(_) if left == -1 => lifetimes.endless += 1,
            // It has ended since it was met.
            Err(_) => {}
        }
    }
    lifetimes.left_ms.sort_unstable();
    Ok(lifetimes)
}

/// What some entries take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Entries that were looked at.
    pub entries: usize,
    /// The bytes of their keys and values, without what Redis needs beside them.
    pub bytes: u64,
    /// All keys of the dataset were looked at.
    pub is_whole: bool,
}

/// Looks at what some entries take, likewise.
///
/// # Errors
/// [`EngineError`] where Redis does not answer.
pub async fn sample(context: &Context, dataset: &Dataset) -> Result<Sample, EngineError> {
    with_current_epoch(context, || look_at_sizes(context, dataset)).await
}

async fn look_at_sizes(context: &Context, dataset: &Dataset) -> Result<Sample, EngineError> {
    let (keys, is_whole) = some_keys(context, dataset).await?;
    let seen = context.redis.see(&keys, 0).await?;
    let sizes = seen.entries.iter().map(|entry| entry.bytes as u64);
    let bytes = keys.iter().map(|key| key.len() as u64).chain(sizes).sum();
    Ok(Sample { entries: keys.len(), bytes, is_whole })
}

/// Keys of some entries, and whether they are all.
async fn some_keys(context: &Context, dataset: &Dataset) -> Result<(Vec<String>, bool), EngineError> {
    let metadata = context.redis.metadata("").await?;
    let mut found = Vec::new();
    let (Some(epoch), Some(incarnation)) = (&metadata.epoch, &metadata.incarnation) else {
        // No worker has begun, so nothing is stored.
        return Ok((found, true));
    };
    let precondition = dataset.precondition(epoch, incarnation);
    let mut cursor = 0;
    for _page in 0..PAGES_MAX {
        let scanned =
            context.redis.scan_keys(&precondition, "", (cursor, PAGE), dataset.settings.key.prefix());
        let (next, mut keys) = context.checked(None, scanned.await?)?;
        keys.retain(|key| context.redis.takes(key));
        keys.retain(|key| context.catalog.of_key(key).is_some_and(|(of, _)| of.name() == dataset.name()));
        let room = ENTRIES_MAX - found.len();
        let has_room = keys.len() <= room;
        keys.truncate(room);
        found.extend(keys);
        cursor = next;
        if cursor == 0 || ENTRIES_MAX <= found.len() {
            return Ok((found, cursor == 0 && has_room));
        }
    }
    Ok((found, false))
}
