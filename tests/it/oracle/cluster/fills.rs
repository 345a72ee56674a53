//! Fills whose store comes late, as those of a stalled program do: they name what was adopted before their load.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use cachekeeper_engine::context::Context;
use cachekeeper_engine::encode::Encoder;
use cachekeeper_engine::stores::redis::{Answer, Cluster, Epoch, PlacedShard, StoreMode};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::entry::EntryBatch;
use cachekeeper_protocol::revision::Revision;
use cachekeeper_protocol::stamp::Stamp;
use rand::RngExt;
use rand::rngs::StdRng;

use super::super::load::ITEMS;
use super::Arena;

/// Rows that were loaded for entries of one shard, and what their store names.
pub struct Loaded {
    context: Context,
    epoch: Epoch,
    revision: Revision,
    incarnation: String,
    stamp: Stamp,
    batch: EntryBatch,
}

/// Loads entries of a shard that are not there or soon will not be; none: nothing can be loaded now.
pub async fn load(context: &Context, ids: &[Vec<String>]) -> Option<Loaded> {
    let pinned = context.pinned().await.ok().map(Cow::into_owned)?;
    let metadata = pinned.redis.metadata("").await.ok()?;
    let dataset = Arc::clone(pinned.catalog.get("lazy").unwrap());
    let source = dataset.source(&pinned.postgres).await.ok()?;
    let rows = pinned.postgres.load(&source, ids).await.ok()?;
    let mut batch = EntryBatch::default();
    let mut encoder = Encoder::new(&dataset, &source);
    rows.rows.iter().for_each(|row| encoder.add(row, &mut batch));
    encoder.finish(&mut batch);
    Some(Loaded {
        epoch: metadata.epoch?,
        revision: metadata.revisions.get("lazy")?.clone(),
        incarnation: rows.poll.incarnation,
        stamp: rows.poll.snapshot.stamp(),
        context: pinned,
        batch,
    })
}

impl Loaded {
    /// Whether the script that stores has taken it: entries in it may still have been refused.
    pub async fn store(&self) -> bool {
        let dataset = self.context.catalog.get("lazy").unwrap();
        let precondition = dataset.store_precondition(&self.epoch, &self.incarnation, &self.revision);
        let life = dataset.lifetimes.longest();
        let stored = self.context.redis.store(&precondition, self.stamp, &self.batch, life, StoreMode::Slots);
        matches!(stored.await, Ok(Answer::Done(refused)) if refused.is_empty())
    }
}

/// The shards as they are now, each with a context of its own.
pub async fn shards(arena: &Arena, cluster: &Cluster) -> Vec<(PlacedShard, Context)> {
    let Ok(map) = cluster.map().await else { return Vec::new() };
    let placed = cluster.placed_shards(&map, &[]).await.unwrap_or_default();
    let of_shard = |shard: PlacedShard| {
        let context = Context::of_shard(&arena.config, &arena.context.postgres, cluster, &shard).unwrap();
        (shard, context)
    };
    placed.into_iter().map(of_shard).collect()
}

/// Fills some entries of a shard again and again, each time after up to three seconds.
pub async fn late(arena: Arc<Arena>, mut random: StdRng) {
    while !arena.is_over() {
        let shards = shards(&arena, arena.cluster()).await;
        let mut loaded = Vec::new();
        for (shard, context) in &shards {
            let is_its =
                |id: &i64| shard.node.serves.contains(ClusterSlot::of(format!("lazy:{id}").as_bytes()));
            let ids = (0..40).map(|_| random.random_range(0..ITEMS)).filter(is_its);
            let ids: Vec<Vec<String>> = ids.map(|id| vec![id.to_string()]).collect();
            loaded.extend(load(context, &ids).await);
        }
        // Mostly soon, now and then late enough for a cluster slot to leave and to come back.
        let most = if random.random_bool(0.3) { 3_000 } else { 200 };
        tokio::time::sleep(Duration::from_millis(random.random_range(0..most))).await;
        for one in &loaded {
            one.store().await;
        }
    }
}
