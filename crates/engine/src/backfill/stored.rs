//! Which keys a revalidation has seen to: what else is in Redis, its scan must see to.

use std::hash::{BuildHasher, RandomState};

/// Eight bytes of memory for each.
pub(crate) const KEYS_MAX: u64 = 4_000_000;

/// The keys that were seen to, by key or by a backfill, as hashes of 64 bits under a seed of their own. One of another key is among them with a
/// probability of their number divided by 2^64.
#[derive(Debug, Default)]
pub(crate) struct StoredKeys {
    seed: RandomState,
    hashes: Vec<u64>,
    is_sorted: bool,
}

impl StoredKeys {
    pub(crate) fn add(&mut self, key: &str) {
        // What does not fit is taken for not stored, and loaded again.
        if (self.hashes.len() as u64) < KEYS_MAX {
            self.hashes.push(self.seed.hash_one(key));
            self.is_sorted = false;
        }
    }

    /// Before anything is looked up.
    pub(crate) fn sort(&mut self) {
        self.hashes.sort_unstable();
        self.is_sorted = true;
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.is_sorted && self.hashes.binary_search(&self.seed.hash_one(key)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_are_found_and_no_others() {
        let mut stored = StoredKeys::default();
        (0..10_000).for_each(|id| stored.add(&format!("k:{id}")));
        stored.sort();
        assert!((0..10_000).all(|id| stored.contains(&format!("k:{id}"))));
        assert!(!(10_000..20_000).any(|id| stored.contains(&format!("k:{id}"))));
    }
}
