//! The demo's Redis: one server, or a cluster of three masters with a replica each.

use std::sync::Arc;

use cachekeeper_testkit::servers::{Cluster, Redis, ServerError};

/// The servers that run.
#[derive(Debug)]
pub enum Servers {
    /// One.
    One(Redis),
    /// Those of a cluster.
    Cluster(Arc<Cluster>),
}

impl Servers {
    /// Starts them.
    ///
    /// # Errors
    /// The servers cannot be started.
    pub async fn start(is_cluster: bool) -> Result<Self, ServerError> {
        if is_cluster {
            return Ok(Self::Cluster(Arc::new(Cluster::start(3, 1).await?)));
        }
        Redis::start(&[]).await.map(Self::One)
    }

    /// As the configuration has it.
    #[must_use]
    pub fn url(&self) -> String {
        match self {
            Self::One(redis) => redis.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }
}
