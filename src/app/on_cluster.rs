//! A worker on a cluster: what its masters must be, and how the tasks of a shard are begun.

use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, SpawnErr};
use tokio::sync::oneshot;

use super::looks::{LookError, check_server, share_names};
use crate::actors::SHARD_TASKS;
use crate::actors::context::{FollowedShards, OfCluster, TaskContext};
use crate::supervisor::{Supervisor, SupervisorArguments};
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::redis::Cluster;

/// The tasks of a shard have so much less time to stop than all of them.
const STOPS_BEFORE: Duration = Duration::from_secs(2);

/// What the tasks of the whole are given.
pub(super) fn of(cluster: &Cluster, stop_within: Duration) -> OfCluster {
    OfCluster {
        cluster: cluster.clone(),
        start,
        stop_within: stop_within.saturating_sub(STOPS_BEFORE).max(stop_within / 2),
        shards: FollowedShards::default(),
    }
}

fn start(context: TaskContext, stop_within: Duration) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> {
    Box::pin(async move {
        // Whoever follows the shards looks whether it has ended.
        let (outcome, _) = oneshot::channel();
        let arguments = SupervisorArguments { context, tasks: &SHARD_TASKS, stop_within, outcome };
        let (root, _join) = Actor::spawn(None, Supervisor, arguments).await?;
        Ok(root.get_cell())
    })
}

/// Looks at each master.
pub(super) async fn ask(config: &Config, context: &Context, cluster: &Cluster) -> Result<(), LookError> {
    let not_now = |error: EngineError| LookError::NotNow(error.told());
    let map = cluster.map().await.map_err(|error| not_now(error.into()))?;
    let shards = cluster.placed_shards(&map, &[]).await.map_err(|error| not_now(error.into()))?;
    for shard in &shards {
        let shard = Context::of_shard(config, &context.postgres, cluster, shard).map_err(not_now)?;
        let facts = shard.redis.facts().await.map_err(|error| not_now(error.into()))?;
        check_server(config, facts)?;
        share_names(config, &shard).await?;
    }
    Ok(())
}
