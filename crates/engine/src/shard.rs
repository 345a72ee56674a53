//! Changes are followed: on a single Redis by the feed alone; on a shard of a cluster its cluster slots are adopted beside that, and its
//! watermark moves only where all servers have said what it claims (R20).
//!
//! A round on a shard begins with what all servers have said, and ends where any of it is not so any more: nothing was done then that the
//! next round does not do again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::catalog::Dataset;
use super::change_feed::{FeedConsumer, ShardFacts, ShardRound, Step};
use super::context::{Context, OnShard};
use super::epoch;
use super::error::EngineError;
use super::failpoint;
use super::load::{Cause, Job, Keys, LoadOptions, load};
use crate::stores::redis::{Adopted, Failed, Look, Precondition, ShardServer};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;

/// Cluster slots that are adopted at once, where they have few entries.
const ADOPTED_AT_ONCE: usize = 500;
/// Once so many entries were loaded for adoptions, changes come first again.
const LOADED_AT_ONCE: u64 = 20_000;
/// And after so long: meanwhile the watermark stands, and another worker would begin to do the same in this one's place.
const ADOPTS_FOR: Duration = Duration::from_millis(500);
/// While a server does not answer, a twentieth of the time at most goes into changes that are applied and cannot be claimed.
const UNCLAIMED_SHARE: u32 = 20;
/// Why rows may be missing in cluster slots that come from elsewhere.
const FROM_ELSEWHERE: &str = "cluster slots came to this shard";

/// Follows changes, step by step.
#[derive(Debug)]
pub struct Follower {
    /// What applies them.
    pub consumer: FeedConsumer,
    shard: Option<ShardFollower>,
}

impl Follower {
    /// Begins where Redis says.
    #[must_use]
    pub fn new(context: &Context) -> Self {
        let shard = context.on_shard.as_ref().map(|on_shard| ShardFollower::new(context, on_shard));
        Self { consumer: FeedConsumer::new(context), shard }
    }

    /// Looks for changes once, and applies them ([`FeedConsumer::step`]); on a shard it adopts cluster slots before that.
    ///
    /// # Errors
    /// [`EngineError`]; the next step begins where Redis says.
    pub async fn step(&mut self, must_advance: bool) -> Result<Step, EngineError> {
        match &mut self.shard {
            None => self.consumer.step(must_advance).await,
            Some(shard) => Box::pin(shard.round(&mut self.consumer, must_advance)).await,
        }
    }
}

/// What the follower of a shard knows of it.
#[derive(Debug)]
struct ShardFollower {
    context: Context,
    on_shard: OnShard,
    /// What the last look at the guards was about: the configuration of the cluster and the servers; none: a script was refused because
    /// of one since then.
    looked: Option<(u64, Vec<ShardServer>)>,
    /// When changes may be applied again although a server does not answer.
    again_at: Option<Instant>,
    /// What was adopted at the last round, and those of it that could be reached, as whoever touches entries is given it.
    within: Option<(Arc<Adopted>, ClusterSlotSet, Arc<Adopted>)>,
}

impl ShardFollower {
    fn new(context: &Context, on_shard: &OnShard) -> Self {
        Self {
            context: context.clone(),
            on_shard: on_shard.clone(),
            looked: None,
            again_at: None,
            within: None,
        }
    }

    async fn round(&mut self, consumer: &mut FeedConsumer, must_advance: bool) -> Result<Step, EngineError> {
        // Where a server does not answer, changes are applied by what is known, and nothing is claimed: so the next round applies them
        // again, and must not come too soon.
        let (look, is_whole) = match (self.on_shard.cluster.look().await, self.on_shard.cluster.last_look()) {
            (Ok(look), _) => (look, true),
            (Err(_), Some(last)) if self.again_at.is_none_or(|at| at <= Instant::now()) => (last, false),
            (Err(error), _) => return Err(error.into()),
        };
        let began = Instant::now();
        let Some(server) = self.server(&look) else { return Ok(Step::Waiting) };
        if self.context.epoch().is_none() {
            epoch::ensure(&self.context, "").await?;
        }
        let adopted = if is_whole { self.adopt(server, &look.survey.clear).await } else { Ok(()) };
        let facts = self.facts(server, &look).await?;
        let within = self.within(&facts);
        let round = ShardRound { cluster: self.on_shard.cluster.clone(), facts };
        let step = consumer.step_on_shard(self.context.pinned_to(within), round, must_advance).await;
        if step.is_err() {
            self.looked = None;
        }
        self.again_at = (!is_whole).then(|| Instant::now() + began.elapsed() * UNCLAIMED_SHARE);
        let step = step?;
        adopted.map(|()| step)
    }

