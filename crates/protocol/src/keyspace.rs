//! Names and places in Redis: Cachekeeper's own keys, and the slot of a key or tag in the stamp tables.

use xxhash_rust::xxh3::xxh3_64;

/// Number of slots in a stamp table (R3): 8 bytes each, so a table is 1 MiB and never grows.
pub(crate) const SLOTS: u32 = 131_072;

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

/// Words of four bytes before the first counter in the table of counters: the generation.
const COUNTERS_START: u32 = 2;

/// The word that counts invalidations of this key's slot, in the table of counters.
#[must_use]
pub fn key_counter(key: &str) -> u32 {
    COUNTERS_START + slot(key.as_bytes())
}

/// The word that counts invalidations of this tag's slot.
#[must_use]
pub fn tag_counter(tag: &str) -> u32 {
    COUNTERS_START + SLOTS + slot(tag.as_bytes())
}

/// The word that counts the invalidations of all tags, for loads that name their tags only when they are done.
pub const ANY_TAG_COUNTER: u32 = COUNTERS_START + 2 * SLOTS;

/// Every own key of every namespace begins with this; datasets and events may not touch such keys.
pub const RESERVED_PREFIX: &str = "ck:";

/// Cachekeeper's own keys of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    namespace: String,
    shard: ShardKeys,
}

/// The protocol's own keys on one master of Redis. All begin with `ck:{<namespace>:<shard>}:`: what stands in the braces
/// decides where a cluster puts a key, so that one script can reach them together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardKeys {
    /// Hash: epoch, incarnation, floor, cursor, pending revalidations, retired incarnations, dataset revisions, job
    /// counters.
    pub meta: String,
    /// String: the epoch, then the stamp of each key slot.
    pub stamps: String,
    /// String: the epoch, then the stamp of each tag slot.
    pub tag_stamps: String,
    /// What every covered entry is at least as fresh as.
    pub watermark: String,
    /// String: a generation, then the counters of invalidations, which fills without a snapshot must find unchanged: one
    /// for each key slot, one for each tag slot, one for all tags.
    pub counters: String,
    /// Sorted set: the windows of tag sets, each the second from which no member can be alive. Behind the same name and
    /// `:<window>` stands the set of a window's tags.
    pub windows: String,
    /// Hash: the workers that live, each with the definitions that it has.
    pub workers: String,
    /// Hash: definitions of datasets in full, for whoever leads and has others.
    pub definitions: String,
    /// Hash: what applications in any language are told: where events and write commands go, and of each dataset how its
    /// entries are named and read.
    pub directory: String,
    /// What stands before a tag's name and window in the key of its set.
    pub tag_prefix: String,
    /// What stands before a dataset's name and the number of a cause in the key of a bitmap of pending stamp slots.
    pub pending_prefix: String,
}

impl ShardKeys {
    fn new(namespace: &str, shard: u32) -> Self {
        let prefix = format!("{RESERVED_PREFIX}{{{namespace}:{shard}}}:");
        Self {
            meta: format!("{prefix}meta"),
            stamps: format!("{prefix}stamps"),
            tag_stamps: format!("{prefix}tagstamps"),
            watermark: format!("{prefix}watermark"),
            counters: format!("{prefix}counters"),
            windows: format!("{prefix}windows"),
            workers: format!("{prefix}workers"),
            definitions: format!("{prefix}definitions"),
            directory: format!("{prefix}directory"),
            tag_prefix: format!("{prefix}tag:"),
            pending_prefix: format!("{prefix}pending:"),
        }
    }
}

impl Keyspace {
    /// The keys of one namespace.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), shard: ShardKeys::new(namespace, 0) }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The metadata, with its stamp tables, that orders this key: all keys of one script must have the same. A single
    /// Redis is the case of one shard.
    #[must_use]
    pub fn metadata_of(&self, _key: &str) -> &ShardKeys {
        &self.shard
    }

    /// The metadata of what belongs to no key: the cursor, registered definitions, tags.
    #[must_use]
    pub fn metadata(&self) -> &ShardKeys {
        &self.shard
    }

    /// A pattern of Redis that the own keys of every namespace have, of versions before 0.1 was released too.
    #[must_use]
    pub fn pattern() -> String {
        format!("{RESERVED_PREFIX}{{*}}:*")
    }

    /// The namespace whose metadata this key is, or that says in it what it uses; none: it is another key. Earlier versions kept theirs as `head`, without
    /// a shard.
    #[must_use]
    pub fn namespace_of(key: &str) -> Option<&str> {
        let rest = key.strip_prefix(RESERVED_PREFIX)?.strip_prefix('{')?;
        let own = [":0}:meta", ":0}:uses", "}:head"];
        own.iter().find_map(|end| rest.strip_suffix(end))
    }

    /// What every own key of this namespace begins with.
    #[must_use]
    pub fn own_prefix(&self) -> String {
        self.own("")
    }

    /// What its own keys began with in versions before 0.1 was released.
    #[must_use]
    pub fn former_prefix(&self) -> String {
        format!("{RESERVED_PREFIX}{{{}}}:", self.namespace)
    }

    /// The lease under which a worker of an earlier version leads the change feed of this namespace.
    #[must_use]
    pub fn former_lease(&self) -> String {
        format!("{}lock:feed", self.former_prefix())
    }

    /// The lock of this name.
    #[must_use]
    pub fn lock(&self, name: &str) -> String {
        self.own(&format!("lock:{name}"))
    }

    /// String: the last fencing token of a lock.
    #[must_use]
    pub fn last_token(&self) -> String {
        self.own("token")
    }

    /// Channel: the names of locks that were released.
    #[must_use]
    pub fn unlock_channel(&self) -> String {
        self.own("unlock")
    }

    /// Hash: the streams, the prefix of replies and the key templates that this namespace uses, for others to see.
    #[must_use]
    pub fn uses(&self) -> String {
        self.own("uses")
    }

    /// Hash: prefixes of keys that applications have registered as theirs, each with the second in which it was last
    /// seen.
    #[must_use]
    pub fn prefixes(&self) -> String {
        self.own("prefixes")
    }

    /// Who may take write commands from a stream.
    #[must_use]
    pub fn writer(&self, stream: &str) -> String {
        self.own(&format!("writer:{stream}"))
    }

    /// Locks and streams are the whole namespace's; they stand beside the metadata of the first shard.
    fn own(&self, name: &str) -> String {
        format!("{RESERVED_PREFIX}{{{}:0}}:{name}", self.namespace)
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
    fn own_keys_carry_namespace_and_shard_as_a_hash_tag() {
        let keys = Keyspace::new("shop");
        assert_eq!(keys.metadata_of("product:42").meta, "ck:{shop:0}:meta");
        assert_eq!(keys.metadata_of("product:42"), keys.metadata());
        assert_eq!(keys.lock("feed"), "ck:{shop:0}:lock:feed");
        assert_eq!(Keyspace::namespace_of("ck:{shop:0}:meta"), Some("shop"));
        assert_eq!(Keyspace::namespace_of("ck:{shop}:head"), Some("shop"));
        assert_eq!(Keyspace::namespace_of("ck:{shop:0}:counters"), None);
        assert_eq!(keys.former_lease(), "ck:{shop}:lock:feed");
    }
}
