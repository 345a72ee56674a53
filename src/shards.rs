//! The shards of a Redis, for whoever works on each: of a cluster one for each master, and a single Redis is the only one of its own.

use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::redis::{Cluster, PlacedShard};
use cachekeeper_protocol::cluster_slot::ClusterSlot;

/// Those of a cluster, and where they are now.
///
/// # Errors
/// [`EngineError`] where a master cannot be asked.
pub async fn of_cluster(
    config: &Config,
    (context, cluster): (&Context, &Cluster),
) -> Result<Vec<(PlacedShard, Context)>, EngineError> {
    let map = cluster.map().await?;
    let placed = cluster.placed_shards(&map, &[]).await?;
    let of = |shard: PlacedShard| {
        let of_shard = Context::of_shard(config, &context.postgres, cluster, &shard)?;
        Ok((shard, of_shard))
    };
    placed.into_iter().map(of).collect()
}

/// All shards.
///
/// # Errors
/// As [`of_cluster`].
pub async fn all(config: &Config, context: &Context) -> Result<Vec<Context>, EngineError> {
    let Some(cluster) = &context.cluster else { return Ok(vec![context.clone()]) };
    let placed = of_cluster(config, (context, cluster)).await?;
    Ok(placed.into_iter().map(|(_, of_shard)| of_shard).collect())
}

/// That which serves a key; none: no master serves its cluster slot.
///
/// # Errors
/// As [`of_cluster`].
pub async fn of_key(config: &Config, context: &Context, key: &str) -> Result<Option<Context>, EngineError> {
    let Some(cluster) = &context.cluster else { return Ok(Some(context.clone())) };
    let slot = ClusterSlot::of(key.as_bytes());
    let placed = of_cluster(config, (context, cluster)).await?;
    let served = placed.into_iter().find(|(shard, _)| shard.node.serves.contains(slot));
    Ok(served.map(|(_, of_shard)| of_shard))
}
