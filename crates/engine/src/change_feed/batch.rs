//! One batch: what is done about what the changes touch.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tracing::{info, warn};

use crate::catalog::Dataset;
use crate::context::Context;
use crate::coverage::AffectedKeys;
use crate::epoch;
use crate::error::EngineError;
use crate::failpoint;
use crate::invalidate::{delete_keys, members, reload_keys};
use crate::load::Job;
use crate::metrics::{ByDataset, ByReason};
use crate::stores::postgres::{ErrorKind, KeyValues, Poll};
use crate::stores::redis::{Epoch, OlderLoads};
use cachekeeper_config::{OnChange, Scope};
use cachekeeper_protocol::event::Op;

/// Keys that are gathered before they are applied.
pub(super) const GATHERED: usize = 16_384;
/// The entry of `deletes_instead` for the members of tags; no dataset can have this name.
const TAGS: &str = "(tags)";
/// Loads under way at once.
const LOADS_AHEAD: usize = 3;
/// How long the loads of one part may take before its keys are invalidated instead (R10).
const LOAD_WITHIN: Duration = Duration::from_secs(1);

/// Applies what this process changed itself, without waiting for the feed, which will find nothing left to do. The cursor
/// does not move.
///
/// # Errors
/// [`EngineError`]; then the feed sees to it.
pub(crate) async fn apply_own(context: &Context, affected: AffectedKeys) -> Result<(), EngineError> {
    let state = epoch::ensure(context, "").await?;
    let (mut deletes_instead, mut dropped) = (BTreeSet::new(), Vec::new());
    let mut batch = ChangeBatch {
        context,
        epoch: state.epoch,
        poll: state.poll,
        job: Job::uncounted(),
        deletes_instead: &mut deletes_instead,
        dropped: &mut dropped,
        affected,
    };
    batch.flush().await
}

/// One batch under way.
pub(super) struct ChangeBatch<'a> {
    pub(super) context: &'a Context,
    pub(super) epoch: Epoch,
    pub(super) poll: Poll,
    pub(super) job: Job,
    pub(super) deletes_instead: &'a mut BTreeSet<String>,
    pub(super) dropped: &'a mut Vec<String>,
    pub(super) affected: AffectedKeys,
}

impl ChangeBatch<'_> {
    /// Applies what was gathered: whole datasets first, because they raise the floor.
    pub(super) async fn flush(&mut self) -> Result<(), EngineError> {
        let affected = std::mem::take(&mut self.affected);
        if !affected.whole.is_empty() {
            let names: Vec<String> = affected.whole.iter().cloned().collect();
            info!(datasets = names.join(", "), "a whole table changed, every entry is revalidated");
            let why = ("whole table changed", None);
            let at = (&self.epoch, self.poll.incarnation.as_str());
            let older = OlderLoads::Below(self.poll.snapshot.stamp());
            let answer = self.context.redis.mark_pending(at, why, &names, older, &self.job.id).await?;
            self.context.checked(None, answer)?;
            self.job.count += 1;
        }
        if !affected.tags.is_empty() {
            let tags: Vec<String> = affected.tags.into_iter().collect();
            failpoint::reach("feed.tags");
            let op = self.deletes_instead.contains(TAGS).then_some(Op::Delete);
            let done = members(self.context, (&self.epoch, &self.poll), &tags, op, &mut self.job).await;
            if let Err(error) = done {
                Self::give_up_loading(self.context, self.deletes_instead, TAGS, &error);
                return Err(error);
            }
        }
        for (name, keys) in affected.keys {
            let Some(dataset) = self.context.catalog.get(&name).filter(|dataset| !dataset.is_superseded())
            else {
                continue;
            };
            let labels = ByDataset::new(&name);
            self.context.metrics.changed_keys.get_or_create(&labels).inc_by(keys.len() as u64);
            self.apply_keys(dataset, keys.into_iter().collect()).await?;
        }
        Ok(())
    }

    async fn apply_keys(
        &mut self,
        dataset: &Dataset,
        keys: Vec<(String, KeyValues)>,
    ) -> Result<(), EngineError> {
        let (context, poll) = (self.context, &self.poll);
        let deletes_instead = self.deletes_instead.contains(dataset.name());
        let is_deleted = dataset.settings.on_change == OnChange::Delete || deletes_instead;
        let id = self.job.id.clone();
        let parts = keys.chunks(dataset.settings.batch).map(|part| {
            let mut job = Job { id: id.clone(), count: 0 };
            async move {
                if is_deleted {
                    delete_keys(context, poll, part, &mut job).await?;
                    let dropped =
                        part.iter().filter(|_| deletes_instead).map(|(key, _)| key.clone()).collect();
                    return Ok((job.count, dropped));
                }
                let work = reload_keys(context, dataset, poll, part.to_vec(), &mut job);
                match tokio::time::timeout(LOAD_WITHIN, work).await {
                    Ok(done) => done.map(|report| {
                        let dropped = report.failures.into_iter().filter_map(|failure| failure.key);
                        (job.count, dropped.collect::<Vec<_>>())
                    }),
                    Err(_elapsed) => Err(EngineError::Slow { dataset: dataset.name().to_owned() }),
                }
            }
        });
        let mut parts = stream::iter(parts.collect::<Vec<_>>()).buffer_unordered(LOADS_AHEAD);
        while let Some(part) = parts.next().await {
            match part {
                Ok((count, dropped)) => {
                    self.job.count += count;
                    if dataset.settings.scope == Scope::All && self.dropped.len() < GATHERED {
                        self.dropped.extend(dropped);
                    }
                }
                Err(error) => {
                    Self::give_up_loading(context, self.deletes_instead, dataset.name(), &error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// A dataset that cannot be loaded must not hold up the others: this batch begins again, and then its keys go.
    fn give_up_loading(
        context: &Context,
        deletes_instead: &mut BTreeSet<String>,
        dataset: &str,
        error: &EngineError,
    ) {
        let is_own_fault = match error {
            EngineError::Slow { .. } | EngineError::Dataset { .. } => true,
            EngineError::Source(error) => !matches!(
                error.kind,
                ErrorKind::Unavailable | ErrorKind::NoIncarnation | ErrorKind::Standby | ErrorKind::NoSchema
            ),
            EngineError::Cache(_)
            | EngineError::PreconditionFailed(_)
            | EngineError::Retired
            | EngineError::Superseded { .. }
            | EngineError::RedisRolledBack
            | EngineError::Cancelled => false,
        };
        if is_own_fault {
            context.metrics.feed_restarts.get_or_create(&ByReason::new("load")).inc();
            warn!(dataset, %error, "changed entries cannot be loaded, they are deleted instead");
            deletes_instead.insert(dataset.to_owned());
        }
    }
}
