//! What a server has in memory, and how it allocates: for whoever computes what entries would take.

use super::{CacheError, Redis};

/// A server's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryFacts {
    /// `redis` or `valkey`.
    pub product: String,
    /// The version of that product.
    pub version: (u32, u32),
    /// Bytes in use.
    pub used: u64,
    /// The most that it may use; none: it has no limit.
    pub limit: Option<u64>,
    /// Keys of the database, and those of them that expire.
    pub keys: u64,
    /// Those of them that expire.
    pub expiring: u64,
    /// The step between small sizes of the allocator; none: it gives what is asked for, in steps of 16 bytes.
    pub quantum: Option<usize>,
}

/// Where the allocator says nothing of itself: that of the one that Redis brings along. Distributions link another, of 16.
const QUANTUM: usize = 8;

impl Redis {
    /// What the server has in memory; none: it does not tell.
    ///
    /// # Errors
    /// [`CacheError`]; that `INFO` is hidden is none.
    pub async fn memory_facts(&self) -> Result<Option<MemoryFacts>, CacheError> {
        let what = "ask how much memory is used";
        let mut facts = MemoryFacts { product: "redis".to_owned(), ..MemoryFacts::default() };
        let mut has_steps = true;
        let database = format!("db{}", self.database());
        for section in ["server", "memory", "keyspace"] {
            let text: String = match self.command(what, redis::cmd("INFO").arg(section)).await {
                Err(error) if error.is_hidden() => return Ok(None),
                told => told?,
            };
            for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
                let value = value.trim_end();
                match name {
                    "redis_version" if facts.product == "redis" => facts.version = version(value),
                    "valkey_version" => {
                        facts.product = "valkey".to_owned();
                        facts.version = version(value);
                    }
                    "mem_allocator" => has_steps = value.starts_with("jemalloc"),
                    "used_memory" => facts.used = value.parse().unwrap_or_default(),
                    "maxmemory" => facts.limit = value.parse().ok().filter(|limit| 0 < *limit),
                    name if name == database => {
                        let fields = value.split(',').filter_map(|field| field.split_once('='));
                        for (field, number) in fields {
                            let number = number.parse().unwrap_or_default();
                            match field {
                                "keys" => facts.keys = number,
                                "expires" => facts.expiring = number,
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        if has_steps {
            facts.quantum = Some(self.quantum().await.unwrap_or(QUANTUM));
        }
        Ok(Some(facts))
    }

    /// What the allocator says of itself; none: nothing.
    async fn quantum(&self) -> Option<usize> {
        let command = redis::cmd("MEMORY").arg("MALLOC-STATS").to_owned();
        let text: Result<String, _> = self.command("ask how memory is allocated", &command).await;
        let text = text.ok()?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("Quantum size:"))?;
        line.trim().parse().ok().filter(|quantum| (1..=64).contains(quantum))
    }

    /// Which of these keys are there, by their positions. Nobody takes that for a use of an entry, or for a miss.
    ///
    /// # Errors
    /// [`CacheError`]
    pub async fn present(&self, keys: &[impl AsRef<str>]) -> Result<Vec<bool>, CacheError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for key in keys {
            pipeline.cmd("OBJECT").arg("ENCODING").arg(key.as_ref());
        }
        let mut replies = self.pipeline("look for entries", &pipeline, keys.len()).await?;
        keys.iter().map(|_key| replies.next::<Option<String>>().map(|encoding| encoding.is_some())).collect()
    }
}

fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}
