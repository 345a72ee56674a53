//! When an entry that differs from its row may be accused.
//!
//! The row was read at a snapshot S. One look at Redis, all of one moment, finds the value V, the stamp of its slot, the floor, the epoch and
//! the watermark. V is wrong if it differs from the row at S and, at that moment,
//!
//! 1. the watermark covers the dataset and has passed S, in this epoch and the incarnation of S, and
//! 2. neither the slot's stamp nor the floor is newer than S.
//!
//! Proof. Whoever stores V raises what covers it in the same step (R7): the slot of its key, or the floor in a backfill. Neither is ever
//! lowered within an epoch. So V was loaded at a snapshot L that is not newer than S (2; equal stamps see the same data). Suppose that V was
//! right when it was loaded: it is the row at L. As it differs from the row at S, a transaction has changed the row that S sees and L
//! does not. By (1) that change was applied, and by R5 and R6 whatever was loaded without seeing it is gone by then and is refused for ever: V
//! cannot stand there. So V was never what the row was, or somebody else wrote it.
//!
//! On a shard of a cluster a third condition stands for what a single Redis need not be asked: the watermark covers the cluster slot, and its
//! guard says that it is the shard's (R20).
//!
//! Both directions follow. An entry that was applied after S (the row went from A to B and back, and V is the B between) was loaded after
//! S, so (2) does not hold: one looks again. A row that changed after S, and whose change is not applied yet, does not matter, because V is
//! compared with the row at S. That two reads of the row are equal says nothing, so it is not asked for.

use crate::catalog::Dataset;
use crate::context::Context;
use crate::load::store::null_of;
use crate::stores::redis::{SeenEntries, SeenEntry};
use crate::tokens;
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::token::Token;

use super::expected::Expected;

/// What one look at Redis says of all its entries.
pub(crate) struct Moment {
    /// The first condition.
    pub is_past: bool,
    floor: Stamp,
    oldest: Stamp,
}

impl Moment {
    pub(crate) fn of(seen: &SeenEntries, expected: &Expected, dataset: &Dataset) -> Self {
        let poll = expected.poll.clone();
        let token = Token { incarnation: poll.incarnation, snapshot: poll.snapshot };
        let is_of_epoch = seen
            .watermark
            .as_ref()
            .zip(seen.epoch)
            .is_some_and(|(watermark, epoch)| watermark.epoch == epoch.to_string());
        Self {
            is_past: is_of_epoch && tokens::satisfies(seen.watermark.as_ref(), &token, Some(dataset.name())),
            floor: seen.floor.unwrap_or_default(),
            oldest: expected.oldest,
        }
    }

    /// Whether this entry is wrong if it differs.
    pub(crate) fn is_sure_of(&self, entry: &SeenEntry) -> bool {
        self.is_past && entry.is_covered && self.floor.max(entry.slot) <= self.oldest
    }
}

/// An explicit null, where the dataset remembers absence.
pub(crate) fn is_null(dataset: &Dataset, entry: &SeenEntry) -> bool {
    let null = null_of(&dataset.settings.format);
    let remembers = dataset.settings.negative_ttl.is_some();
    remembers && entry.is(dataset.settings.format.shape()) && null.is_some_and(|null| null == entry.value)
}

/// What the query depends on that is no data: then an entry may differ from its row, and none is wrong. None also where Postgres does
/// not tell.
pub(crate) async fn clock_of(context: &Context, dataset: &Dataset) -> Option<String> {
    let inspected = context.postgres.inspect(&dataset.settings.query).await;
    inspected.ok()?.clock().map(str::to_owned)
}
