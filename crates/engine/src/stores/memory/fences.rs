//! What applications do, in memory: the same operations as in `stores/redis/fences.rs`. Lifetimes follow tokio's clock,
//! so that a test which pauses it decides when they end.

use std::time::Duration;

use tokio::time::Instant;

use super::Memory;
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::fence::{Fence, LIFE_WITHOUT_END};
use cachekeeper_protocol::keyspace::{ANY_TAG_FENCE, key_fence, tag_fence};
use cachekeeper_protocol::stamp::Stamp;

/// When an entry ends; none: never.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life(Option<Instant>);

impl Life {
    pub(super) fn of(life_ms: u64) -> Self {
        // Beyond some centuries, never.
        let ends = (life_ms != LIFE_WITHOUT_END).then(|| Duration::from_millis(life_ms));
        Self(ends.and_then(|life| Instant::now().checked_add(life)))
    }

    fn is_over(self) -> bool {
        self.0.is_some_and(|end| end <= Instant::now())
    }
}

impl Memory {
    /// A value and its remaining lifetime in milliseconds (-1: no end, -2: no entry).
    pub fn look(&mut self, key: &str) -> (Option<Vec<u8>>, i64) {
        let life = self.lives.get(key).copied();
        if life.is_some_and(Life::is_over) {
            self.entries.remove(key);
            self.lives.remove(key);
        }
        let Some(value) = self.entries.get(key) else { return (None, -2) };
        let left = life.and_then(|life| life.0).map(|end| end.saturating_duration_since(Instant::now()));
        (Some(value.clone()), left.map_or(-1, |left| i64::try_from(left.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Gives an entry another life.
    pub fn extend(&mut self, key: &str, life: Duration) {
        if self.entries.contains_key(key) {
            let life = Life::of(u64::try_from(life.as_millis()).unwrap_or(LIFE_WITHOUT_END));
            self.lives.insert(key.to_owned(), life);
        }
    }

    /// What a fill of these keys must find unchanged.
    #[must_use]
    pub fn fence(&self, keys: &[impl AsRef<str>], tags: &[String]) -> Fence {
        let positions = Fence::positions(keys, tags);
        let counters =
            positions.into_iter().map(|at| (at, self.fences.get(&at).copied().unwrap_or_default()));
        Fence { generation: Vec::new(), counters: counters.collect(), marks: Vec::new() }
    }

    /// Stores what was loaded after `fence` was read (none: what is newest); answers the positions that were refused.
    pub fn fill(&mut self, batch: &EntryBatch, fence: Option<&Fence>, stamp: Option<Stamp>) -> Vec<usize> {
        let mut refused = stamp.map(|stamp| self.refused(stamp, batch)).unwrap_or_default();
        for (position, entry) in batch.iter().enumerate() {
            let tags = batch.tags_of(u32::try_from(position).unwrap_or(u32::MAX));
            let moved = |(at, seen): (u32, u32)| self.fences.get(&at).copied().unwrap_or_default() != seen;
            let is_refused = fence.is_some_and(|fence| {
                let own = key_fence(entry.key);
                moved((own, fence.counter(own).unwrap_or_default()))
                    || tags.into_iter().any(|tag| moved(fence.of_tag(tag)))
            });
            if is_refused && !refused.contains(&position) {
                refused.push(position);
            }
        }
        for (position, entry) in batch.iter().enumerate() {
            if fence.is_none() {
                *self.fences.entry(key_fence(entry.key)).or_default() += 1;
            }
            if let (Some(stamp), false) = (stamp, refused.contains(&position)) {
                super::raise(&mut self.slots, entry.key, stamp);
            }
        }
        self.write(batch, &refused);
        refused
    }

    /// Deletes entries and refuses the fills that began before; answers how many existed.
    pub fn forget(&mut self, keys: &[impl AsRef<str>]) -> u64 {
        let mut deleted = 0;
        for key in keys {
            *self.fences.entry(key_fence(key.as_ref())).or_default() += 1;
            let existed = self.look(key.as_ref()).0.is_some();
            self.entries.remove(key.as_ref());
            deleted += u64::from(existed);
        }
        deleted
    }

    /// Refuses the fills under these tags that began before, deletes their members, and answers how many there were.
    pub fn forget_tags(&mut self, tags: &[impl AsRef<str>]) -> u64 {
        *self.fences.entry(ANY_TAG_FENCE).or_default() += 1;
        let mut deleted = 0;
        for tag in tags {
            *self.fences.entry(tag_fence(tag.as_ref())).or_default() += 1;
            let members: Vec<String> =
                self.members.remove(tag.as_ref()).unwrap_or_default().into_iter().collect();
            deleted += self.forget(&members);
        }
        deleted
    }
}
