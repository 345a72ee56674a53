//! What a shard of a cluster has adopted, as it was read from its table.

use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::guard::{Generation, Guard};

/// Bytes of the epoch before the first cluster slot of the table.
const BEFORE_SLOTS: usize = 8;
/// Bytes of each: its state, and the generation.
const SLOT_BYTES: usize = 9;
const PENDING: u8 = b'p';
const SETTLED: u8 = b's';

/// What a shard has adopted, as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Adopted {
    shard: u32,
    /// How often cluster slots were adopted, settled or dropped by then.
    pub(super) changes: u64,
    /// The runs of all servers at the last move of the cursor, as it was written then.
    pub(super) runs: String,
    table: Vec<u8>,
}

impl std::fmt::Debug for Adopted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pending, settled) = (self.pending(), self.settled());
        let mut shown = formatter.debug_struct("Adopted");
        shown.field("shard", &self.shard).field("pending", &pending).field("settled", &settled);
        shown.finish_non_exhaustive()
    }
}

impl Adopted {
    /// What this table says, if it is whole and of this epoch.
    pub(super) fn read(
        shard: u32,
        (changes, runs): (u64, String),
        table: Vec<u8>,
        epoch: &[u8],
    ) -> Option<Self> {
        let is_whole = table.len() == BEFORE_SLOTS + ClusterSlot::all().count() * SLOT_BYTES;
        (is_whole && table.starts_with(epoch)).then_some(Self { shard, changes, runs, table })
    }

    /// Of a shard of which nothing is known.
    pub(super) fn nothing(shard: u32) -> Self {
        Self { shard, changes: 0, runs: String::new(), table: Vec::new() }
    }

    /// Whether it is of this epoch.
    pub(super) fn is_of(&self, epoch: &[u8]) -> bool {
        self.table.starts_with(epoch)
    }

    /// What the guard of a cluster slot says if it is still the shard's; none: it was not adopted.
    #[must_use]
    pub fn guard(&self, slot: ClusterSlot) -> Option<Guard> {
        let (state, generation) = self.at(slot)?;
        matches!(state, PENDING | SETTLED).then_some(Guard { shard: self.shard, generation })
    }

    /// Those whose entries are still to be loaded again.
    #[must_use]
    pub fn pending(&self) -> ClusterSlotSet {
        self.in_state(PENDING)
    }

    /// Those whose entries were loaded again.
    #[must_use]
    pub fn settled(&self) -> ClusterSlotSet {
        self.in_state(SETTLED)
    }

    /// All that are adopted.
    #[must_use]
    pub fn all(&self) -> ClusterSlotSet {
        self.pending().or(&self.settled())
    }

    /// The same without what is not in this set: for work that is not to touch it.
    #[must_use]
    pub fn within(&self, slots: &ClusterSlotSet) -> Self {
        let mut within = self.clone();
        for slot in ClusterSlot::all().filter(|slot| !slots.contains(*slot)) {
            let start = BEFORE_SLOTS + usize::from(slot.number()) * SLOT_BYTES;
            within.table.iter_mut().skip(start).take(SLOT_BYTES).for_each(|byte| *byte = 0);
        }
        within
    }

    fn in_state(&self, state: u8) -> ClusterSlotSet {
        ClusterSlot::all().filter(|slot| self.at(*slot).is_some_and(|(found, _)| found == state)).collect()
    }

    fn at(&self, slot: ClusterSlot) -> Option<(u8, Generation)> {
        let start = BEFORE_SLOTS + usize::from(slot.number()) * SLOT_BYTES;
        let (state, generation) = self.table.get(start..start + SLOT_BYTES)?.split_first()?;
        Some((*state, Generation::from_bytes(generation.try_into().ok()?)))
    }
}
