//! A set of cluster slots. As text it is their ranges, such as `0-5460,5462`: what a master serves is short that way.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cluster_slot::ClusterSlot;

const WORDS: usize = 256;

/// A set of cluster slots: 2 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSlotSet {
    bits: Box<[u64; WORDS]>,
}

/// The text names no set of cluster slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cluster slots are written as ranges of numbers up to 16383, such as 0-5460,5462")]
pub struct InvalidClusterSlots;

impl Default for ClusterSlotSet {
    fn default() -> Self {
        Self { bits: Box::new([0; WORDS]) }
    }
}

impl ClusterSlotSet {
    /// Every cluster slot.
    #[must_use]
    pub fn all() -> Self {
        Self { bits: Box::new([u64::MAX; WORDS]) }
    }

    /// Adds one.
    pub fn insert(&mut self, slot: ClusterSlot) {
        let (word, bit) = place(slot);
        self.bits.iter_mut().skip(word).take(1).for_each(|word| *word |= bit);
    }

    /// Takes one out.
    pub fn remove(&mut self, slot: ClusterSlot) {
        let (word, bit) = place(slot);
        self.bits.iter_mut().skip(word).take(1).for_each(|word| *word &= !bit);
    }

    /// Whether it is in it.
    #[must_use]
    pub fn contains(&self, slot: ClusterSlot) -> bool {
        let (word, bit) = place(slot);
        self.bits.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Those of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.combined(other, |one, other| one & other)
    }

    /// Those of either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.combined(other, |one, other| one | other)
    }

    /// Those that are not in the other one.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.combined(other, |one, other| one & !other)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bits.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|word| *word == 0)
    }

    /// All in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = ClusterSlot> {
        ClusterSlot::all().filter(|slot| self.contains(*slot))
    }

    /// The same as ranges of numbers.
    #[must_use]
    pub fn ranges(&self) -> Vec<RangeInclusive<u16>> {
        let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
        for slot in self.iter().map(ClusterSlot::number) {
            match ranges.last_mut() {
                Some(last) if *last.end() + 1 == slot => *last = *last.start()..=slot,
                _ => ranges.push(slot..=slot),
            }
        }
        ranges
    }

    fn combined(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let mut bits = self.bits.clone();
        bits.iter_mut().zip(other.bits.iter()).for_each(|(one, other)| *one = combine(*one, *other));
        Self { bits }
    }
}

impl FromIterator<ClusterSlot> for ClusterSlotSet {
    fn from_iter<I: IntoIterator<Item = ClusterSlot>>(slots: I) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Display for ClusterSlotSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.ranges().into_iter().enumerate() {
            let separator = if position == 0 { "" } else { "," };
            let (first, last) = range.into_inner();
            match first == last {
                true => write!(formatter, "{separator}{first}")?,
                false => write!(formatter, "{separator}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for ClusterSlotSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "ClusterSlotSet({self})")
    }
}

impl FromStr for ClusterSlotSet {
    type Err = InvalidClusterSlots;

    fn from_str(text: &str) -> Result<Self, InvalidClusterSlots> {
        let mut set = Self::default();
        for range in text.split(',').filter(|_| !text.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| text.parse().ok().and_then(ClusterSlot::new).ok_or(InvalidClusterSlots);
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(InvalidClusterSlots);
            }
            (first.number()..=last.number()).filter_map(ClusterSlot::new).for_each(|slot| set.insert(slot));
        }
        Ok(set)
    }
}

impl Serialize for ClusterSlotSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClusterSlotSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn place(slot: ClusterSlot) -> (usize, u64) {
    (usize::from(slot.number() / 64), 1 << (slot.number() % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> ClusterSlotSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_set_is_written_as_ranges_and_read_back() {
        for text in ["", "0", "16383", "0-5460,5462", "0-16383", "63-64,127-128,16382-16383"] {
            assert_eq!(set(text).to_string(), text);
        }
        assert_eq!(set("3,1,2,2-5").to_string(), "1-5");
        assert_eq!(set("0-16383"), ClusterSlotSet::all());
        for text in [",", "1,", "a", "5-3", "16384", "1-16384", "-1", "1--2", "1 "] {
            assert_eq!(text.parse::<ClusterSlotSet>(), Err(InvalidClusterSlots), "{text:?}");
        }
        let json = serde_json::to_string(&set("7-9")).unwrap();
        assert_eq!((json.as_str(), serde_json::from_str(&json).ok()), ("\"7-9\"", Some(set("7-9"))));
    }

    #[test]
    fn sets_are_combined_slot_by_slot() {
        let (mut one, other) = (set("0-9"), set("5-19"));
        assert_eq!(one.and(&other), set("5-9"));
        assert_eq!(one.or(&other), set("0-19"));
        assert_eq!(one.without(&other), set("0-4"));
        assert_eq!((one.len(), one.is_empty(), ClusterSlotSet::default().is_empty()), (10, false, true));
        let five = ClusterSlot::new(5).unwrap();
        one.remove(five);
        assert!(!one.contains(five) && other.contains(five));
        assert_eq!(one.iter().collect::<ClusterSlotSet>().to_string(), "0-4,6-9");
    }

    /// What a watermark costs where masters serve every other cluster slot: as bad as it can be.
    #[test]
    fn the_text_is_bounded() {
        let worst: ClusterSlotSet = ClusterSlot::all().filter(|slot| slot.number() % 2 == 1).collect();
        assert!(worst.to_string().len() < 48 * 1024);
    }
}
