//! One batch: what is done about what the changes touch.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use tracing::info;

use super::gather::GATHERED;
use super::loads::{FeedLoads, Troubles};
use crate::catalog::Dataset;
use crate::context::Context;
use crate::coverage::AffectedKeys;
use crate::epoch;
use crate::error::EngineError;
use crate::failpoint;
use crate::invalidate::{delete_keys, members};
use crate::load::Job;
use crate::log_limit;
use crate::metrics::ByDataset;
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::{Epoch, OlderLoads};
use cachekeeper_config::OnChange;

/// Scripts that delete, under way at once.
const DELETES_AHEAD: usize = 3;
/// Fewer keys of one dataset are loaded one by one, whatever they cost.
const BULK_MIN: u64 = 2 * GATHERED as u64;
/// A backfill, and the scan before it, load each entry once; so many loads by key cost more than both.
const LOADS_OF_BACKFILL: u64 = 3;

/// What one batch has of a dataset.
#[derive(Default)]
pub(super) struct Share {
    /// Keys that were loaded by key; one that changed often counts each time.
    keys: u64,
    /// Whether a backfill sees to the rest.
    is_bulk: bool,
}

/// Applies what this process changed itself, without waiting for the feed, which will find nothing left to do. The cursor
/// does not move.
///
/// # Errors
/// [`EngineError`]; then the feed sees to it.
pub(crate) async fn apply_own(context: &Context, affected: AffectedKeys) -> Result<(), EngineError> {
    let state = epoch::ensure(context, "").await?;
    let mut troubles = Troubles::default();
    let mut batch = ChangeBatch {
        context,
        epoch: state.epoch,
        poll: state.poll,
        job: Job::uncounted(),
        loads: FeedLoads::ending(context, &mut troubles),
        has_made_pending: &mut false,
        shares: BTreeMap::new(),
    };
    batch.apply(affected).await
}

/// One batch under way.
pub(super) struct ChangeBatch<'a> {
    pub(super) context: &'a Context,
    pub(super) epoch: Epoch,
    pub(super) poll: Poll,
    pub(super) job: Job,
    pub(super) loads: FeedLoads<'a>,
    /// Set where it makes something pending.
    pub(super) has_made_pending: &'a mut bool,
    pub(super) shares: BTreeMap<String, Share>,
}

impl ChangeBatch<'_> {
    /// Applies what was gathered: whole datasets first, because they raise the floor.
    pub(super) async fn apply(&mut self, affected: AffectedKeys) -> Result<(), EngineError> {
        if !affected.whole.is_empty() {
            let names: Vec<String> = affected.whole.iter().cloned().collect();
            let (what, datasets) = ("whole tables changed, every entry is revalidated", names.join(", "));
            if let Some(times) = log_limit::due(what, &datasets, 1) {
                info!(datasets, times, "{what}");
            }
            self.mark_whole("whole table changed", &names).await?;
        }
        if !affected.tags.is_empty() {
            let tags: Vec<String> = affected.tags.into_iter().collect();
            failpoint::reach("feed.tags");
            let at = (&self.epoch, &self.poll);
            members(self.context, at, &tags, None, &mut self.loads, &mut self.job).await?;
            self.loads.note_foreign_members();
        }
        for (name, keys) in affected.keys {
            // What this process has lost to another worker is left to whoever leads.
            let is_followed = |dataset: &&Arc<Dataset>| dataset.is_foreign() || !dataset.is_superseded();
            let Some(dataset) = self.context.catalog.get(&name).filter(is_followed) else { continue };
            // The others are another shard's, or are loaded when they are adopted.
            let keys = keys.into_iter().filter(|(key, _)| self.context.redis.takes(key));
            let keys: Vec<(String, KeyValues)> = keys.collect();
            let labels = ByDataset::new(&name);
            self.context.metrics.changed_keys.get_or_create(&labels).inc_by(keys.len() as u64);
            if self.is_left_to_backfill(dataset, keys.len() as u64).await? {
                continue;
            }
            self.apply_keys(dataset, &keys).await?;
        }
        Ok(())
    }

    /// Datasets of which every entry is to be loaded again; nothing older is stored any more.
    async fn mark_whole(&mut self, reason: &str, names: &[String]) -> Result<(), EngineError> {
        let at = (&self.epoch, self.poll.incarnation.as_str());
        let older = OlderLoads::Below(self.poll.snapshot.stamp());
        let answer = self.context.redis.mark_pending(at, (reason, None), names, older, &self.job.id).await?;
        self.context.checked(None, answer)?;
        *self.has_made_pending = true;
        self.job.count += 1;
        Ok(())
    }

    /// Whether keys need no load of their own, because so many of their dataset changed in this batch that a backfill costs less
    /// (R10). The number of all keys in Redis bounds what there is of the dataset.
    async fn is_left_to_backfill(&mut self, dataset: &Dataset, keys: u64) -> Result<bool, EngineError> {
        let share = self.shares.entry(dataset.name().to_owned()).or_default();
        if share.is_bulk {
            return Ok(true);
        }
        share.keys += keys;
        let loaded = share.keys;
        let is_reloaded = dataset.settings.on_change == OnChange::Refresh && dataset.is_filled_whole();
        if loaded < BULK_MIN || self.job.id.is_empty() || !is_reloaded {
            return Ok(false);
        }
        if loaded < LOADS_OF_BACKFILL * self.context.redis.key_count().await? {
            return Ok(false);
        }
        let name = dataset.name().to_owned();
        let what = "more changes than a backfill loads: every entry is revalidated";
        if let Some(times) = log_limit::due(what, &name, 1) {
            info!(dataset = name, changes = loaded, times, "{what}");
        }
        self.mark_whole("more changes than a backfill loads", std::slice::from_ref(&name)).await?;
        self.shares.entry(name).or_default().is_bulk = true;
        Ok(true)
    }

    async fn apply_keys(
        &mut self,
        dataset: &Dataset,
        keys: &[(String, KeyValues)],
    ) -> Result<(), EngineError> {
        if dataset.is_foreign() {
            return self.loads.discard(dataset, &self.poll, keys, &mut self.job).await;
        }
        if dataset.settings.on_change == OnChange::Refresh {
            return self.loads.reload_changed(dataset, &self.poll, keys, &mut self.job).await;
        }
        let (context, poll, id) = (self.context, &self.poll, self.job.id.clone());
        let parts = keys.chunks(dataset.settings.batch.max(1)).map(|part| {
            let mut job = Job { id: id.clone(), count: 0 };
            async move { delete_keys(context, poll, part, &mut job).await.map(|_deleted| job.count) }
        });
        let mut parts = stream::iter(parts.collect::<Vec<_>>()).buffer_unordered(DELETES_AHEAD);
        while let Some(count) = parts.next().await {
            self.job.count += count?;
        }
        Ok(())
    }
}
