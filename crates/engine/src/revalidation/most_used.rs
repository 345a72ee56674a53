//! Which entries of a dataset are in use, so that they are revalidated first.

use tokio_util::sync::CancellationToken;

use crate::catalog::Dataset;
use crate::context::Context;
use crate::error::EngineError;
use crate::load::Keys;
use crate::stores::postgres::KeyValues;
use crate::stores::redis::{Precondition, UseSign};
use crate::use_scan::{self, SeenEntry};

/// Keys of one script of the scan.
const PAGE: usize = 500;
/// Memory for the entries that are kept, and what one takes beside its key.
const BYTES_MAX: usize = 8 << 20;
const BYTES_EACH: usize = 96;

/// What a scan over the entries has found.
#[derive(Default)]
pub(super) struct MostUsed {
    /// How many entries there are.
    pub(super) entries: u64,
    kept: Vec<Used>,
    bytes: usize,
}

struct Used {
    disuse: u64,
    key: String,
    values: KeyValues,
}

impl Used {
    fn bytes(&self) -> usize {
        // The key, and its parts as values.
        2 * self.key.len() + BYTES_EACH
    }
}

impl MostUsed {
    /// Looks at every entry. Where Redis does not tell how they are used, they are counted only.
    pub(super) async fn find(
        context: &Context,
        dataset: &Dataset,
        precondition: &Precondition<'_>,
        cancel: &CancellationToken,
    ) -> Result<Self, EngineError> {
        let sign = context.redis.facts().await?.use_sign();
        let (mut found, mut cursor) = (Self::default(), 0);
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let (entries, next) =
                use_scan::page(context, dataset, precondition, (cursor, PAGE), sign).await?;
            found.entries += entries.len() as u64;
            if sign != UseSign::None {
                entries.into_iter().for_each(|entry| found.add(entry));
            }
            cursor = next;
            if cursor == 0 {
                return Ok(found);
            }
        }
    }

    fn add(&mut self, entry: SeenEntry) {
        let Some(disuse) = entry.disuse else { return };
        let used = Used { disuse, key: entry.key, values: entry.values };
        self.bytes += used.bytes();
        self.kept.push(used);
        if 2 * BYTES_MAX < self.bytes {
            self.keep(BYTES_MAX);
        }
    }

    /// Puts the most used ones first, and keeps what fits.
    fn keep(&mut self, bytes_max: usize) {
        self.kept.sort_by_key(|used| used.disuse);
        self.bytes = 0;
        let fits = |used: &Used| {
            self.bytes += used.bytes();
            self.bytes <= bytes_max
        };
        let count = self.kept.iter().map(fits).take_while(|fits| *fits).count();
        self.kept.truncate(count);
        self.bytes = self.kept.iter().map(Used::bytes).sum();
    }

    /// At most so many of the entries that are in use, the most used ones first.
    pub(super) fn first(mut self, most: usize) -> Keys {
        self.keep(BYTES_MAX);
        self.kept.into_iter().take(most).map(|used| (used.key, used.values)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> SeenEntry {
        let disuse = (!number.is_multiple_of(3)).then_some(number);
        SeenEntry { key: format!("t:{number}"), values: KeyValues::default(), disuse }
    }

    #[test]
    fn the_most_used_come_first_and_the_others_not_at_all() {
        let mut found = MostUsed::default();
        (0..10).rev().for_each(|number| found.add(entry(number)));
        let keys: Vec<String> = found.first(4).into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["t:1", "t:2", "t:4", "t:5"]);
    }

    #[test]
    fn only_so_many_are_kept_as_fit() {
        let mut found = MostUsed::default();
        (0..1_000_000).rev().for_each(|number| found.add(entry(number)));
        assert!(found.bytes <= 2 * BYTES_MAX, "{}", found.bytes);
        let keys = found.first(usize::MAX);
        assert!(50_000 < keys.len() && keys.len() * BYTES_EACH < BYTES_MAX, "{}", keys.len());
        assert_eq!(keys[1].0, "t:2");
    }
}
