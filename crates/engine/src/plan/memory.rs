//! How much memory entries take in Redis. A model of what the server allocates for each key, as measured (docs/plan.md); it says
//! "about".

use cachekeeper_protocol::fields;

/// What decides how much the server allocates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryModel {
    /// The step between the allocator's small sizes; none: there are only steps of 16.
    quantum: Option<usize>,
    layout: Layout,
}

/// How a server keeps keys, values and lifetimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Redis 7: a node and a name of its own for each key, one more node for its lifetime.
    Nodes {
        /// Whether small sets are lists.
        has_set_lists: bool,
    },
    /// Redis 8.2: the object holds the key and its lifetime; nodes only where several share a place.
    KeyedObjects,
    /// Valkey 8.1: the same, in tables of buckets that hold seven each.
    Buckets,
}

/// The head of a value, and of its text up to 44 bytes, which stands in the same piece.
const OBJECT: usize = 16;
const SHORT_MAX: usize = 44;
/// A node of a table.
const NODE: usize = 24;
/// Up to here a hash is a list (`hash-max-listpack-entries` and `-value`, as they are unless somebody has set them).
const LIST_FIELDS_MAX: usize = 128;
const LIST_VALUE_MAX: usize = 64;
const PLACE: u64 = 8;

impl MemoryModel {
    /// That of this server: the product, its version, and the step of its allocator.
    #[must_use]
    pub fn of(product: &str, version: (u32, u32), quantum: Option<usize>) -> Self {
        let layout = match (product, version) {
            ("valkey", version) if (8, 1) <= version => Layout::Buckets,
            ("redis", version) if (8, 2) <= version => Layout::KeyedObjects,
            ("valkey", _) => Layout::Nodes { has_set_lists: true },
            (_, version) => Layout::Nodes { has_set_lists: (7, 2) <= version },
        };
        Self { quantum, layout }
    }

    /// An entry with a lifetime, without its place in the tables.
    #[must_use]
    pub fn entry(&self, entry: EntrySize) -> usize {
        let EntrySize { key, value, is_integer, hash } = entry;
        if let Some(hash) = hash {
            return self.hash(key, hash);
        }
        // The head, the lifetime, and the key with its own length before it.
        let head = OBJECT + 8 + 1 + text(key);
        match (self.layout, is_integer) {
            // Integers below 10,000 are there once; others have a head alone. The small ones are the usual ones.
            (Layout::Nodes { .. }, true) => 2 * self.size(NODE) + self.size(text(key)),
            (Layout::Nodes { .. }, false) => 2 * self.size(NODE) + self.size(text(key)) + self.object(value),
            (Layout::KeyedObjects | Layout::Buckets, true) => self.size(head),
            (Layout::KeyedObjects | Layout::Buckets, false) => self.with_value(head, value),
        }
    }

    /// A hash: one list while it is small, else a table of names and values.
    fn hash(&self, key: usize, hash: HashSize) -> usize {
        let head = match self.layout {
            Layout::Nodes { .. } => 2 * self.size(NODE) + self.size(text(key)) + self.size(OBJECT),
            Layout::KeyedObjects | Layout::Buckets => self.size(OBJECT + 8 + 1 + text(key)),
        };
        if hash.fields <= LIST_FIELDS_MAX && hash.longest <= LIST_VALUE_MAX {
            // Before each name and value two or three bytes, and the list's own seven.
            return head + self.size(7 + hash.bytes + 2 * 2 * hash.fields);
        }
        let fields = u64::try_from(hash.fields).unwrap_or(u64::MAX);
        let (table, node) = match self.layout {
            Layout::Nodes { .. } | Layout::KeyedObjects => (PLACE * table(fields), self.size(NODE)),
            Layout::Buckets => (buckets(fields), self.size(NODE - 8)),
        };
        let mean = hash.bytes / (2 * hash.fields).max(1);
        let each = node + 2 * self.size(text(mean));
        head + self.size(56) + usize::try_from(table).unwrap_or(usize::MAX) + hash.fields * each
    }

    fn object(&self, value: usize) -> usize {
        if value <= SHORT_MAX {
            return self.size(OBJECT + 3 + value + 1);
        }
        self.size(OBJECT) + self.size(text(value))
    }

    fn with_value(&self, head: usize, value: usize) -> usize {
        let whole = head + 3 + value + 1;
        if whole <= 64 { self.size(whole) } else { self.size(head) + self.size(text(value)) }
    }

    /// The places of so many entries, each with a lifetime.
    #[must_use]
    pub fn places(&self, entries: u64) -> u64 {
        match self.layout {
            Layout::Nodes { .. } => 2 * PLACE * table(entries),
            Layout::KeyedObjects => {
                2 * (PLACE * table(entries) + self.size(NODE - 8) as u64 * sharing(entries))
            }
            Layout::Buckets => 2 * buckets(entries),
        }
    }

