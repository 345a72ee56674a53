//! The namespaces of one database, and what each of them uses.

use std::collections::BTreeMap;

use super::{CacheError, Redis};
use cachekeeper_protocol::keyspace::Keyspace;

/// Keys of one page of a scan.
const SCAN_PAGE: usize = 1_000;

/// Which own keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnKeys {
    /// Those of this version.
    Present,
    /// Those that versions before 0.1 was released have left behind.
    Former,
}

impl Redis {
    /// Other namespaces that keep metadata in this database, each with the number of its shard here.
    ///
    /// # Errors
    /// [`CacheError`] where Redis cannot be asked.
    pub async fn other_namespaces(&self) -> Result<Vec<(String, u32)>, CacheError> {
        let mut found = Vec::new();
        let mut cursor = 0_u64;
        loop {
            let mut command = redis::cmd("SCAN");
            command.arg(cursor).arg("MATCH").arg(Keyspace::pattern()).arg("COUNT").arg(1000);
            command.arg("TYPE").arg("hash");
            let (next, page): (u64, Vec<String>) =
                self.command("look for other namespaces", &command).await?;
            let others = page.iter().filter_map(|key| Keyspace::home_of(key));
            let others = others.filter(|(other, _)| *other != self.keys.namespace());
            found.extend(others.map(|(other, number)| (other.to_owned(), number)));
            if next == 0 {
                // A scan may show a key twice.
                found.sort_unstable();
                found.dedup();
                return Ok(found);
            }
            cursor = next;
        }
    }

    /// Takes this namespace's own keys out, as far as one page of a scan shows them; those of the applications' entries stay.
    /// Answers how many, and where to go on (0: that was all).
    ///
    /// # Errors
    /// [`CacheError`]; it may be said again.
    pub async fn purge_page(&self, cursor: u64, layout: OwnKeys) -> Result<(u64, u64), CacheError> {
        let what = "take out this namespace's own keys";
        let prefix = match layout {
            OwnKeys::Present => self.keys.own_prefix(),
            OwnKeys::Former => self.keys.former_prefix(),
        };
        let mut command = redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(SCAN_PAGE);
        let (next, mut page): (u64, Vec<Vec<u8>>) = self.command(what, &command).await?;
        page.retain(|key| key.starts_with(prefix.as_bytes()));
        if page.is_empty() {
            return Ok((0, next));
        }
        // A set of many members is freed beside the commands of others.
        let mut command = redis::cmd("UNLINK");
        for key in &page {
            command.arg(key.as_slice());
        }
        Ok((self.command(what, &command).await?, next))
    }

    /// Leaves a stream, which stays with what is in it; answers whether this namespace read it.
    ///
    /// # Errors
    /// [`CacheError`] where Redis cannot be asked.
    pub async fn leave_stream(&self, stream: &str, group: &str) -> Result<bool, CacheError> {
        let what = "leave a stream";
        if !self.command::<bool>(what, redis::cmd("EXISTS").arg(stream)).await? {
            return Ok(false);
        }
        self.command(what, redis::cmd("XGROUP").arg("DESTROY").arg(stream).arg(group)).await
    }

    /// What a namespace has registered to use.
    ///
    /// # Errors
    /// [`CacheError`] where Redis cannot be asked.
    pub async fn uses_of(
        &self,
        (namespace, shard): (&str, u32),
    ) -> Result<BTreeMap<String, String>, CacheError> {
        let key = Keyspace::new(namespace).of_shard(shard).uses();
        self.command("read what another namespace uses", redis::cmd("HGETALL").arg(key)).await
    }

    /// Registers what this namespace uses, in place of what was registered before.
    ///
    /// # Errors
    /// [`CacheError`]; it may be said again.
    pub async fn register_uses(&self, uses: &[(String, String)]) -> Result<(), CacheError> {
        let key = self.keys.uses();
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        pipeline.cmd("DEL").arg(&key).ignore().cmd("HSET").arg(&key);
        for (name, value) in uses {
            pipeline.arg(name).arg(value);
        }
        pipeline.ignore();
        self.pipeline("register what this namespace uses", &pipeline, 0).await.map(drop)
    }
}
