//! What a fill without a database snapshot must find unchanged (DESIGN 2.2).

use super::keyspace::{ANY_TAG_FENCE, key_fence, slot, tag_fence};

/// Stands in an entry batch for a life that does not end.
pub const LIFE_WITHOUT_END: u64 = u64::MAX;

/// Counters of invalidations, as they were read before a load began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fence {
    /// Which table they were read from; empty: there was none.
    pub generation: Vec<u8>,
    /// Positions and counters.
    pub counters: Vec<(u32, u32)>,
    /// For keys of datasets, which are invalidated by stamps: slots, and a hash of all that orders them there.
    pub marks: Vec<(u32, u64)>,
}

impl Fence {
    /// Where the counters of these keys and tags stand; the last one counts the invalidations of every tag.
    pub fn positions(keys: &[impl AsRef<str>], tags: &[String]) -> Vec<u32> {
        let of_keys = keys.iter().map(|key| key_fence(key.as_ref()));
        of_keys.chain(tags.iter().map(|tag| tag_fence(tag))).chain([ANY_TAG_FENCE]).collect()
    }

    /// The counter that was seen at a position.
    #[must_use]
    pub fn counter(&self, position: u32) -> Option<u32> {
        self.counters.iter().find(|(at, _)| *at == position).map(|(_, counter)| *counter)
    }

    /// What concerns one key and these tags.
    #[must_use]
    pub fn part(&self, key: &str, tags: &[String]) -> Self {
        let positions = Self::positions(&[key], tags);
        let counters = positions.into_iter().map(|at| (at, self.counter(at).unwrap_or_default())).collect();
        let own = slot(key.as_bytes());
        let marks = self.marks.iter().filter(|(at, _)| *at == own).copied().collect();
        Self { generation: self.generation.clone(), counters, marks }
    }

    /// What fences a tag: its own counter, or, where the tag was not known before the load, the one of all tags.
    #[must_use]
    pub fn of_tag(&self, tag: &str) -> (u32, u32) {
        let own = tag_fence(tag);
        match self.counter(own) {
            Some(counter) => (own, counter),
            None => (ANY_TAG_FENCE, self.counter(ANY_TAG_FENCE).unwrap_or_default()),
        }
    }

    /// Whether a load that began after `other` was read may serve whoever read this one: nothing was invalidated in
    /// between. Tags that no key of ours has do not matter.
    #[must_use]
    pub fn allows_joining(&self, other: &Self) -> bool {
        let same = |(at, counter): &(u32, u32)| *at == ANY_TAG_FENCE || other.counter(*at) == Some(*counter);
        self.generation == other.generation && self.marks == other.marks && self.counters.iter().all(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_was_not_declared_is_fenced_by_the_counter_of_all_tags() {
        let declared = ["red".to_owned()];
        let positions = Fence::positions(&["key"], &declared);
        let counters = positions.into_iter().zip([5, 6, 7]).collect();
        let fence = Fence { generation: vec![1; 8], counters, marks: Vec::new() };
        assert_eq!(fence.of_tag("red"), (tag_fence("red"), 6));
        assert_eq!(fence.of_tag("blue"), (ANY_TAG_FENCE, 7));
        let mut later = fence.clone();
        later.counters[2].1 = 8;
        assert!(later.allows_joining(&fence));
        later.counters[0].1 = 6;
        assert!(!later.allows_joining(&fence));
    }
}
