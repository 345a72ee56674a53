//! Pending revalidations: every entry of a dataset is reloaded or deleted, by a counted scan of Redis (R14). A scan of the
//! table would miss the entries whose rows are gone.

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch;
use super::error::FlowError;
use super::failpoint;
use super::reload::{Cause, Job, Report, gone_error, reload};
use crate::metrics::ByReason;
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::{Answer, Claim, Debt, Epoch, Paid, UseSign, Walked, Wanted};
use cachekeeper_config::OnNewEpoch;

/// Keys of one script of the scan.
const PAGE: usize = 500;

/// Runs a dataset's pending revalidation; without one, nothing is done.
///
/// # Errors
/// [`FlowError`]; it stays pending until a scan is whole.
pub async fn run(
    context: &Context,
    dataset: &Dataset,
    policy: OnNewEpoch,
    cancel: &CancellationToken,
) -> Result<Report, FlowError> {
    let mut job = Job::new("walk");
    let facts = context.redis.facts().await?;
    let state = epoch::ensure(context, &job.id).await?;
    job.count = state.head.counted;
    let Some(pending) = state.head.owed.get(dataset.name()) else {
        return Ok(Report::default());
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
        report: Report::default(),
    };
    scan.run(cancel).await?;
    // SCAN cursors mean nothing to another server, also one that lost nothing.
    if context.redis.facts().await?.run_id != facts.run_id {
        return Err(FlowError::WentBack);
    }
    scan.claim(pending).await
}

struct RevalidationScan<'a> {
    context: &'a Context,
    dataset: &'a Dataset,
    policy: OnNewEpoch,
    epoch: Epoch,
    poll: &'a Poll,
    job: Job,
    report: Report,
}

impl RevalidationScan<'_> {
    async fn run(&mut self, cancel: &CancellationToken) -> Result<(), FlowError> {
        let prefix = self.dataset.settings.key.prefix();
        let wanted = [Wanted { prefix, left_max: None }];
        let mut cursor = 0;
        let mut gathered: Vec<(String, KeyValues)> = Vec::new();
        loop {
            if cancel.is_cancelled() {
                return Err(FlowError::Cancelled);
            }
            let standing = self.dataset.standing(&self.epoch, &self.poll.incarnation);
            let page = (cursor, PAGE);
            let answer =
                self.context.redis.walk(&standing, &self.job.id, page, UseSign::None, &wanted).await?;
            let page = match answer {
                Answer::Done(page) => page,
                Answer::Gone(gone) => return Err(gone_error(self.context, self.dataset, gone)),
            };
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

    fn of_dataset(&self, entry: Walked) -> Option<(String, KeyValues)> {
        let (dataset, values) = self.context.catalog.of_key(&entry.key)?;
        (dataset.name() == self.dataset.name()).then_some((entry.key, values))
    }

    async fn revalidate(&mut self, keys: Vec<(String, KeyValues)>) -> Result<(), FlowError> {
        if keys.is_empty() {
            return Ok(());
        }
        if self.policy == OnNewEpoch::Refresh {
            let done = reload(self.context, self.dataset, keys, Cause::Debt, &mut self.job).await?;
            self.report.add(done);
            return Ok(());
        }
        let names: Vec<&str> = keys.iter().map(|(key, _)| key.as_str()).collect();
        let standing = self.dataset.standing(&self.epoch, &self.poll.incarnation);
        let stamp = self.poll.snapshot.stamp();
        match self.context.redis.invalidate_counted(&standing, stamp, &names, &self.job.id, "").await? {
            Answer::Done(existed) => self.report.invalidated += existed,
            Answer::Gone(gone) => return Err(gone_error(self.context, self.dataset, gone)),
        }
        self.job.count += 1;
        Ok(())
    }

    async fn claim(self, pending: &Debt) -> Result<Report, FlowError> {
        let standing = self.dataset.standing(&self.epoch, &self.poll.incarnation);
        match self.context.redis.claim(&standing, &self.job.id, self.job.count, Paid::Debt(pending)).await? {
            Answer::Done(Claim::Accepted) => Ok(self.report),
            Answer::Done(Claim::WentBack) => {
                self.context.metrics.gaps.get_or_create(&ByReason::new("redis_went_back")).inc();
                Err(FlowError::WentBack)
            }
            Answer::Gone(gone) => Err(gone_error(self.context, self.dataset, gone)),
        }
    }
}
