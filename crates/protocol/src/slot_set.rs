//! A set of stamp slots, as a bitmap of constant size.

use super::keyspace::{SLOTS, slot};

/// Bytes of a set: one bit for each stamp slot.
const BYTES: usize = SLOTS as usize / 8;

/// A set of stamp slots: 16 KiB, however many keys it stands for. Keys of one stamp slot are not told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSet {
    bits: Box<[u8]>,
}

impl Default for SlotSet {
    fn default() -> Self {
        Self { bits: vec![0; BYTES].into() }
    }
}

impl SlotSet {
    /// Every stamp slot.
    #[must_use]
    pub fn all() -> Self {
        Self { bits: vec![0xff; BYTES].into() }
    }

    /// The set with these bytes; none where there are not as many as a set has.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == BYTES).then(|| Self { bits: bytes.into() })
    }

    /// The bytes of the set; the first stamp slot is the highest bit of the first byte, as Redis counts.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Adds the stamp slot of a key.
    pub fn insert(&mut self, key: &str) {
        let (byte, bit) = place(key);
        if let Some(byte) = self.bits.get_mut(byte) {
            *byte |= bit;
        }
    }

    /// Whether the stamp slot of a key is in it.
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        let (byte, bit) = place(key);
        self.bits.get(byte).is_some_and(|byte| byte & bit != 0)
    }

    /// Adds every stamp slot of another set.
    pub fn add(&mut self, other: &Self) {
        for (byte, more) in self.bits.iter_mut().zip(&other.bits) {
            *byte |= more;
        }
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|byte| *byte == 0)
    }
}

fn place(key: &str) -> (usize, u8) {
    let slot = slot(key.as_bytes());
    (slot as usize / 8, 0x80 >> (slot % 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_added_and_little_else() {
        let (mut set, mut other) = (SlotSet::default(), SlotSet::default());
        assert!(set.is_empty());
        (0..100).for_each(|n| set.insert(&format!("product:{n}")));
        other.insert("note:1");
        set.add(&other);
        assert!((0..100).all(|n| set.contains(&format!("product:{n}"))) && set.contains("note:1"));
        let found = (100..1_100).filter(|n| set.contains(&format!("product:{n}"))).count();
        assert!(found < 10, "{found}");
        let read = SlotSet::from_bytes(set.as_bytes());
        assert_eq!(read, Some(set));
        assert_eq!(SlotSet::from_bytes(b"cut"), None);
        assert!(SlotSet::all().contains("anything"));
    }
}
