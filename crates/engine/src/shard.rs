//! One shard of a cluster, followed: its cluster slots are adopted, the changes of their entries are applied, and its watermark moves
//! (R20). The worker does not run it yet.
//!
//! A round begins with what all servers have said, and ends where any of it is not so any more: nothing was done then that the next round
//! does not do again.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::debug;

use super::catalog::Dataset;
use super::change_feed::{FeedConsumer, ShardFacts, ShardRound, Step};
use super::context::Context;
use super::epoch::{self, EpochState};
use super::error::EngineError;
use super::load::{Cause, Job, Keys, LoadOptions, load};
use crate::stores::redis::{
    Adopted, Cluster, ClusterMap, Precondition, PreconditionFailed, ShardServer, Survey,
};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;

/// Cluster slots that are adopted at once.
const ADOPTED_AT_ONCE: usize = 500;

/// Follows one shard, round by round.
#[derive(Debug)]
pub struct ShardFollower {
    cluster: Cluster,
    context: Context,
    consumer: FeedConsumer,
    /// The node whose server the context's handle speaks to.
    node: Option<String>,
    /// The configuration of the cluster at the last look at the guards; none: a script was refused because of one since then.
    looked: Option<(u64, Vec<ShardServer>)>,
}

impl ShardFollower {
    /// Follows the shard of this context ([`Context::of_shard`]), wherever its home slot is served.
    #[must_use]
    pub fn new(cluster: &Cluster, context: &Context) -> Self {
        let consumer = FeedConsumer::new(context);
        Self { cluster: cluster.clone(), context: context.clone(), consumer, node: None, looked: None }
    }

    /// The context, with a handle to where the shard was found last, which takes the keys of the last round.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// One round: adopts what the shard's server serves, and applies what was committed. With `must_advance` the cursor's script runs also
    /// where nothing has changed.
    ///
    /// # Errors
    /// [`EngineError`]; the next round begins anew.
    pub async fn round(
        &mut self,
        map: &ClusterMap,
        survey: &Survey,
        must_advance: bool,
    ) -> Result<Step, EngineError> {
        let on = self.context.redis.keys().metadata().clone();
        let Some(node) = map.master_of(on.home_slot()) else { return Ok(Step::Waiting) };
        let Some(server) = survey.servers.iter().find(|server| server.node == node.id) else {
            return Ok(Step::Waiting);
        };
        if self.node.as_ref() != Some(&node.id) {
            let redis = self.cluster.shard(&node.address, on.number)?;
            self.context = self.context.with_redis(redis);
            self.node = Some(node.id.clone());
        }
        let state = epoch::ensure(&self.context, "").await?;
        self.adopt(&state, server, &survey.clear).await?;
        let mut facts = ShardFacts {
            server: server.clone(),
            runs: survey.runs(),
            adopted: self.adopted(&state).await?,
            clear: survey.clear.clone(),
            refused: ClusterSlotSet::default(),
        };
        // What has left and come back is not the shard's any more, though its table says so.
        let now = (map.config_epoch, survey.servers.clone());
        if self.looked.as_ref() != Some(&now) {
            let looked_at = facts.adopted.all().and(&facts.reached());
            facts.refused = self.context.redis.foreign_guards(&facts.adopted, &looked_at).await?;
            self.looked = Some(now);
        }
        let within = Arc::new(facts.adopted.within(&facts.reached()));
        let round =
            ShardRound { cluster: self.cluster.clone(), map: map.clone(), survey: survey.clone(), facts };
        self.context = self.context.with_redis(self.context.redis.with_adopted(within));
        let step = self.consumer.step_on_shard(self.context.clone(), round, must_advance).await;
        if step.is_err() {
            self.looked = None;
        }
        step
    }

    async fn adopted(&self, state: &EpochState) -> Result<Arc<Adopted>, EngineError> {
        let adopted = self.context.redis.read_adopted(&state.epoch).await?;
        adopted.ok_or_else(|| self.context.on_precondition_failed(None, PreconditionFailed::Table))
    }

    /// Adopts what the server serves and the shard has not settled, where nothing of it is elsewhere.
    async fn adopt(
        &self,
        state: &EpochState,
        server: &ShardServer,
        clear: &ClusterSlotSet,
    ) -> Result<(), EngineError> {
        let settled = self.adopted(state).await?.settled();
        let wanted: Vec<ClusterSlot> = server.serves.and(clear).without(&settled).iter().collect();
        for part in wanted.chunks(ADOPTED_AT_ONCE) {
            self.adopt_part(state, &server.run, part).await?;
        }
        if !wanted.is_empty() {
            let shard = self.context.redis.keys().metadata().number;
            debug!(shard, cluster_slots = wanted.len(), "cluster slots were adopted");
        }
        Ok(())
    }

    async fn adopt_part(
        &self,
        state: &EpochState,
        run: &str,
        part: &[ClusterSlot],
    ) -> Result<(), EngineError> {
        let context = &self.context;
        let precondition = Precondition::of_epoch(&state.epoch, &state.poll.incarnation);
        let adoption = context.checked(None, context.redis.adopt(&precondition, run, part).await?)?;
        let taken: Vec<ClusterSlot> =
            part.iter().copied().filter(|slot| !adoption.refused.contains(*slot)).collect();
        // What is loaded from now on names the new generation.
        let within = self.adopted(state).await?.within(&taken.iter().copied().collect());
        let pinned = context.with_redis(context.redis.with_adopted(Arc::new(within)));
        let keys = context.redis.entries_within(&taken).await?;
        for (dataset, keys) in by_dataset(context, keys) {
            load(&pinned, &dataset, &keys, LoadOptions::because(Cause::Change), &mut Job::uncounted())
                .await?;
        }
        let settled = context.redis.settle(&precondition, run, &adoption.generation, &taken).await?;
        context.checked(None, settled).map(drop)
    }
}

/// Keys of datasets, with what their columns hold. Others are none of ours.
fn by_dataset(context: &Context, keys: Vec<String>) -> Vec<(Arc<Dataset>, Keys)> {
    let mut sorted: BTreeMap<String, (Arc<Dataset>, Keys)> = BTreeMap::new();
    for key in keys {
        let Some((dataset, values)) = context.catalog.of_key(&key) else { continue };
        let (dataset, name) = (Arc::clone(dataset), dataset.name().to_owned());
        sorted.entry(name).or_insert_with(|| (dataset, Keys::new())).1.push((key, values));
    }
    sorted.into_values().collect()
}
