//! Redis, of `cachekeeper check`: what it is, what its user may do, what this namespace shares with others.

use super::Check;
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::miss_events;
use cachekeeper_engine::namespaces::{self, CONFLICT_HELP};
use cachekeeper_engine::rights;
use cachekeeper_engine::shown::few;
use cachekeeper_engine::stores::redis::{REDIS_MAJOR_MIN, Refusal, ServerFacts};

pub(super) const URL: &str = "redis.url";
const CLUSTER_HELP: &str = "write redis+cluster://host:port,host:port with some of its nodes";
const RIGHTS_HELP: &str = "`cachekeeper acl --for worker` prints all that the worker's user needs";

impl Check<'_> {
    /// Whether it can be used.
    pub(super) async fn redis(&mut self) -> Result<bool, EngineError> {
        if let Some(cluster) = &self.context.cluster {
            return self.masters(cluster).await;
        }
        let Some(facts) = self.redis_facts().await? else { return Ok(false) };
        self.check_eviction(&facts);
        if !self.is_usable(&facts) {
            return Ok(false);
        }
        if self.check_rights(self.context).await? {
            self.check_misses(self.context).await?;
            self.check_former_version().await?;
        }
        if let Some(full) = facts.full() {
            self.warning(URL, full, None);
        }
        Ok(true)
    }

    /// What Redis says of itself, if it may; none: it says nothing to anybody whom it does not know.
    async fn redis_facts(&mut self) -> Result<Option<ServerFacts>, EngineError> {
        match self.context.redis.facts().await {
            Err(error) if error.is_of_configuration() => {
                let problem = match error.trouble() {
                    Some(trouble) => (trouble.setting, trouble.told(), trouble.help),
                    None => (URL, error.told(), RIGHTS_HELP),
                };
                let (setting, message, help) = problem;
                self.error(setting, message, help.to_owned());
                Ok(None)
            }
            facts => Ok(Some(facts?)),
        }
    }

    /// Whether this Redis can be written at all.
    pub(super) fn is_usable(&mut self, facts: &ServerFacts) -> bool {
        let (message, help) = if facts.is_too_old() {
            let version = &facts.version;
            let message = format!(
                "Redis {version} is too old: Cachekeeper needs {REDIS_MAJOR_MIN}.0 or newer (or Valkey)"
            );
            (message, "use a newer server")
        } else if facts.is_cluster_node {
            ("this Redis is a node of a cluster".to_owned(), CLUSTER_HELP)
        } else if facts.role != "master" {
            let message = "this Redis is a replica, where nothing can be stored";
            (message.to_owned(), "give the address of its master")
        } else {
            return true;
        };
        self.error(URL, message, help.to_owned());
        false
    }

    pub(super) fn check_eviction(&mut self, facts: &ServerFacts) {
        if !facts.evicts_anything() {
            return;
        }
        let message = format!("Redis may evict anything (maxmemory-policy {})", facts.maxmemory_policy);
        let help =
            "each eviction of a stamp table makes everything be loaded again; use volatile-lru or noeviction";
        if self.config.datasets.iter().any(|dataset| dataset.feed == FeedNeed::Required) {
            self.error(URL, message, help.to_owned());
        } else {
            self.warning(URL, message, help.to_owned());
        }
    }

    /// What the user may not do in Redis, or the server does not have. Whether all that is needed is there.
    pub(super) async fn check_rights(&mut self, context: &Context) -> Result<bool, EngineError> {
        let missing = rights::missing(context, self.config).await?;
        for (what, means) in missing.weaker {
            let message = format!("the user in Redis lacks {what}: {means}");
            self.warning(URL, message, RIGHTS_HELP.to_owned());
        }
        let is_enough = missing.needed.is_empty();
        if !is_enough {
            let message = format!("the user in Redis lacks {}", few(&missing.needed));
            // The others are asked for within a transaction.
            let is_all = !missing.needed.iter().any(|needed| needed.contains("command multi "));
            let more = if is_all {
                ""
            } else {
                "; without `multi` the others cannot be asked, and more may be missing"
            };
            self.error(URL, message, format!("{RIGHTS_HELP}{more}"));
        }
        Ok(is_enough)
    }

    /// Whether a worker would be told of misses, where datasets are filled by them.
    pub(super) async fn check_misses(&mut self, context: &Context) -> Result<(), EngineError> {
        let Some(dataset) = miss_events::wanted_by(&context.catalog) else { return Ok(()) };
        if let Some(reason) = miss_events::obstacle(context).await? {
            let help = "the worker would not be ready; or let it do that itself: +config|get +config|set";
            let setting = format!("dataset.{dataset}.on_miss");
            self.error(&setting, format!("misses are not filled: {reason}"), help.to_owned());
        }
        Ok(())
    }

    /// What another version writes would be written over, and the other way round.
    async fn check_former_version(&mut self) -> Result<(), EngineError> {
        if self.context.redis.is_led_by_former_version().await? {
            let namespace = &self.config.service.namespace;
            let message = format!("a worker of an earlier version leads the namespace {namespace:?}");
            let help =
                "it keeps other keys: stop all earlier workers and libraries before this one is started";
            self.error("service.namespace", message, help.to_owned());
        }
        Ok(())
    }

    /// What this namespace would share with others. By then the types of keys are known, as far as they can be.
    pub(super) async fn namespaces(&mut self) -> Result<(), EngineError> {
        let conflicts = match namespaces::conflicts(self.context, self.config).await {
            // Which rights are missing was said.
            Err(EngineError::Cache(error)) if error.refusal == Refusal::Forbidden || error.is_hidden() => {
                Vec::new()
            }
            conflicts => conflicts?,
        };
        for conflict in conflicts {
            self.error(&conflict.setting, conflict.message, CONFLICT_HELP.to_owned());
        }
        Ok(())
    }
}
