//! Names and places in Redis: Cachekeeper's own keys, and the slot of a key or tag in the stamp tables.

use xxhash_rust::xxh3::xxh3_64;

use super::cluster_slot::ClusterSlot;
use super::cluster_slot_set::ClusterSlotSet;

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
    /// The number of the shard, which stands in the braces.
    pub number: u32,
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
    /// String, on a cluster only: the epoch, then of each cluster slot whether the shard has adopted it, and by which generation.
    pub adopted: String,
}

impl ShardKeys {
    fn new(namespace: &str, number: u32) -> Self {
        let prefix = format!("{RESERVED_PREFIX}{{{}}}:", home_tag(namespace, number));
        Self {
            number,
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
            adopted: format!("{prefix}adopted"),
        }
    }

    /// The home slot of the shard: the cluster slot of these keys.
    #[must_use]
    pub fn home_slot(&self) -> ClusterSlot {
        ClusterSlot::of(self.meta.as_bytes())
    }
}

/// The hash tag of a shard's own keys.
fn home_tag(namespace: &str, number: u32) -> String {
    format!("{namespace}:{number}")
}

impl Keyspace {
    /// The keys of one namespace.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), shard: ShardKeys::new(namespace, 0) }
    }

    /// The same namespace with the own keys of another shard.
    #[must_use]
    pub fn of_shard(&self, number: u32) -> Self {
        Self { namespace: self.namespace.clone(), shard: ShardKeys::new(&self.namespace, number) }
    }

    /// The lowest number of a shard that is not `taken` and whose home slot is among these; none: there are none.
    #[must_use]
    pub fn shard_within(&self, served: &ClusterSlotSet, taken: &[u32]) -> Option<u32> {
        let is_home = |number: &u32| {
            let home = ClusterSlot::of(home_tag(&self.namespace, *number).as_bytes());
            served.contains(home) && !taken.contains(number)
        };
        // Any cluster slot is hit sooner.
        (0..1_000_000).find(is_home)
    }

    /// String, on a cluster only: which shard has adopted this cluster slot ([`crate::guard`]). It stands in that cluster slot.
    #[must_use]
    pub fn guard(&self, slot: ClusterSlot) -> String {
        format!("{RESERVED_PREFIX}{{{}}}:{}:g", slot.hash_tag(), self.namespace)
    }

    /// A key of this cluster slot that never exists: a script that cannot look for it sees that the cluster slot is moving.
    #[must_use]
    pub fn probe(&self, slot: ClusterSlot) -> String {
        format!("{}:never", self.guard(slot))
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
        Self::home_of(key).map(|(namespace, _)| namespace)
    }

    /// The same with the number of the shard; earlier versions knew only one.
    #[must_use]
    pub fn home_of(key: &str) -> Option<(&str, u32)> {
        let rest = key.strip_prefix(RESERVED_PREFIX)?.strip_prefix('{')?;
        let of_shard = rest.strip_suffix("}:meta").or_else(|| rest.strip_suffix("}:uses"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match of_shard.map(|tag| tag.rsplit_once(':')) {
            Some(Some((name, number))) if is_number(number) => Some((name, number.parse().ok()?)),
            Some(_) => None,
            None => rest.strip_suffix("}:head").map(|name| (name, 0)),
        }
    }

    /// What every own key of this namespace begins with, on this shard.
    #[must_use]
    pub fn own_prefix(&self) -> String {
        self.own("")
    }

    /// Patterns of Redis that its own keys have on a cluster, whichever shards there are: those of the shards with this name at the end (`*`:
    /// all), and the guards.
    #[must_use]
    pub fn patterns_on_cluster(&self, name: &str) -> [String; 2] {
        let namespace = crate::glob::escape(&self.namespace);
        [
            format!("{RESERVED_PREFIX}{{{namespace}:*}}:{name}"),
            format!("{RESERVED_PREFIX}{{*}}:{namespace}:g*"),
        ]
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

    /// Beside the metadata: each shard of a cluster has leases of its own, so that workers can share the shards.
    fn own(&self, name: &str) -> String {
        format!("{RESERVED_PREFIX}{{{}}}:{name}", home_tag(&self.namespace, self.shard.number))
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
        assert_eq!(Keyspace::namespace_of("ck:{shop:31}:meta"), Some("shop"));
        assert_eq!(Keyspace::namespace_of("ck:{shop:x}:meta"), None);
        assert_eq!(keys.former_lease(), "ck:{shop}:lock:feed");
    }

    #[test]
    fn the_own_keys_of_a_shard_share_its_home_slot() {
        let served: ClusterSlotSet = "100-5000".parse().unwrap();
        let number = Keyspace::new("shop").shard_within(&served, &[]).unwrap();
        let keys = Keyspace::new("shop").of_shard(number);
        let on = keys.metadata();
        assert!(served.contains(on.home_slot()), "{on:?}");
        for key in [&on.stamps, &on.tag_stamps, &on.watermark, &on.counters, &on.adopted, &on.tag_prefix] {
            assert_eq!(ClusterSlot::of(key.as_bytes()), on.home_slot(), "{key}");
        }
        assert_eq!(ClusterSlot::of(keys.lock("feed").as_bytes()), on.home_slot());
        let next = keys.shard_within(&served, &[number]).unwrap();
        assert!(number < next && served.contains(keys.of_shard(next).metadata().home_slot()));
        assert_eq!(keys.shard_within(&ClusterSlotSet::all(), &[]), Some(0));
        assert_eq!(keys.shard_within(&ClusterSlotSet::default(), &[]), None);
    }

    #[test]
    fn a_guard_stands_in_its_cluster_slot() {
        let keys = Keyspace::new("shop");
        let slot = ClusterSlot::of(b"product:42");
        for key in [keys.guard(slot), keys.probe(slot)] {
            assert_eq!(ClusterSlot::of(key.as_bytes()), slot, "{key}");
            assert!(key.starts_with(RESERVED_PREFIX) && Keyspace::namespace_of(&key).is_none(), "{key}");
        }
    }
}