    /// The shard's server, if it is still the one that this context speaks to.
    fn server<'a>(&self, look: &'a Look) -> Option<&'a ShardServer> {
        let home = self.context.redis.keys().metadata().home_slot();
        let node = look.map.master_of(home).filter(|node| node.id == self.on_shard.node)?;
        look.survey.servers.iter().find(|server| server.node == node.id)
    }

    async fn facts(&mut self, server: &ShardServer, look: &Look) -> Result<ShardFacts, EngineError> {
        let mut facts = ShardFacts {
            server: server.clone(),
            runs: look.survey.runs(),
            adopted: self.context.adopted_now(&self.on_shard).await?,
            clear: look.survey.clear.clone(),
            refused: ClusterSlotSet::default(),
        };
        // What has left and come back is not the shard's any more, though its table says so.
        let now = (look.map.config_epoch, look.survey.servers.clone());
        if self.looked.as_ref() != Some(&now) {
            let looked_at = facts.adopted.all().and(&facts.reached());
            facts.refused = self.context.redis.foreign_guards(&facts.adopted, &looked_at).await?;
            self.looked = Some(now);
        }
        Ok(facts)
    }

    /// What is adopted and can be reached: the round touches nothing else.
    fn within(&mut self, facts: &ShardFacts) -> Arc<Adopted> {
        let reached = facts.reached();
        match &self.within {
            Some((adopted, known, within)) if Arc::ptr_eq(adopted, &facts.adopted) && *known == reached => {
                Arc::clone(within)
            }
            _ => {
                let within = Arc::new(facts.adopted.within(&reached));
                self.within = Some((Arc::clone(&facts.adopted), reached, Arc::clone(&within)));
                within
            }
        }
    }

    /// Adopts what the server serves and the shard has not settled, where nothing of it is elsewhere: as much as can be done without
    /// keeping changes waiting for long.
    async fn adopt(&self, server: &ShardServer, clear: &ClusterSlotSet) -> Result<(), EngineError> {
        let settled = self.context.adopted_now(&self.on_shard).await?.settled();
        let wanted: Vec<ClusterSlot> = server.serves.and(clear).without(&settled).iter().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let (mut loaded, mut adopted) = (0, 0);
        let began = Instant::now();
        'adopting: for few in wanted.chunks(ADOPTED_AT_ONCE) {
            let counts = self.context.redis.key_counts(few).await?;
            for part in parts(few, &counts) {
                loaded += self.adopt_part(&server.run, part).await?;
                adopted += part.len();
                if LOADED_AT_ONCE <= loaded || ADOPTS_FOR <= began.elapsed() {
                    break 'adopting;
                }
            }
        }
        let shard = self.context.redis.keys().metadata().number;
        info!(shard, cluster_slots = adopted, entries = loaded, "cluster slots were adopted");
        Ok(())
    }

    /// Answers how many entries were loaded again.
    async fn adopt_part(&self, run: &str, part: &[ClusterSlot]) -> Result<u64, EngineError> {
        let context = &self.context;
        let state = epoch::ensure(context, "").await?;
        let precondition = Precondition::of_epoch(&state.epoch, &state.poll.incarnation);
        let adoption = context.checked(None, context.redis.adopt(&precondition, run, part).await?)?;
        failpoint::reach("shard.adopted");
        let is_taken = |slot: &ClusterSlot| !adoption.refused.contains(*slot);
        let taken: Vec<ClusterSlot> = part.iter().copied().filter(is_taken).collect();
        // While they are pending: whoever begins anew does this again.
        self.note_missing(&precondition).await?;
        // What is loaded from now on names the new generation.
        let adopted = context.adopted_now(&self.on_shard).await?;
        let pinned = context.pinned_to(Arc::new(adopted.within(&taken.iter().copied().collect())));
        let mut loaded = 0;
        for (dataset, keys) in by_dataset(context, context.redis.entries_within(&taken).await?) {
            let because = LoadOptions::because(Cause::Change);
            loaded += load(&pinned, &dataset, &keys, because, &mut Job::uncounted()).await?.stored;
        }
        failpoint::reach("shard.loaded");
        let settled = context.redis.settle(&precondition, run, &adoption.generation, &taken).await?;
        context.checked(None, settled)?;
        failpoint::reach("shard.settled");
        Ok(loaded)
    }

    /// Rows of these cluster slots that were inserted while nobody had adopted them are missing, where every row is to be there.
    async fn note_missing(&self, precondition: &Precondition<'_>) -> Result<(), EngineError> {
        let missing = Failed { is_missing: true, ..Failed::default() };
        let at = (precondition.epoch, precondition.incarnation);
        for dataset in self.context.catalog.iter().filter(|dataset| dataset.is_filled_whole()) {
            let why = (dataset.name(), FROM_ELSEWHERE);
            let answer = self.context.redis.mark_slots(at, why, &missing, "").await?;
            self.context.checked(None, answer)?;
        }
        Ok(())
    }
}

/// Cluster slots in parts whose keys are listed, and loaded, at once: each ends with the one that fills it.
fn parts<'a>(slots: &'a [ClusterSlot], counts: &[u64]) -> Vec<&'a [ClusterSlot]> {
    let mut keys = 0;
    let mut ends = counts.iter().map(|count| {
        keys += count;
        let is_full = LOADED_AT_ONCE <= keys;
        keys = if is_full { 0 } else { keys };
        is_full
    });
    slots.split_inclusive(|_slot| ends.next().unwrap_or_default()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_few_entries_or_is_one_cluster_slot() {
        let slots: Vec<ClusterSlot> = ClusterSlot::all().take(6).collect();
        let of = |counts: &[u64]| parts(&slots, counts).iter().map(|part| part.len()).collect::<Vec<_>>();
        assert_eq!(of(&[0; 6]), [6]);
        assert_eq!(of(&[1, 30_000, 10_000, 10_000, 5, 5]), [2, 2, 2]);
        assert_eq!(of(&[90_000; 6]), [1; 6]);
        assert!(parts(&[], &[]).is_empty());
    }
}
