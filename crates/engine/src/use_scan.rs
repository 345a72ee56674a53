//! Scans over the entries of a dataset that tell which of them are in use.

use std::time::Duration;

use super::catalog::Dataset;
use super::context::Context;
use super::error::EngineError;
use crate::stores::postgres::KeyValues;
use crate::stores::redis::{Precondition, ScannedEntry, UseSign, Wanted};

/// Under an LFU policy an entry whose counter has reached this was used since it was stored (new keys begin at 5).
const FREQUENCY_USED: u64 = 6;
/// The most that such a counter holds.
const FREQUENCY_MAX: u64 = 255;

/// An entry, and how it is used.
pub(crate) struct SeenEntry {
    pub(crate) key: String,
    pub(crate) values: KeyValues,
    /// How long ago it was used, or how seldom it is: the less, the more it is in use. None: not since it was stored.
    pub(crate) disuse: Option<u64>,
}

/// One page of a scan over a dataset's entries, and where to go on (0: it is over). An entry may come twice.
pub(crate) async fn page(
    context: &Context,
    dataset: &Dataset,
    precondition: &Precondition<'_>,
    (cursor, page): (u64, usize),
    sign: UseSign,
) -> Result<(Vec<SeenEntry>, u64), EngineError> {
    let wanted = [Wanted { prefix: dataset.settings.key.prefix(), left_max: Duration::MAX }];
    let answer = context.redis.scan(precondition, (cursor, page), sign, &wanted).await?;
    let page = context.checked(Some(dataset), answer)?;
    let entries = page.entries.into_iter().filter_map(|entry| {
        let (owner, values) = context.catalog.of_key(&entry.key)?;
        let disuse = disuse(dataset, sign, &entry);
        (owner.name() == dataset.name()).then_some(SeenEntry { key: entry.key, values, disuse })
    });
    Ok((entries.collect(), page.cursor))
}

fn disuse(dataset: &Dataset, sign: UseSign, entry: &ScannedEntry) -> Option<u64> {
    let used = entry.used.unwrap_or_default();
    match sign {
        UseSign::Idle => {
            let idle = idle_for(sign, entry.used);
            let is_unread =
                entry.left.is_some_and(|left| dataset.lifetimes.is_unread(&entry.key, left, idle));
            (!is_unread).then_some(used)
        }
        UseSign::Frequency => (FREQUENCY_USED <= used).then_some(FREQUENCY_MAX.saturating_sub(used)),
        UseSign::None => Some(0),
    }
}

/// For how long an entry was not used, by the sign that a scan asked for; none: nobody knows.
pub(crate) fn idle_for(sign: UseSign, used: Option<u64>) -> Option<Duration> {
    match sign {
        UseSign::Idle => used.map(Duration::from_secs),
        // Used often enough: as if used just now; else as if never since it was stored.
        UseSign::Frequency => {
            let is_used = used.is_none_or(|count| FREQUENCY_USED <= count);
            Some(if is_used { Duration::ZERO } else { Duration::MAX / 2 })
        }
        UseSign::None => None,
    }
}
