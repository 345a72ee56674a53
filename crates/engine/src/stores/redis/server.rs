//! What the server is: version, run id, eviction policy, role.

use super::{CacheError, Redis, UseSign};

/// Facts about a Redis server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerFacts {
    /// `7.0.15`; Valkey reports the Redis version that it is compatible with.
    pub version: String,
    /// Changes with every start and differs from server to server.
    pub run_id: String,
    /// `master` or `slave`.
    pub role: String,
    /// Whether it is a node of a cluster.
    pub is_cluster_node: bool,
    /// `noeviction`, `volatile-lru`, …
    pub maxmemory_policy: String,
    /// Bytes in use.
    pub used_memory: u64,
    /// Entries evicted since the start.
    pub evicted_keys: u64,
}

impl ServerFacts {
    /// Whether eviction may take any key, the stamp tables too.
    #[must_use]
    pub fn evicts_anything(&self) -> bool {
        self.maxmemory_policy.starts_with("allkeys-")
    }

    /// How it tells whether an entry was used: under an LFU policy use is counted instead of timed.
    #[must_use]
    pub(crate) fn use_sign(&self) -> UseSign {
        if self.maxmemory_policy.ends_with("-lfu") { UseSign::Frequency } else { UseSign::Idle }
    }

    /// The major version, 0 if it cannot be told.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
    }
}

impl Redis {
    /// Asks the server what it is.
    pub async fn facts(&self) -> Result<ServerFacts, CacheError> {
        let mut facts = ServerFacts::default();
        for section in ["server", "replication", "memory", "stats", "cluster"] {
            let text: String =
                self.command("ask what the server is", redis::cmd("INFO").arg(section)).await?;
            for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
                match name {
                    "redis_version" => facts.version = value.to_owned(),
                    "run_id" => facts.run_id = value.to_owned(),
                    "role" => facts.role = value.to_owned(),
                    "cluster_enabled" => facts.is_cluster_node = value == "1",
                    "maxmemory_policy" => facts.maxmemory_policy = value.to_owned(),
                    "used_memory" => facts.used_memory = value.parse().unwrap_or_default(),
                    "evicted_keys" => facts.evicted_keys = value.parse().unwrap_or_default(),
                    _ => {}
                }
            }
        }
        Ok(facts)
    }

    /// Whether a worker of an earlier version leads this namespace. It keeps other keys and orders entries by them, so
    /// the two would write over each other.
    ///
    /// # Errors
    /// [`CacheError`] where Redis cannot be asked.
    pub async fn is_led_by_former_version(&self) -> Result<bool, CacheError> {
        self.command("look for an earlier version", redis::cmd("EXISTS").arg(self.keys.former_lease())).await
    }

    /// Turns key-miss events on, keeping the events that others asked for.
    ///
    /// # Errors
    /// [`CacheError`], for example where `CONFIG` is not allowed.
    pub async fn enable_miss_events(&self) -> Result<(), CacheError> {
        let what = "turn key-miss events on (notify-keyspace-events)";
        let get = redis::cmd("CONFIG").arg("GET").arg("notify-keyspace-events").to_owned();
        let (_, mut flags): (String, String) = self.command(what, &get).await?;
        if flags.contains('E') && flags.contains('m') {
            return Ok(());
        }
        flags.push_str("Em");
        let set = redis::cmd("CONFIG").arg("SET").arg("notify-keyspace-events").arg(flags).to_owned();
        self.command::<redis::Value>(what, &set).await.map(drop)
    }

    /// Publishes a message; answers how many received it.
    pub async fn publish(&self, channel: &str, message: &[u8]) -> Result<u64, CacheError> {
        let command = redis::cmd("PUBLISH").arg(channel).arg(message).to_owned();
        self.command("publish an event", &command).await
    }

    /// How many keys the database holds.
    pub async fn key_count(&self) -> Result<u64, CacheError> {
        self.command("count keys", &redis::cmd("DBSIZE")).await
    }
}
