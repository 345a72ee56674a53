//! Why a worker cannot start.

use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::namespaces::CONFLICT_HELP;
use cachekeeper_engine::stores::postgres::POSTGRES_MAJOR_MIN;
use cachekeeper_engine::stores::redis::REDIS_MAJOR_MIN;

/// What to do where the URL names a node of a cluster.
const CLUSTER_HELP: &str = "write redis+cluster://host:port,host:port with some of its nodes";

/// Why a worker cannot start. Waiting does not help.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A URL cannot be used.
    #[error(transparent)]
    Flow(#[from] EngineError),
    /// Who loaded the configuration did not check the schedules.
    #[error("the schedule of dataset {dataset} cannot be used: {message}")]
    Schedule {
        /// Which dataset.
        dataset: String,
        /// What is wrong.
        message: String,
    },
    /// The actors could not be started.
    #[error("the actors could not be started")]
    Spawn(#[source] ractor::SpawnErr),
    /// The server is too old.
    #[error("Redis {version} is too old: Cachekeeper needs {REDIS_MAJOR_MIN}.0 or newer (or Valkey)")]
    RedisTooOld {
        /// What it says.
        version: String,
    },
    /// The server is too old.
    #[error("Postgres {version} is too old: Cachekeeper needs {POSTGRES_MAJOR_MIN} or newer")]
    PostgresTooOld {
        /// What it says.
        version: i32,
    },
    /// No session would keep what is set and locked in it.
    #[error("{0}")]
    Pooler(String),
    /// The URL names one node of a cluster as if it were alone.
    #[error("this Redis is a node of a cluster: {CLUSTER_HELP}")]
    ClusterNode,
    /// Another namespace of this database uses the same keys.
    #[error("{message}; {CONFLICT_HELP}")]
    SharedNames {
        /// What both would use.
        message: String,
    },
    /// A worker of an earlier version still runs.
    #[error(
        "a worker of an earlier version leads the namespace {namespace:?}; it keeps other keys, and the two would write over each \
         other: stop all earlier workers and libraries, then start this one (a killed one is over after 10 s)"
    )]
    FormerVersion {
        /// Which.
        namespace: String,
    },
    /// Eviction could take what is required.
    #[error(
        "dataset {dataset} has feed = \"required\", but Redis may evict anything ({policy}); set maxmemory-policy to volatile-* or noeviction"
    )]
    Evicting {
        /// Which dataset.
        dataset: String,
        /// Redis's policy.
        policy: String,
    },
}
