//! What a round of the feed on a shard of a cluster knows of the cluster slots (R20).

use std::sync::Arc;

use crate::error::EngineError;
use crate::stores::redis::{Adopted, Cluster, ShardAdvance, ShardServer};
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;

/// What is known of a shard's cluster slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardFacts {
    pub(crate) server: ShardServer,
    pub(crate) runs: Vec<String>,
    pub(crate) adopted: Arc<Adopted>,
    pub(crate) clear: ClusterSlotSet,
    /// Those whose guard says something else, which would refuse every change.
    pub(crate) refused: ClusterSlotSet,
}

impl ShardFacts {
    /// What the move of the cursor says of it.
    pub(super) fn advance(&self) -> ShardAdvance<'_> {
        ShardAdvance {
            server: &self.server,
            runs: &self.runs,
            adopted: &self.adopted,
            clear: &self.clear,
            refused: &self.refused,
        }
    }

    /// The cluster slots whose entries may be touched.
    pub(crate) fn reached(&self) -> ClusterSlotSet {
        self.server.serves.and(&self.clear).without(&self.refused)
    }
}

/// One round: what was known when it began, and how to ask again.
#[derive(Debug, Clone)]
pub(crate) struct ShardRound {
    pub(crate) cluster: Cluster,
    pub(crate) facts: ShardFacts,
}

impl ShardRound {
    /// What is known before the cursor moves: others are asked again, because entries may have come to be elsewhere meanwhile. The runs
    /// are those of the beginning: what was done before a failover is not claimed after it.
    pub(super) async fn look_again(&self) -> Result<ShardFacts, EngineError> {
        let now = self.cluster.look().await?;
        Ok(ShardFacts { clear: self.facts.clear.and(&now.survey.clear), ..self.facts.clone() })
    }
}