    /// A set of keys, the members of one tag: so many, of this length.
    #[must_use]
    pub fn set(&self, name: usize, members: u64, member: usize) -> u64 {
        let head = self.size(NODE) + self.size(text(name)) + self.size(OBJECT);
        let is_list = match self.layout {
            Layout::Nodes { has_set_lists } => has_set_lists,
            Layout::KeyedObjects | Layout::Buckets => true,
        };
        let head = head as u64 + PLACE;
        if is_list && members <= 128 && member <= 64 {
            let bytes = 7 + members.saturating_mul(member as u64 + 2);
            return head + self.size(usize::try_from(bytes).unwrap_or(usize::MAX)) as u64;
        }
        let (each, table) = match self.layout {
            Layout::Nodes { has_set_lists: false } => {
                (self.size(NODE) + self.size(text(member)), PLACE * table(members))
            }
            Layout::Nodes { .. } | Layout::KeyedObjects => {
                (self.size(NODE - 8) + self.size(text(member)), PLACE * table(members))
            }
            Layout::Buckets => (self.size(text(member)), buckets(members)),
        };
        head + self.size(56) as u64 + table + members.saturating_mul(each as u64)
    }

    /// What the allocator gives for so many bytes: steps of the quantum, then four sizes between two powers of two.
    fn size(&self, bytes: usize) -> usize {
        let bytes = bytes.max(1);
        let Some(quantum) = self.quantum else {
            // A chunk holds 8 bytes of the allocator's own.
            return (bytes + 8).next_multiple_of(16).max(32) - 8;
        };
        if bytes <= 8 * quantum {
            return if bytes <= 8 { 8 } else { bytes.next_multiple_of(quantum) };
        }
        let above = (bytes - 1).ilog2();
        bytes.next_multiple_of(1_usize << above.saturating_sub(2))
    }
}

/// The bytes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntrySize {
    /// Of its key.
    pub key: usize,
    /// Of its value.
    pub value: usize,
    /// Whether the value is an integer, which the server keeps as one.
    pub is_integer: bool,
    /// Of a hash, its fields.
    pub hash: Option<HashSize>,
}

/// What decides how a hash is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashSize {
    /// How many.
    pub fields: usize,
    /// Bytes of all names and values.
    pub bytes: usize,
    /// Of the longest name or value.
    pub longest: usize,
}

impl HashSize {
    /// Of an entry's value; none: it is no hash.
    #[must_use]
    pub fn of(value: &[u8]) -> Option<Self> {
        let fields = fields::decode(value)?;
        let sizes = fields.iter().flat_map(|(name, value)| [name.len(), value.len()]);
        let (bytes, longest) = (sizes.clone().sum(), sizes.max().unwrap_or_default());
        Some(Self { fields: fields.len(), bytes, longest })
    }
}

/// A text of so many bytes: what stands before it grows with it, and a null stands behind it.
fn text(bytes: usize) -> usize {
    let before = match bytes {
        0..32 => 1,
        32..256 => 3,
        256..65_536 => 5,
        _ => 9,
    };
    before + bytes + 1
}

/// The places of a table that grows by doubling.
fn table(entries: u64) -> u64 {
    if entries == 0 { 0 } else { entries.next_power_of_two().max(4) }
}

/// How many entries share a place with others and so need a node, if they are spread evenly.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate, and not below 0"
)]
fn sharing(entries: u64) -> u64 {
    let (entries, places) = (entries as f64, table(entries).max(1) as f64);
    let filled = places * (1.0 - (-entries / places).exp());
    (entries - filled).max(0.0) as u64
}

/// The bytes of a table of buckets, 64 bytes for seven entries, which grows by doubling when it is nearly full.
fn buckets(entries: u64) -> u64 {
    64 * entries.div_ceil(7).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_allocator() {
        let of = |quantum, bytes| MemoryModel::of("redis", (7, 0), Some(quantum)).size(bytes);
        for (bytes, size) in
            [(1, 8), (9, 16), (17, 32), (128, 128), (129, 160), (161, 192), (257, 320), (1025, 1280)]
        {
            assert_eq!(of(16, bytes), size, "{bytes}");
        }
        for (bytes, size) in [(9, 16), (17, 24), (57, 64), (65, 80), (129, 160)] {
            assert_eq!(of(8, bytes), size, "{bytes}");
        }
    }

    #[test]
    fn tables_double() {
        assert_eq!((table(0), table(3), table(5), table(1 << 20)), (0, 4, 8, 1 << 20));
    }
}
