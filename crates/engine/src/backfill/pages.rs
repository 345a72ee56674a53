//! The pages of a backfill. Neighbouring rows rarely share a tag, so each entry would cost Redis an SADD of its own. So the keys
//! of a page are added to their tags first, grouped by tag, while the page before is stored; the stores that follow check that
//! the members are still there (R8).

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinHandle;

use super::scripts::{Added, Scripts};
use crate::error::EngineError;
use crate::stores::redis::AddedMembers;
use cachekeeper_protocol::entry::EntryBatch;

/// With some hundred tags, dozens of so many entries share one.
const PAGE_ENTRIES: usize = 16_384;
/// Two pages are held at a time.
const PAGE_BYTES: usize = 5 * 1024 * 1024;

/// One page that is being filled with batches, and the one before, which is being stored.
#[derive(Debug, Default)]
pub(super) struct Pages {
    filling: Vec<EntryBatch>,
    entries: usize,
    bytes: usize,
    adding: Option<JoinHandle<Result<Added, EngineError>>>,
    ready: VecDeque<EntryBatch>,
    members: Option<AddedMembers>,
    /// Scripts that have added members so far.
    scripts: u64,
}

impl Pages {
    /// Adds a batch; answers whether the page is full.
    pub(super) fn push(&mut self, batch: EntryBatch) -> bool {
        self.entries += batch.len();
        self.bytes += batch.bytes();
        self.filling.push(batch);
        PAGE_ENTRIES <= self.entries || PAGE_BYTES <= self.bytes
    }

    /// Begins to add the members of the page that was filled. The one before is stored by now.
    pub(super) fn turn(&mut self, scripts: &Arc<Scripts>) {
        let (batches, before, scripts) = (std::mem::take(&mut self.filling), self.scripts, scripts.clone());
        (self.entries, self.bytes) = (0, 0);
        self.adding = Some(tokio::spawn(async move { scripts.add_members(batches, before).await }));
    }

    /// Whether a batch can be stored without a wait.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || self.adding.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// The next batch to be stored, with what was added for it; none where the page is stored. Adds up how many scripts have
    /// added members.
    pub(super) async fn next(
        &mut self,
        count: &mut u64,
    ) -> Result<Option<(EntryBatch, Option<AddedMembers>)>, EngineError> {
        if let Some(adding) = self.adding.take() {
            let added = adding.await.map_err(|_aborted| EngineError::Cancelled)??;
            self.ready = added.batches.into();
            self.members = added.members;
            self.scripts += added.scripts;
            *count += added.scripts;
        }
        Ok(self.ready.pop_front().map(|batch| (batch, self.members)))
    }
}
