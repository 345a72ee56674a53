//! A cache in memory that follows the rule of the store script: for tests of code that stores and invalidates.
//!
//! It holds one epoch: what the scripts check of it (R4) has no counterpart here. It runs against the decision
//! table in `tests/decisions`, as the scripts and the model do.

mod application;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use cachekeeper_protocol::counters::InvalidationCounters;
use cachekeeper_protocol::entry::{EntryBatch, LIFE_WITHOUT_END};
use cachekeeper_protocol::keyspace::{key_counter, slot};
use cachekeeper_protocol::stamp::Stamp;

/// When an entry ends; none: never.
#[derive(Debug, Clone, Copy)]
struct Life(Option<Instant>);

impl Life {
    fn of(life_ms: u64) -> Self {
        // Beyond some centuries, never.
        let ends = (life_ms != LIFE_WITHOUT_END).then(|| Duration::from_millis(life_ms));
        Self(ends.and_then(|life| Instant::now().checked_add(life)))
    }

    fn is_over(self) -> bool {
        self.0.is_some_and(|end| end <= Instant::now())
    }
}

/// Entries, and the stamps and counters that order them.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    floor: Stamp,
    slots: HashMap<u32, Stamp>,
    tag_slots: HashMap<u32, Stamp>,
    entries: BTreeMap<String, Vec<u8>>,
    members: BTreeMap<String, BTreeSet<String>>,
    /// When entries end; none: never.
    lives: HashMap<String, Life>,
    /// Counters of invalidations by their positions.
    counters: HashMap<u32, u32>,
}

impl Memory {
    /// An empty cache that refuses what is older than `floor`.
    #[must_use]
    pub fn new(floor: Stamp) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Stores entries of one load, and deletes those whose rows are gone; answers the positions that were refused (R5).
    pub fn store(&mut self, stamp: Stamp, batch: &EntryBatch) -> Vec<usize> {
        let refused = self.older(stamp, batch);
        self.raise_stored(stamp, batch, &refused);
        self.write(batch, &refused);
        refused.into_iter().collect()
    }

    /// The same for a page of a backfill: the floor covers its entries instead of their slots (R7).
    pub fn store_page(&mut self, stamp: Stamp, batch: &EntryBatch) -> Vec<usize> {
        let refused = self.older(stamp, batch);
        self.floor = self.floor.max(stamp);
        self.write(batch, &refused);
        refused.into_iter().collect()
    }

    /// Stores what was loaded after `counters` were read (none: what is newest); answers the positions that were refused.
    /// With a stamp, the stamp decides as well.
    pub fn fill(
        &mut self,
        batch: &EntryBatch,
        counters: Option<&InvalidationCounters>,
        stamp: Option<Stamp>,
    ) -> Vec<usize> {
        let mut refused = stamp.map(|stamp| self.older(stamp, batch)).unwrap_or_default();
        match counters {
            Some(seen) => refused.extend(self.moved(seen, batch)),
            None => batch.iter().for_each(|entry| self.count(key_counter(entry.key))),
        }
        if let Some(stamp) = stamp {
            self.raise_stored(stamp, batch, &refused);
        }
        self.write(batch, &refused);
        refused.into_iter().collect()
    }

    /// Raises keys, cached or not, and answers the positions of those that exist (R6).
    pub fn raise(&mut self, stamp: Stamp, keys: &[&str]) -> Vec<usize> {
        for key in keys {
            raise(&mut self.slots, key, stamp);
        }
        let exists = |key: &&str| self.entries.contains_key(*key);
        keys.iter().enumerate().filter(|(_, key)| exists(key)).map(|(position, _)| position).collect()
    }

    /// Raises keys and deletes them; answers how many existed.
    pub fn invalidate(&mut self, stamp: Stamp, keys: &[&str]) -> u64 {
        self.raise(stamp, keys);
        keys.iter().filter(|key| self.entries.remove(**key).is_some()).count() as u64
    }

    /// Raises a tag and answers its members, some of which may have left it (R8).
    pub fn raise_tag(&mut self, stamp: Stamp, tag: &str) -> BTreeSet<String> {
        raise(&mut self.tag_slots, tag, stamp);
        self.members.get(tag).cloned().unwrap_or_default()
    }

    /// An entry's value.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.entries.get(key).map(Vec::as_slice)
    }

    /// Positions below the floor, their slot or the slot of one of their tags.
    fn older(&self, stamp: Stamp, batch: &EntryBatch) -> BTreeSet<usize> {
        let is_older = |key: &str| stamp < self.floor.max(at(&self.slots, key));
        let keys = batch.iter().enumerate().filter(|(_, entry)| is_older(entry.key));
        let tags = batch.tags().into_iter().filter(|(tag, _)| stamp < at(&self.tag_slots, tag));
        keys.map(|(position, _)| position).chain(positions_of(tags)).collect()
    }

    /// Positions whose counter, or the counter of one of whose tags, is not what was seen.
    fn moved(&self, seen: &InvalidationCounters, batch: &EntryBatch) -> BTreeSet<usize> {
        let has_moved = |position: u32, counter: u32| self.counter(position) != counter;
        let keys = batch.iter().enumerate().filter(|(_, entry)| {
            let position = key_counter(entry.key);
            has_moved(position, seen.counter(position).unwrap_or_default())
        });
        let tags = batch.tags().into_iter().filter(|(tag, _)| {
            let (position, counter) = seen.of_tag(tag);
            has_moved(position, counter)
        });
        keys.map(|(position, _)| position).chain(positions_of(tags)).collect()
    }

    fn raise_stored(&mut self, stamp: Stamp, batch: &EntryBatch, refused: &BTreeSet<usize>) {
        for (position, entry) in batch.iter().enumerate() {
            if !refused.contains(&position) {
                raise(&mut self.slots, entry.key, stamp);
            }
        }
    }

    fn write(&mut self, batch: &EntryBatch, refused: &BTreeSet<usize>) {
        let kept = batch.iter().enumerate().filter(|(position, _)| !refused.contains(position));
        for (_, entry) in kept {
            if entry.life_ms == 0 {
                self.entries.remove(entry.key);
            } else {
                self.entries.insert(entry.key.to_owned(), entry.value.to_vec());
                self.lives.insert(entry.key.to_owned(), Life::of(entry.life_ms));
            }
        }
        for (tag, positions) in batch.tags() {
            let stored = positions.iter().map(|position| *position as usize);
            let stored = stored.filter(|position| !refused.contains(position));
            let entries =
                stored.filter_map(|position| batch.get(position)).filter(|entry| entry.life_ms != 0);
            let members = self.members.entry(tag.to_owned()).or_default();
            members.extend(entries.map(|entry| entry.key.to_owned()));
        }
    }
}

fn positions_of<'a>(tags: impl Iterator<Item = (&'a str, Vec<u32>)>) -> impl Iterator<Item = usize> {
    tags.flat_map(|(_, positions)| positions.into_iter().map(|position| position as usize))
}

fn at(table: &HashMap<u32, Stamp>, name: &str) -> Stamp {
    table.get(&slot(name.as_bytes())).copied().unwrap_or_default()
}

fn raise(table: &mut HashMap<u32, Stamp>, name: &str, stamp: Stamp) {
    let known = table.entry(slot(name.as_bytes())).or_default();
    *known = stamp.max(*known);
}
