//! What the server is: version, run id, eviction policy, role.
//!
//! Managed servers and rights may hide `INFO`. Then `HELLO`, which nobody can be refused, says some of it, and what it does not
//! say is unknown.

use std::collections::HashMap;

use redis::Value;

use super::{CacheError, Redis, UseSign};
use cachekeeper_protocol::entry::Shape;

/// Facts about a Redis server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerFacts {
    /// `7.0.15`; Valkey reports the Redis version that it is compatible with.
    pub version: String,
    /// Changes with every start and differs from server to server; none: `INFO` is hidden.
    pub run_id: Option<String>,
    /// `master` or `slave`.
    pub role: String,
    /// Whether it is a node of a cluster.
    pub is_cluster_node: bool,
    /// `noeviction`, `volatile-lru`, …; empty: it is hidden.
    pub maxmemory_policy: String,
    /// Bytes in use.
    pub used_memory: u64,
    /// The most bytes that it may use; 0: it has no limit, or it is hidden.
    pub maxmemory: u64,
    /// Entries evicted since the start.
    pub evicted_keys: u64,
}

/// The oldest Redis that has what the scripts need.
pub const REDIS_MAJOR_MIN: u32 = 7;

impl ServerFacts {
    /// Whether it lacks what the scripts need; not where its version is hidden.
    #[must_use]
    pub fn is_too_old(&self) -> bool {
        !self.version.is_empty() && self.major() < REDIS_MAJOR_MIN
    }

    /// Whether it knows `CLIENT NO-TOUCH`.
    #[must_use]
    pub fn knows_no_touch(&self) -> bool {
        let mut numbers = self.version.split('.').map_while(|number| number.parse::<u32>().ok());
        (7, 2) <= (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
    }

    /// Whether `INFO` is hidden.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.run_id.is_none()
    }

    /// Whether eviction may take any key, the stamp tables too.
    #[must_use]
    pub fn evicts_anything(&self) -> bool {
        self.maxmemory_policy.starts_with("allkeys-")
    }

    /// How full it is where it takes nothing more: it may not evict what does not end, and has no room.
    #[must_use]
    pub fn full(&self) -> Option<String> {
        let is_full = 0 < self.maxmemory && self.maxmemory <= self.used_memory && !self.evicts_anything();
        let mebibytes = |bytes: u64| bytes >> 20;
        is_full.then(|| {
            format!(
                "redis is full ({} MiB in use, maxmemory {} MiB, {}): what cannot be stored is deleted or left out; raise maxmemory, or have \
                 fewer entries or shorter lifetimes",
                mebibytes(self.used_memory),
                mebibytes(self.maxmemory),
                self.maxmemory_policy
            )
        })
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

const MISS_EVENTS: &str = "turn key-miss events on (notify-keyspace-events)";

fn tells_of_misses(flags: &str) -> bool {
    flags.contains('E') && flags.contains('m')
}

impl Redis {
    /// Asks the server what it is.
    ///
    /// # Errors
    /// [`CacheError`]; that `INFO` is hidden is none.
    pub async fn facts(&self) -> Result<ServerFacts, CacheError> {
        match self.info().await {
            Err(error) if error.is_hidden() => self.facts_without_info().await,
            told => told,
        }
    }

    /// The number of the database.
    #[must_use]
    pub fn database(&self) -> i64 {
        self.connection.endpoint().database()
    }

    async fn facts_without_info(&self) -> Result<ServerFacts, CacheError> {
        let mut facts = ServerFacts { role: "master".to_owned(), ..ServerFacts::default() };
        let told: Result<HashMap<String, Value>, _> =
            self.command("ask what the server is", &redis::cmd("HELLO")).await;
        match told {
            Ok(told) => {
                let text = |name: &str| {
                    told.get(name).and_then(|value| redis::from_redis_value_ref::<String>(value).ok())
                };
                facts.version = text("version").unwrap_or_default();
                facts.is_cluster_node = text("mode").is_some_and(|mode| mode == "cluster");
                // Here a replica is called one.
                if text("role").is_some_and(|role| role != "master") {
                    facts.role = "slave".to_owned();
                }
            }
            Err(error) if error.is_unreachable() || error.is_of_login() => return Err(error),
            Err(_does_not_know_it) => {}
        }
        let policy = redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").to_owned();
        if let Ok((_, policy)) =
            self.command::<(String, String)>("ask for the eviction policy", &policy).await
        {
            facts.maxmemory_policy = policy;
        }
        Ok(facts)
    }

    async fn info(&self) -> Result<ServerFacts, CacheError> {
        let mut facts = ServerFacts::default();
        for section in ["server", "replication", "memory", "stats", "cluster"] {
            let text: String =
                self.command("ask what the server is", redis::cmd("INFO").arg(section)).await?;
            for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
                match name {
                    "redis_version" => facts.version = value.to_owned(),
                    "run_id" => facts.run_id = Some(value.to_owned()),
                    "role" => facts.role = value.to_owned(),
                    "cluster_enabled" => facts.is_cluster_node = value == "1",
                    "maxmemory_policy" => facts.maxmemory_policy = value.to_owned(),
                    "used_memory" => facts.used_memory = value.parse().unwrap_or_default(),
                    "maxmemory" => facts.maxmemory = value.parse().unwrap_or_default(),
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

    /// Whether the server's configuration has key-miss events on.
    ///
    /// # Errors
    /// [`CacheError`], for example where `CONFIG` is not allowed.
    pub async fn has_miss_events(&self) -> Result<bool, CacheError> {
        self.keyspace_events().await.map(|flags| tells_of_misses(&flags))
    }

    /// Turns key-miss events on, keeping the events that others asked for.
    ///
    /// # Errors
    /// [`CacheError`], for example where `CONFIG` is not allowed.
    pub async fn enable_miss_events(&self) -> Result<(), CacheError> {
        let mut flags = self.keyspace_events().await?;
        if tells_of_misses(&flags) {
            return Ok(());
        }
        flags.push_str("Em");
        let set = redis::cmd("CONFIG").arg("SET").arg("notify-keyspace-events").arg(flags).to_owned();
        self.command::<Value>(MISS_EVENTS, &set).await.map(drop)
    }

    async fn keyspace_events(&self) -> Result<String, CacheError> {
        let get = redis::cmd("CONFIG").arg("GET").arg("notify-keyspace-events").to_owned();
        let (_, flags): (String, String) = self.command(MISS_EVENTS, &get).await?;
        Ok(flags)
    }

    /// Asks for a key that is never there: a server with key-miss events on tells of it.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn miss(&self) -> Result<(), CacheError> {
        self.get(&format!("{}miss", self.keys.own_prefix()), Shape::String).await.map(drop)
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
