//! Names and places in Redis: Cachekeeper's own keys, and the slot of a key or tag in the stamp tables.

use xxhash_rust::xxh3::xxh3_64;

/// Number of slots in a stamp table (DESIGN R3): 8 bytes each, so a table is 1 MiB and never grows.
pub const SLOTS: u32 = 131_072;

/// Bytes of a stamp table: the epoch it belongs to, then the slots.
pub const TABLE_BYTES: usize = 8 + SLOTS as usize * 8;

/// The hash that decides a key's slot and its jitter: XXH3-64 of the whole key, also where it holds `{…}`.
///
/// Every process that writes to one namespace must use the same one.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The slot of a key or of a tag.
#[must_use]
pub fn slot(key: &[u8]) -> u32 {
    // The remainder is below 131,072, so it fits.
    u32::try_from(key_hash(key) % u64::from(SLOTS)).unwrap_or_default()
}

/// Words of four bytes before the first counter in the table of fences: the generation.
const FENCE_START: u32 = 2;

/// The word that counts invalidations of this key's slot, in the table of fences.
#[must_use]
pub fn key_fence(key: &str) -> u32 {
    FENCE_START + slot(key.as_bytes())
}

/// The word that counts invalidations of this tag's slot.
#[must_use]
pub fn tag_fence(tag: &str) -> u32 {
    FENCE_START + SLOTS + slot(tag.as_bytes())
}

/// The word that counts the invalidations of all tags, for loads that name their tags only when they are done.
pub const ANY_TAG_FENCE: u32 = FENCE_START + 2 * SLOTS;

/// Cachekeeper's own keys. All begin with `ck:{namespace}:`, so that a cluster keeps them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    prefix: String,
    /// Hash: epoch, incarnation, floor, cursor, debts, retired incarnations, dataset revisions, job counters.
    pub head: String,
    /// String: the epoch, then the stamp of each key slot.
    pub stamps: String,
    /// String: the epoch, then the stamp of each tag slot.
    pub tag_stamps: String,
    /// What every covered entry is at least as fresh as.
    pub watermark: String,
    /// String: a generation, then the counters that fence fills without a snapshot: one for each key slot, one for each
    /// tag slot, one for all tags.
    pub fences: String,
    /// String: the last fencing token of a lock.
    pub last_token: String,
    /// Channel: the names of locks that were released.
    pub unlock_channel: String,
    /// Sorted set: the windows of tag sets, each the second from which no member can be alive. Behind the same name and
    /// `:<window>` stands the set of a window's tags.
    pub windows: String,
}

/// Every own key of every namespace begins with this; datasets and events may not touch such keys.
pub const RESERVED_PREFIX: &str = "ck:";

impl Keyspace {
    /// The keys of one namespace.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        let prefix = format!("{RESERVED_PREFIX}{{{namespace}}}:");
        Self {
            head: format!("{prefix}head"),
            stamps: format!("{prefix}stamps"),
            tag_stamps: format!("{prefix}tagstamps"),
            watermark: format!("{prefix}watermark"),
            fences: format!("{prefix}fences"),
            last_token: format!("{prefix}token"),
            unlock_channel: format!("{prefix}unlock"),
            windows: format!("{prefix}windows"),
            prefix,
        }
    }

    /// `ck:{namespace}:`
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What stands before a tag's name and window in the key of its set.
    #[must_use]
    pub fn tag_prefix(&self) -> String {
        format!("{}tag:", self.prefix)
    }

    /// Who may take write commands from a stream.
    #[must_use]
    pub fn writer(&self, stream: &str) -> String {
        format!("{}writer:{stream}", self.prefix)
    }

    /// The lease of this name.
    #[must_use]
    pub fn lock(&self, name: &str) -> String {
        format!("{}lock:{name}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_stable_because_every_process_must_agree() {
        assert_eq!(slot(b""), 103_618);
        assert_eq!(slot(b"product:42"), slot("product:42".as_bytes()));
        assert!(slot(b"product:{42}") != slot(b"other:{42}"));
    }

    #[test]
    fn own_keys_carry_the_namespace_as_a_hash_tag() {
        let keys = Keyspace::new("shop");
        assert_eq!(keys.head, "ck:{shop}:head");
        assert_eq!(keys.lock("warm:product"), "ck:{shop}:lock:warm:product");
    }
}
