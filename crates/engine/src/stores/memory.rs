//! A cache in memory that obeys the stamp rule: for tests of code that stores and invalidates.
//!
//! It holds one epoch: what the scripts check of the ground they stand on (DESIGN R4) has no counterpart here. The
//! decision table in `tests/it/scripts.rs` runs against it, the scripts, and a model of the rule.

mod fences;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::keyspace::slot;
use cachekeeper_protocol::stamp::Stamp;
use fences::Life;

/// Entries, and the stamps that order them.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    floor: Stamp,
    slots: HashMap<u32, Stamp>,
    tag_slots: HashMap<u32, Stamp>,
    entries: BTreeMap<String, Vec<u8>>,
    members: BTreeMap<String, BTreeSet<String>>,
    /// When entries end; none: never.
    lives: HashMap<String, Life>,
    /// Counters that fence fills without a stamp.
    fences: HashMap<u32, u32>,
}

impl Memory {
    /// An empty cache that refuses what is older than `floor`.
    #[must_use]
    pub fn new(floor: Stamp) -> Self {
        Self { floor, ..Self::default() }
    }

    /// Stores entries of one load, and deletes those whose rows are gone; answers the positions that were refused (R5).
    pub fn store(&mut self, stamp: Stamp, batch: &EntryBatch) -> Vec<usize> {
        let refused = self.refused(stamp, batch);
        for (position, entry) in batch.iter().enumerate() {
            if !refused.contains(&position) {
                raise(&mut self.slots, entry.key, stamp);
            }
        }
        self.write(batch, &refused);
        refused
    }

    /// The same for a page of a pass: the floor covers its entries instead of their slots (R7).
    pub fn store_page(&mut self, stamp: Stamp, batch: &EntryBatch) -> Vec<usize> {
        let refused = self.refused(stamp, batch);
        self.floor = self.floor.max(stamp);
        self.write(batch, &refused);
        refused
    }

    /// Raises keys, cached or not, and answers the positions of those that exist (R6).
    pub fn raise(&mut self, stamp: Stamp, keys: &[&str]) -> Vec<usize> {
        for key in keys {
            raise(&mut self.slots, key, stamp);
        }
        (0..keys.len())
            .filter(|at| keys.get(*at).is_some_and(|key| self.entries.contains_key(*key)))
            .collect()
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

    fn refused(&self, stamp: Stamp, batch: &EntryBatch) -> Vec<usize> {
        let is_refused = |position: usize, key: &str| {
            let tags = batch.tags_of(u32::try_from(position).unwrap_or(u32::MAX));
            stamp < self.floor
                || stamp < at(&self.slots, key)
                || tags.into_iter().any(|tag| stamp < at(&self.tag_slots, tag))
        };
        batch
            .iter()
            .enumerate()
            .filter(|(position, entry)| is_refused(*position, entry.key))
            .map(|(at, _)| at)
            .collect()
    }

    fn write(&mut self, batch: &EntryBatch, refused: &[usize]) {
        for (position, entry) in batch.iter().enumerate().filter(|(position, _)| !refused.contains(position))
        {
            if entry.life_ms == 0 {
                self.entries.remove(entry.key);
            } else {
                self.entries.insert(entry.key.to_owned(), entry.value.to_vec());
                self.lives.insert(entry.key.to_owned(), Life::of(entry.life_ms));
            }
            for tag in batch.tags_of(u32::try_from(position).unwrap_or(u32::MAX)) {
                self.members.entry(tag.to_owned()).or_default().insert(entry.key.to_owned());
            }
        }
    }
}

fn at(table: &HashMap<u32, Stamp>, name: &str) -> Stamp {
    table.get(&slot(name.as_bytes())).copied().unwrap_or_default()
}

fn raise(table: &mut HashMap<u32, Stamp>, name: &str, stamp: Stamp) {
    let known = table.entry(slot(name.as_bytes())).or_default();
    *known = stamp.max(*known);
}
