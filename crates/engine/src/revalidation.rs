//! Pending revalidations: every entry of a dataset is reloaded or deleted, by a counted scan of Redis (R14). A scan of the
//! table would miss the entries whose rows are gone.

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch;
use super::error::EngineError;
use super::failpoint;
use super::load::{Cause, Job, Keys, LoadOptions, LoadReport, load};
use crate::metrics::ByReason;
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::{Claim, Epoch, ScannedEntry, Settled, UseSign, Wanted};
use cachekeeper_config::OnNewEpoch;

/// Keys of one script of the scan.
const PAGE: usize = 500;

/// Runs a dataset's pending revalidation; without one, nothing is done.
///
/// # Errors
/// [`EngineError`]; it stays pending until a scan is whole.
pub async fn run(
    context: &Context,
    dataset: &Dataset,
    policy: OnNewEpoch,
    cancel: &CancellationToken,
) -> Result<LoadReport, EngineError> {
    let mut job = Job::new("revalidation");
    let facts = context.redis.facts().await?;
    let state = epoch::ensure(context, &job.id).await?;
    job.count = state.metadata.counted;
    let Some(pending) = state.metadata.pending.get(dataset.name()) else {
        return Ok(LoadReport::default());
    };
    info!(dataset = dataset.name(), reason = pending.reason(), "revalidating every entry");
    // Described before the scan, so that a key that fits several templates goes to the right dataset.
    dataset.source(&context.postgres).await?;
    let mut scan = RevalidationScan {
        context,
        dataset,
        policy,
        epoch: state.epoch,
        poll: &state.poll,
        job,
        report: LoadReport::default(),
    };
    scan.run(cancel).await?;
    // SCAN cursors mean nothing to another server, also one that lost nothing.
    if context.redis.facts().await?.run_id != facts.run_id {
        return Err(EngineError::RedisRolledBack);
    }
    scan.claim(state.metadata.causes).await
}

struct RevalidationScan<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    policy: OnNewEpoch,
    epoch: Epoch,
    poll: &'a Poll,
    job: Job,
    report: LoadReport,
}

impl RevalidationScan<'_> {
    async fn run(&mut self, cancel: &CancellationToken) -> Result<(), EngineError> {
        let prefix = self.dataset.settings.key.prefix();
        let wanted = [Wanted { prefix, left_max: None }];
        let mut cursor = 0;
        let mut gathered: Keys = Vec::new();
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
            let page = (cursor, PAGE);
            let answer =
                self.context.redis.scan(&precondition, &self.job.id, page, UseSign::None, &wanted).await?;
            let page = self.context.checked(Some(self.dataset), answer)?;
            self.job.count += 1;
            failpoint::reach("revalidation.page");
            gathered.extend(page.entries.into_iter().filter_map(|entry| self.of_dataset(entry)));
            cursor = page.cursor;
            if self.dataset.settings.batch <= gathered.len() || cursor == 0 {
                self.revalidate(std::mem::take(&mut gathered)).await?;
            }
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    fn of_dataset(&self, entry: ScannedEntry) -> Option<(String, KeyValues)> {
        let (dataset, values) = self.context.catalog.of_key(&entry.key)?;
        (dataset.name() == self.dataset.name()).then_some((entry.key, values))
    }

    async fn revalidate(&mut self, keys: Keys) -> Result<(), EngineError> {
        if keys.is_empty() {
            return Ok(());
        }
        if self.policy == OnNewEpoch::Refresh {
            let because = LoadOptions::because(Cause::Revalidation);
            self.report.add(load(self.context, self.dataset, keys, because, &mut self.job).await?);
            return Ok(());
        }
        let names: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let stamp = self.poll.snapshot.stamp();
        let answer = self.context.redis.invalidate(&precondition, stamp, &names, &self.job.id, "").await?;
        self.report.invalidated += self.context.checked(Some(self.dataset), answer)?;
        self.job.count += 1;
        Ok(())
    }

    async fn claim(self, cause: u64) -> Result<LoadReport, EngineError> {
        let precondition = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let holds_all = self.dataset.is_filled_whole();
        let settled = Settled::Revalidation { cause, holds_all };
        let answer =
            self.context.redis.finish_job(&precondition, &self.job.id, self.job.count, settled).await?;
        match self.context.checked(Some(self.dataset), answer)? {
            Claim::Accepted => Ok(self.report),
            Claim::RolledBack => {
                self.context.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                Err(EngineError::RedisRolledBack)
            }
        }
    }
}
