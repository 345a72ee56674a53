//! What does not work on a Redis Cluster yet, and what its masters must be.

use super::Check;
use super::redis::URL;
use cachekeeper_config::diagnostic::Diagnostic;
use cachekeeper_config::{Config, FeedMode};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::redis::Cluster;

/// What this configuration asks for and a cluster does not give yet. Nothing of it is left out without a word.
#[must_use]
pub fn of_cluster(config: &Config) -> Vec<Diagnostic> {
    if !matches!(config.redis.cluster(), Ok(Some(_))) {
        return Vec::new();
    }
    let problem = |setting: &str, what: &str, help: &str| {
        let message = format!("{what} on a Redis Cluster yet");
        config.source.problem(setting, message, help.to_owned())
    };
    let mut found = Vec::new();
    if config.feed.mode == FeedMode::Off {
        let help = "write mode = \"outbox\", or use a single Redis";
        found.push(problem("feed.mode", "nothing is filled without the change feed", help));
    }
    if config.invalidation.stream.is_some() {
        let help = "write stream = \"\" under [invalidation], and have programs publish events on a channel";
        found.push(problem("invalidation.stream", "no stream of events is read", help));
    }
    for dataset in config.datasets.iter().filter(|dataset| dataset.write.is_some()) {
        let setting = format!("dataset.{}.write", dataset.name);
        let help = "take the section out: programs write to Postgres, and the change feed does the rest";
        found.push(problem(&setting, "nothing is written through", help));
    }
    found
}

impl Check<'_> {
    /// Whether each master can be used.
    pub(super) async fn masters(&mut self, cluster: &Cluster) -> Result<bool, EngineError> {
        let map = cluster.map().await?;
        for shard in cluster.placed_shards(&map, &[]).await? {
            let shard = Context::of_shard(self.config, &self.context.postgres, cluster, &shard)?;
            let facts = shard.redis.facts().await?;
            if facts.is_too_old() {
                let message =
                    format!("a master is too old: Redis {}; Cachekeeper needs 7.0 or newer", facts.version);
                self.error(URL, message, "use newer servers".to_owned());
                return Ok(false);
            }
            self.check_eviction(&facts);
            if let Some(full) = facts.full() {
                self.warning(URL, full, None);
            }
            if !self.check_rights(&shard).await? {
                return Ok(false);
            }
            self.check_misses(&shard).await?;
        }
        Ok(true)
    }
}
