//! What every path may ask.

use std::sync::Arc;

use super::attention::Since;
use super::live::Live;
use crate::actors::context::TaskContext;
use crate::actors::health::Health;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::metrics::ByDataset;

#[derive(Clone)]
pub(super) struct Shared {
    pub tasks: TaskContext,
    /// When this listener was opened first, in Unix milliseconds.
    pub started_ms: u64,
    pub since: Since,
    pub live: Arc<Live>,
}

impl Shared {
    pub fn engine(&self) -> &Context {
        &self.tasks.engine
    }

    pub fn hides_values(&self) -> bool {
        self.tasks.config.admin.hides_values
    }

    pub fn health(&self) -> &Health {
        &self.tasks.health
    }

    /// Entries of the last complete backfill that this worker knows of.
    pub fn backfill_entries(&self, dataset: &str) -> Option<u64> {
        let counted = self.engine().metrics.backfill_entries.get_or_create(&ByDataset::new(dataset)).get();
        let counted = u64::try_from(counted).ok().filter(|entries| 0 < *entries);
        // After a reload it is counted anew, but what happened before is remembered.
        let remembered = || self.engine().history.as_ref()?.backfills(dataset).last().map(|last| last.stored);
        counted.or_else(remembered)
    }
}
