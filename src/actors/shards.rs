//! Follows the shards of a cluster: each master is one, with tasks of its own, which begin and end as masters come and go (R20).
//!
//! Which number a master has is told by the guards in its cluster slots (`Cluster::placed_shards`). Tasks speak to one server; where a
//! shard is served by another one, they end and others begin. Two workers, or two sets of tasks of one shard, do each other no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ractor::{ActorCell, ActorStatus};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::context::{FollowedShard, OfCluster, TaskContext};
use super::health::Health;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_config::FeedMode;
use cachekeeper_engine::backfill::SharedReads;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::stores::redis::{ClusterMap, PlacedShard};

/// How soon it is noticed that a master has come or gone.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often the guards are asked which shard a master is, while nothing about the masters changes.
const PLACED_EVERY: Duration = Duration::from_secs(1);
/// A shard whose tasks have failed too often begins again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Begins and ends the tasks of shards.
#[derive(Debug)]
pub struct Shards;

impl Task for Shards {
    const NAME: &'static str = "shards";

    async fn run(context: TaskContext, _wake: Wake) {
        let Some(of_cluster) = context.of_cluster.clone() else { return std::future::pending().await };
        let mut keeper = Keeper {
            context,
            of_cluster,
            placed: None,
            before: BTreeMap::new(),
            not_before: BTreeMap::new(),
            shared_reads: Arc::default(),
        };
        loop {
            let looked = keeper.look().await;
            keeper.note(looked.as_ref().err());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn on_stopped(context: TaskContext) {
        let Some(of_cluster) = &context.of_cluster else { return };
        let shards = of_cluster.shards.all();
        join_all(shards.values().map(|shard| stop(shard.root.clone(), of_cluster.stop_within))).await;
        shards.keys().for_each(|number| of_cluster.shards.remove(*number));
    }
}

struct Keeper {
    context: TaskContext,
    of_cluster: OfCluster,
    /// The masters when their numbers were asked for last, and when that was.
    placed: Option<(ClusterMap, Vec<PlacedShard>, Instant)>,
    /// Shards whose tasks have begun before, each with what they had not warmed yet when they ended.
    before: BTreeMap<u32, BTreeSet<String>>,
    /// When those that have failed too often begin again.
    not_before: BTreeMap<u32, Instant>,
    /// Of all shards.
    shared_reads: Arc<SharedReads>,
}

impl Keeper {
    async fn look(&mut self) -> Result<(), EngineError> {
        let map = self.of_cluster.cluster.look().await?.map.clone();
        let placed = match self.placed.take() {
            Some((known, placed, at)) if known == map && at.elapsed() < PLACED_EVERY => {
                self.placed = Some((known, placed.clone(), at));
                placed
            }
            before => {
                let before = before.map(|(_, placed, _)| placed).unwrap_or_default();
                let placed = self.of_cluster.cluster.placed_shards(&map, &before).await?;
                self.placed = Some((map.clone(), placed.clone(), Instant::now()));
                placed
            }
        };
        self.end_others(&placed);
        for shard in &placed {
            self.begin(shard).await?;
        }
        let followed = self.of_cluster.shards.all();
        self.shared_reads.expect(followed.len());
        self.context
            .health
            .note_shards(followed.into_iter().map(|(number, shard)| (number, shard.tasks.health)).collect());
        let without = map.masters.len() - placed.len();
        let told = "has too few cluster slots to be a shard; give it more, or all of them to others";
        self.context.health.update(|facts| {
            facts.cluster = (0 < without).then(|| format!("{without} of its masters {told}"));
        });
        Ok(())
    }

    /// Says once that the masters cannot be asked; what is followed goes on.
    fn note(&self, error: Option<&EngineError>) {
        let Some(error) = error else { return };
        let text = error.told();
        let is_news = self.context.health.facts().cluster.as_ref() != Some(&text);
        if is_news {
            warn!(error = text, "the masters of the cluster cannot be asked; what is followed goes on");
        }
        self.context.health.update(|facts| facts.cluster = Some(text));
    }

    /// Ends the tasks of shards that are served elsewhere, or not any more.
    fn end_others(&mut self, placed: &[PlacedShard]) {
        for (number, shard) in self.of_cluster.shards.all() {
            let is_placed =
                placed.iter().any(|one| one.number == number && is_same_server(one, &shard.placed));
            let has_ended = shard.root.get_status() == ActorStatus::Stopped;
            if is_placed && !has_ended {
                continue;
            }
            if has_ended {
                warn!(shard = number, "the tasks of a shard have ended, they begin again in 5 s");
                self.not_before.insert(number, Instant::now() + AGAIN_AFTER);
            } else {
                let address = address_of(&shard.placed);
                info!(shard = number, address, "a shard is served elsewhere, or not any more");
            }
            self.before.insert(number, shard.tasks.health.facts().not_warmed);
            self.of_cluster.shards.remove(number);
            // Whoever waits for it would not notice what comes next.
            drop(tokio::spawn(stop(shard.root, self.of_cluster.stop_within)));
        }
    }

    async fn begin(&mut self, placed: &PlacedShard) -> Result<(), EngineError> {
        let number = placed.number;
        let waits = self.not_before.get(&number).is_some_and(|at| Instant::now() < *at);
        if waits || self.of_cluster.shards.all().contains_key(&number) {
            return Ok(());
        }
        let config = &self.context.config;
        let engine =
            Context::of_shard(config, &self.context.engine.postgres, &self.of_cluster.cluster, placed)?;
        let engine = engine.registering(config).with_history_of(&self.context.engine);
        let engine = engine.reading_with_others(&self.shared_reads);
        let health = Health::new(engine.metrics.clone());
        // One that only changes its server has what was warmed.
        let before = self.before.get(&number).cloned();
        let not_warmed = before.unwrap_or_else(|| self.context.health.facts().not_warmed);
        health.update(|facts| {
            facts.not_warmed = not_warmed;
            facts.max_lag = (config.feed.mode == FeedMode::Outbox).then_some(config.feed.max_lag);
        });
        let tasks = self.context.of_shard(engine, health);
        match (self.of_cluster.start)(tasks.clone(), self.of_cluster.stop_within).await {
            Ok(root) => {
                info!(shard = number, address = address_of(placed), "a shard is followed");
                self.of_cluster.shards.add(FollowedShard { placed: placed.clone(), tasks, root });
            }
            Err(error) => debug!(shard = number, error = %chain(&error), "a shard could not begin"),
        }
        Ok(())
    }
}

fn is_same_server(one: &PlacedShard, other: &PlacedShard) -> bool {
    (&one.node.id, &one.node.address) == (&other.node.id, &other.node.address)
}

fn address_of(shard: &PlacedShard) -> String {
    format!("{}:{}", shard.node.address.0, shard.node.address.1)
}

async fn stop(root: ActorCell, within: Duration) {
    root.stop(Some("shutdown".to_owned()));
    // Its own limit is as long.
    if root.wait(Some(within + Duration::from_secs(1))).await.is_err() {
        root.kill();
    }
}
