//! What all servers of a cluster have said a moment ago, for all shards of a process; and which shard each master is.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::time::{Instant, timeout};

use super::{CacheError, Cluster, ClusterMap, ClusterNode, Look};
use cachekeeper_protocol::cluster_slot::ClusterSlot;

/// A master, and which shard it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedShard {
    /// The number of the shard.
    pub number: u32,
    /// The master that serves its home slot.
    pub node: ClusterNode,
}

/// For how long an answer counts (0023).
const COUNTS_FOR: Duration = Duration::from_millis(50);
/// How long all servers together may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_millis(1_000);
/// Guards of one master that tell which shard it is.
const SAMPLED: usize = 256;

impl Cluster {
    /// What all servers say, as of at most 50 ms ago: whoever asks meanwhile shares the answer.
    ///
    /// # Errors
    /// [`CacheError`] where one does not answer: then nothing is known of any cluster slot.
    pub async fn look(&self) -> Result<Arc<Look>, CacheError> {
        let looks = self.looks();
        let mut last = looks.last.lock().await;
        if let Some((_, answer)) = last.as_ref().filter(|(at, _)| at.elapsed() < COUNTS_FOR) {
            return answer.clone();
        }
        let (before, began) = (self.last_look(), Instant::now());
        let asked = timeout(ANSWERED_WITHIN, self.ask_all(before.as_deref())).await;
        let answer = asked
            .unwrap_or_else(|_| Err(CacheError::timed_out("ask all masters of the cluster")))
            .map(Arc::new);
        // What is known is as old as the first question; that somebody does not answer, as the end of the wait.
        let at = if answer.is_ok() { began } else { Instant::now() };
        if let Ok(look) = &answer {
            *looks.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(look));
        }
        *last = Some((at, answer.clone()));
        answer
    }

    /// The last look to which all servers have answered, however long ago.
    #[must_use]
    pub fn last_look(&self) -> Option<Arc<Look>> {
        self.looks().whole.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask_all(&self, before: Option<&Look>) -> Result<Look, CacheError> {
        let map = self.map().await?;
        let survey = self.survey(&map, before.map(|look| &look.survey)).await?;
        Ok(Look { map, survey })
    }

    /// Which shard each master is: the one that most of the guards in its cluster slots name, of those whose home slot it serves; where
    /// none does, the one that it was `before`, or the one with the lowest number. So the guards are the directory of shards, and every process that asks finds the
    /// same.
    ///
    /// # Errors
    /// [`CacheError`] where a master does not answer.
    pub async fn placed_shards(
        &self,
        map: &ClusterMap,
        before: &[PlacedShard],
    ) -> Result<Vec<PlacedShard>, CacheError> {
        let before = |node: &ClusterNode| before.iter().find(|shard| shard.node.id == node.id);
        let placed = map.masters.iter().map(|node| self.placed(node, before(node)));
        Ok(try_join_all(placed).await?.into_iter().flatten().collect())
    }

    async fn placed(
        &self,
        node: &ClusterNode,
        before: Option<&PlacedShard>,
    ) -> Result<Option<PlacedShard>, CacheError> {
        let server = self.shard(&node.address, 0)?;
        let served: Vec<ClusterSlot> = node.serves.iter().collect();
        let step = served.len().div_ceil(SAMPLED).max(1);
        let sample: Vec<ClusterSlot> = served.into_iter().step_by(step).collect();
        let mut named: BTreeMap<u32, usize> = BTreeMap::new();
        for number in server.guarded_by(&sample).await? {
            *named.entry(number).or_default() += 1;
        }
        let is_here =
            |number: u32| node.serves.contains(server.keys().of_shard(number).metadata().home_slot());
        let known = named.into_iter().filter(|(number, _)| is_here(*number));
        // The lowest of those that are named as often.
        let known = known.rev().max_by_key(|(_, times)| *times).map(|(number, _)| number);
        let before = before.map(|shard| shard.number).filter(|number| is_here(*number));
        let number = known.or(before).or_else(|| server.keys().shard_within(&node.serves, &[]));
        Ok(number.map(|number| PlacedShard { number, node: node.clone() }))
    }
}
