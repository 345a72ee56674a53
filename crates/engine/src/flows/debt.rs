//! Debts: every entry of an owed dataset is looked at again, by a counted walk of Redis (R14). A walk of the table
//! would miss the entries whose rows are gone.

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
use crate::stores::redis::{Claim, Epoch, PendingRevalidation, ScannedEntry, Settled, UseSign, Wanted};
use cachekeeper_config::OnNewEpoch;

/// Keys looked at by one script of the walk.
const WALK_PAGE: usize = 500;

/// Pays a dataset's debt.
///
/// # Errors
/// [`EngineError`]; the debt stands until a walk is whole.
pub async fn pay(
    context: &Context,
    dataset: &Dataset,
    policy: OnNewEpoch,
    cancel: &CancellationToken,
) -> Result<LoadReport, EngineError> {
    let mut job = Job::new("walk");
    let facts = context.redis.facts().await?;
    let order = epoch::ensure(context, &job.id).await?;
    job.count = order.head.counted;
    let Some(debt) = order.head.pending.get(dataset.name()) else {
        return Ok(LoadReport::default());
    };
    info!(dataset = dataset.name(), reason = debt.reason(), "looking at every entry again");
    // Known before the walk, so that a key that fits several templates goes to the right dataset.
    dataset.source(&context.postgres).await?;
    let mut walk = Walk {
        context,
        dataset,
        policy,
        epoch: order.epoch,
        poll: &order.poll,
        job,
        report: LoadReport::default(),
    };
    walk.run(cancel).await?;
    // SCAN cursors mean nothing to another server, also one that lost nothing.
    if context.redis.facts().await?.run_id != facts.run_id {
        return Err(EngineError::RedisRolledBack);
    }
    walk.claim(debt).await
}

struct Walk<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    policy: OnNewEpoch,
    epoch: Epoch,
    poll: &'a Poll,
    job: Job,
    report: LoadReport,
}

impl Walk<'_> {
    async fn run(&mut self, cancel: &CancellationToken) -> Result<(), EngineError> {
        let prefix = self.dataset.settings.key.prefix();
        let wanted = [Wanted { prefix, left_max: None }];
        let mut cursor = 0;
        let mut pending = Keys::new();
        loop {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let standing = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
            let page = (cursor, WALK_PAGE);
            let answer =
                self.context.redis.scan(&standing, &self.job.id, page, UseSign::None, &wanted).await?;
            let page = self.context.checked(Some(self.dataset), answer)?;
            self.job.count += 1;
            failpoint::reach("debt.page");
            pending.extend(page.entries.into_iter().filter_map(|entry| self.of_dataset(entry)));
            cursor = page.cursor;
            if self.dataset.settings.batch <= pending.len() || cursor == 0 {
                self.look_again(std::mem::take(&mut pending)).await?;
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

    async fn look_again(&mut self, keys: Keys) -> Result<(), EngineError> {
        if keys.is_empty() {
            return Ok(());
        }
        if self.policy == OnNewEpoch::Refresh {
            let because = LoadOptions::because(Cause::Revalidation);
            self.report.add(load(self.context, self.dataset, keys, because, &mut self.job).await?);
            return Ok(());
        }
        let names: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
        let standing = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let stamp = self.poll.snapshot.stamp();
        let answer = self.context.redis.invalidate(&standing, stamp, &names, &self.job.id, "").await?;
        self.report.invalidated += self.context.checked(Some(self.dataset), answer)?;
        self.job.count += 1;
        Ok(())
    }

    async fn claim(self, debt: &PendingRevalidation) -> Result<LoadReport, EngineError> {
        let standing = self.dataset.precondition(&self.epoch, &self.poll.incarnation);
        let answer = self
            .context
            .redis
            .finish_job(&standing, &self.job.id, self.job.count, Settled::Revalidation(debt))
            .await?;
        match self.context.checked(Some(self.dataset), answer)? {
            Claim::Accepted => Ok(self.report),
            Claim::RolledBack => {
                self.context.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                Err(EngineError::RedisRolledBack)
            }
        }
    }
}
