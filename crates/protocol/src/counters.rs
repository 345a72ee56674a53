//! Counters of invalidations, which a fill without a database snapshot must find unchanged.

use super::keyspace::{ANY_TAG_COUNTER, key_counter, slot, tag_counter};

/// Counters of invalidations, as they were read before a load began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InvalidationCounters {
    /// Which table they were read from; empty: there was none.
    generation: Vec<u8>,
    /// Positions and counters, in the order of the positions: a bulk load looks up thousands.
    counters: Vec<(u32, u32)>,
    /// For keys of datasets, which are ordered by stamps: slots in their order, and a hash of all that orders them there.
    orders: Vec<(u32, u64)>,
}

impl InvalidationCounters {
    /// What was read of one table, in any order.
    #[must_use]
    pub fn new(generation: Vec<u8>, mut counters: Vec<(u32, u32)>, mut orders: Vec<(u32, u64)>) -> Self {
        counters.sort_unstable_by_key(|(position, _)| *position);
        orders.sort_unstable();
        orders.dedup();
        Self { generation, counters, orders }
    }

    /// Where the counters of these keys and tags are, each once; the last one counts the invalidations of every tag.
    pub fn positions(keys: &[impl AsRef<str>], tags: &[String]) -> Vec<u32> {
        let of_keys = keys.iter().map(|key| key_counter(key.as_ref()));
        let mut positions: Vec<u32> =
            of_keys.chain(tags.iter().map(|tag| tag_counter(tag))).chain([ANY_TAG_COUNTER]).collect();
        positions.sort_unstable();
        positions.dedup();
        positions
    }

    /// The table that they were read from.
    #[must_use]
    pub fn generation(&self) -> &[u8] {
        &self.generation
    }

    /// The counter that was seen at a position.
    #[must_use]
    pub fn counter(&self, position: u32) -> Option<u32> {
        find(&self.counters, &position)
    }

    /// What concerns one key and these tags.
    #[must_use]
    pub fn part(&self, key: &str, tags: &[String]) -> Self {
        let positions = Self::positions(&[key], tags);
        let counters = positions.into_iter().map(|at| (at, self.counter(at).unwrap_or_default())).collect();
        let own = slot(key.as_bytes());
        let orders = find(&self.orders, &own).map(|order| (own, order)).into_iter().collect();
        Self { generation: self.generation.clone(), counters, orders }
    }

    /// What a fill under a tag must find unchanged: the tag's own counter, or, where the tag was not known before the
    /// load, the one of all tags.
    #[must_use]
    pub fn of_tag(&self, tag: &str) -> (u32, u32) {
        let own = tag_counter(tag);
        match self.counter(own) {
            Some(counter) => (own, counter),
            None => (ANY_TAG_COUNTER, self.counter(ANY_TAG_COUNTER).unwrap_or_default()),
        }
    }

    /// Whether no tag at all was invalidated between the two.
    #[must_use]
    pub fn has_same_tags_as(&self, other: &Self) -> bool {
        self.counter(ANY_TAG_COUNTER) == other.counter(ANY_TAG_COUNTER)
    }

    /// Whether they are of a dataset's keys, which are ordered by stamps.
    #[must_use]
    pub fn has_stamps(&self) -> bool {
        !self.orders.is_empty()
    }

    /// Whether a load that began after `other` was read may serve whoever read this one: nothing was invalidated in
    /// between. Tags that no key of ours has do not matter.
    #[must_use]
    pub fn allows_joining(&self, other: &Self) -> bool {
        let same =
            |(at, counter): &(u32, u32)| *at == ANY_TAG_COUNTER || other.counter(*at) == Some(*counter);
        self.generation == other.generation && self.orders == other.orders && self.counters.iter().all(same)
    }
}

/// The value at a position of a list in the order of its positions.
fn find<P: Ord, V: Copy>(sorted: &[(P, V)], position: &P) -> Option<V> {
    let found = sorted.binary_search_by(|(at, _)| at.cmp(position)).ok()?;
    sorted.get(found).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use super::*;

    fn counters(counters: Vec<(u32, u32)>) -> InvalidationCounters {
        InvalidationCounters::new(vec![1; 8], counters, Vec::new())
    }

    #[test]
    fn a_tag_that_was_not_declared_is_guarded_by_the_counter_of_all_tags() {
        let declared = ["red".to_owned()];
        let seen = |key, red, any| {
            counters(vec![(ANY_TAG_COUNTER, any), (tag_counter("red"), red), (key_counter("key"), key)])
        };
        assert_eq!(
            InvalidationCounters::positions(&["key", "key"], &declared),
            [key_counter("key"), tag_counter("red"), ANY_TAG_COUNTER]
        );
        let before = seen(5, 6, 7);
        assert_eq!(before.of_tag("red"), (tag_counter("red"), 6));
        assert_eq!(before.of_tag("blue"), (ANY_TAG_COUNTER, 7));
        assert!(seen(5, 6, 8).allows_joining(&before));
        assert!(!seen(6, 6, 8).allows_joining(&before));
    }

    #[test]
    fn the_part_of_a_key_is_what_was_read_for_it_alone() {
        let keys = ["a", "b", "c"];
        let all: Vec<(u32, u32)> = keys.iter().map(|key| key_counter(key)).zip(10..).collect();
        let orders = keys.iter().map(|key| slot(key.as_bytes())).zip(20..).collect();
        let all = InvalidationCounters::new(vec![1; 8], all, orders);
        for (key, n) in keys.into_iter().zip(0..) {
            let alone = vec![(key_counter(key), 10 + n), (ANY_TAG_COUNTER, 0)];
            let order = vec![(slot(key.as_bytes()), u64::from(20 + n))];
            assert_eq!(all.part(key, &[]), InvalidationCounters::new(vec![1; 8], alone, order));
        }
    }

    thread_local! {
        static COMPARISONS: Cell<usize> = const { Cell::new(0) };
    }

    /// A position that counts how often it is compared.
    #[derive(Eq)]
    struct Counted(u32);

    impl Ord for Counted {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    #[test]
    fn each_look_up_of_a_bulk_load_takes_few_comparisons() {
        const KEYS: u32 = 10_000;
        let sorted: Vec<(Counted, u32)> = (0..KEYS).map(|at| (Counted(at), at)).collect();
        for at in 0..KEYS {
            assert_eq!(find(&sorted, &Counted(at)), Some(at));
        }
        // Looked up one after another it would be 50 million.
        assert!(COMPARISONS.get() < 20 * KEYS as usize, "{}", COMPARISONS.get());
    }
}
