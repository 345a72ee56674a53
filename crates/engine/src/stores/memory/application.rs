//! What applications do, in memory: the same operations as in `stores/redis/counters.rs`. Lifetimes follow tokio's clock,
//! so that a test which pauses it decides when they end.

use std::time::Duration;

use tokio::time::Instant;

use super::{Life, Memory};
use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::LIFE_WITHOUT_END;
use cachekeeper_protocol::keyspace::{ANY_TAG_COUNTER, key_counter, tag_counter};

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

    /// The keys of entries that begin so.
    #[must_use]
    pub fn keys_beginning_with(&self, prefix: &str) -> Vec<String> {
        let from = self.entries.range(prefix.to_owned()..);
        from.map(|(key, _)| key).take_while(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// Gives an entry another lifetime.
    pub fn extend(&mut self, key: &str, life: Duration) {
        if self.entries.contains_key(key) {
            let life = Life::of(u64::try_from(life.as_millis()).unwrap_or(LIFE_WITHOUT_END));
            self.lives.insert(key.to_owned(), life);
        }
    }

    /// What a fill of these keys must find unchanged.
    #[must_use]
    pub fn counters(&self, keys: &[impl AsRef<str>], tags: &[String]) -> InvalidationCounters {
        let positions = InvalidationCounters::positions(keys, tags).into_iter();
        let counters = positions.map(|position| (position, self.counter(position)));
        InvalidationCounters::new(Vec::new(), counters.collect(), Vec::new())
    }

    pub(super) fn counter(&self, position: u32) -> u32 {
        self.counters.get(&position).copied().unwrap_or_default()
    }

    pub(super) fn count(&mut self, position: u32) {
        *self.counters.entry(position).or_default() += 1;
    }

    /// Deletes entries and refuses the fills that began before; answers how many existed.
    pub fn invalidate_keys(&mut self, keys: &[impl AsRef<str>]) -> u64 {
        let mut deleted = 0;
        for key in keys {
            self.count(key_counter(key.as_ref()));
            let existed = self.look(key.as_ref()).0.is_some();
            self.entries.remove(key.as_ref());
            deleted += u64::from(existed);
        }
        deleted
    }

    /// Refuses the fills under these tags that began before, deletes their members, and answers how many there were.
    pub fn invalidate_tags(&mut self, tags: &[impl AsRef<str>]) -> u64 {
        self.count(ANY_TAG_COUNTER);
        let mut deleted = 0;
        for tag in tags {
            self.count(tag_counter(tag.as_ref()));
            let members: Vec<String> =
                self.members.remove(tag.as_ref()).unwrap_or_default().into_iter().collect();
            deleted += self.invalidate_keys(&members);
        }
        deleted
    }
}
