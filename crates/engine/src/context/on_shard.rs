//! What a context on a shard of a cluster has beside others.

use std::sync::Arc;

use crate::stores::redis::{Adopted, Cluster, PlacedShard};

/// The cluster, and what the shard has adopted as it was last read.
#[derive(Clone, Debug)]
pub struct OnShard {
    /// The cluster.
    pub cluster: Cluster,
    /// The id of the node whose server the context speaks to.
    pub(crate) node: String,
    /// Held while it is read, so that a later read is never replaced by an earlier one.
    pub(super) known: Arc<tokio::sync::Mutex<Option<Arc<Adopted>>>>,
    /// Whether the context's handle has what counts for the work that it was made for.
    pub(super) is_pinned: bool,
}

impl OnShard {
    pub(super) fn new(cluster: &Cluster, shard: &PlacedShard) -> Self {
        let (cluster, node) = (cluster.clone(), shard.node.id.clone());
        Self { cluster, node, known: Arc::default(), is_pinned: false }
    }
}
