//! Cluster slots: by which Redis Cluster spreads keys over its masters, and a short hash tag of each, for keys that must be in it.

use std::fmt;
use std::sync::LazyLock;

/// How many there are.
const COUNT: u16 = 16_384;

/// One of the 16,384 cluster slots.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterSlot(u16);

impl ClusterSlot {
    /// The cluster slot of a key: of what stands between its first `{` and the next `}` if that is anything, else of the whole key.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self(remainder(hash_tag(key).iter().fold(0, |crc, byte| crc16(crc, *byte))))
    }

    /// The cluster slot with this number; none: there is no such one.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number < COUNT).then_some(Self(number))
    }

    /// All of them, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// A hash tag that puts a key into it: the first one with at most three letters or digits. Every process of a namespace must
    /// use the same.
    #[must_use]
    pub fn hash_tag(self) -> &'static str {
        HASH_TAGS.get(usize::from(self.0)).map_or("", HashTag::as_str)
    }
}

impl fmt::Display for ClusterSlot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let mut parts = key.splitn(2, |byte| *byte == b'{');
    let behind = parts.next().and_then(|_before| parts.next());
    let tag = behind.and_then(|rest| rest.get(..rest.iter().position(|byte| *byte == b'}')?));
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

fn remainder(crc: u16) -> u16 {
    crc % COUNT
}

/// CRC-16/XMODEM: polynomial 0x1021, begun at 0, nothing reflected.
fn crc16(crc: u16, byte: u8) -> u16 {
    let place = usize::from((crc >> 8) ^ u16::from(byte));
    (crc << 8) ^ CRC_TABLE.get(place).copied().unwrap_or_default()
}

static CRC_TABLE: LazyLock<[u16; 256]> = LazyLock::new(|| {
    let of_byte = |byte: usize| {
        // Below 256, so it fits.
        let first = u16::try_from(byte).unwrap_or_default() << 8;
        (0..8).fold(first, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 })
    };
    std::array::from_fn(of_byte)
});

/// What hash tags are made of, in the order in which they are tried.
const LETTERS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

#[derive(Clone, Copy, Default)]
struct HashTag {
    bytes: [u8; 3],
    length: usize,
}

impl HashTag {
    fn as_str(&self) -> &str {
        let text = self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.unwrap_or_default()
    }

    fn with(self, letter: u8) -> Self {
        let mut longer = Self { length: self.length + 1, ..self };
        longer.bytes.iter_mut().skip(self.length).take(1).for_each(|byte| *byte = letter);
        longer
    }
}

/// For each cluster slot the first hash tag of it: short ones before long ones, and of one length in the order of the letters.
static HASH_TAGS: LazyLock<Vec<HashTag>> = LazyLock::new(|| {
    let mut found = vec![HashTag::default(); usize::from(COUNT)];
    let mut shorter = vec![(HashTag::default(), 0)];
    for _length in 1..=3 {
        let longer = |(tag, crc): &(HashTag, u16)| {
            let (tag, crc) = (*tag, *crc);
            LETTERS.iter().map(move |letter| (tag.with(*letter), crc16(crc, *letter)))
        };
        let tags: Vec<(HashTag, u16)> = shorter.iter().flat_map(longer).collect();
        for (tag, crc) in &tags {
            let place = found.get_mut(usize::from(remainder(*crc)));
            place.into_iter().filter(|place| place.length == 0).for_each(|place| *place = *tag);
        }
        shorter = tags;
    }
    found
});

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::keyspace::key_hash;

    fn number(key: &str) -> u16 {
        ClusterSlot::of(key.as_bytes()).number()
    }

    /// The vectors of the specification of Redis Cluster and of the description of `CLUSTER KEYSLOT`.
    #[test]
    fn the_cluster_slot_is_that_of_the_specification() {
        assert_eq!(b"123456789".iter().fold(0, |crc, byte| crc16(crc, *byte)), 0x31c3);
        assert_eq!(number("123456789"), 0x31c3);
        assert_eq!(number("somekey"), 11_058);
        assert_eq!((number("foo{hash_tag}"), number("bar{hash_tag}")), (2_515, 2_515));
        assert_eq!(number(""), 0);
    }

    #[test]
    fn only_the_first_hash_tag_counts_and_only_if_it_is_not_empty() {
        assert_eq!(number("{user1000}.following"), number("{user1000}.followers"));
        assert_eq!(number("foo{{bar}}zap"), number("{bar"));
        assert_eq!(number("foo{bar}{zap}"), number("bar"));
        let whole = |key: &str| remainder(key.bytes().fold(0, crc16));
        for key in ["foo{}{bar}", "foo{bar", "foo}bar{", "}{", "{}"] {
            assert_eq!(number(key), whole(key), "{key}");
        }
    }

    #[test]
    fn every_cluster_slot_has_a_hash_tag_of_its_own_that_leads_to_it() {
        let tags: HashSet<&str> = ClusterSlot::all().map(ClusterSlot::hash_tag).collect();
        assert_eq!(tags.len(), 16_384);
        for slot in ClusterSlot::all() {
            let tag = slot.hash_tag();
            assert!((1..=3).contains(&tag.len()), "{slot}: {tag:?}");
            assert_eq!(ClusterSlot::of(format!("ck:{{{tag}}}:shop:g").as_bytes()), slot, "{tag:?}");
        }
        assert!(ClusterSlot::new(16_383).is_some() && ClusterSlot::new(16_384).is_none());
    }

    #[test]
    fn hash_tags_are_stable_because_every_process_must_agree() {
        let tags: Vec<&str> = ClusterSlot::all().map(ClusterSlot::hash_tag).collect();
        assert_eq!(tags.get(..4), Some(["06S", "Qi", "5L5", "4Iu"].as_slice()));
        assert_eq!(key_hash(tags.join(",").as_bytes()), 7_915_036_679_659_176_736);
    }
}
