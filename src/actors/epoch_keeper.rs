//! Keeps the current epoch right: epochs, definitions, pending revalidations.
//!
//! Every second it reads the metadata and takes a snapshot: lost tables, another incarnation, a Redis that rolled back and
//! a Postgres that does not answer are noticed here first. Pending revalidations are run one dataset at a time (but for those at
//! a rate), beside that, by the one worker that holds the lease. They stand in Redis, so whoever comes next goes on with them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::background::Background;
use super::clock::now_ms;
use super::context::TaskContext;
use super::inbox::Since;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_config::Scope;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::definitions::former;
use cachekeeper_engine::epoch::{self, EpochState};
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::lease::{Lease, LeaseName, LeaseReply};
use cachekeeper_engine::metrics::{ByDataset, ByReason, Unlabelled};
use cachekeeper_engine::stores::redis::{Epoch, PreconditionFailed, REDEFINED};
use cachekeeper_engine::{load::LoadReport, log_limit, revalidation};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a revalidation: there may be another one.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// A job in the metadata that only counts looks, so that a Redis that rolled back while nothing else happened is noticed.
const LOOKS: &str = "looks";
/// Pauses after a revalidation that failed: meanwhile those of other datasets run.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How long a revalidation of a new definition waits until the feed follows that.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5);
/// Revalidations at a rate that run at once.
const SLOW_MAX: usize = 4;
/// Members and sets of windows that are over, at which one script looks: about a millisecond of Redis's time.
const DROPPED_AT_ONCE: usize = 500;
/// Such scripts after one look, so that they take a few percent of Redis's time at most.
const DROPS_MAX: usize = 40;

/// Keeps the epoch.
#[derive(Debug)]
pub struct EpochKeeper;

impl Task for EpochKeeper {
    const NAME: &'static str = "epoch_keeper";

    fn wake(context: &TaskContext) -> Wake {
        context.epoch_keeper.clone()
    }

    async fn run(context: TaskContext, wake: Wake) {
        let (running, postponed) = (HashMap::new(), HashMap::new());
        let redefined = HashMap::new();
        let mut keeper = Keeper { context, last: None, lease: None, running, redefined, postponed };
        let mut looks_at = Instant::now();
        loop {
            tokio::select! {
                (dataset, result) = keeper.revalidated() => {
                    keeper.on_revalidated(dataset, result).await;
                    looks_at = Instant::now() + LOOK_SOON;
                }
                () = wake.requested_until(looks_at) => {
                    keeper.look().await;
                    looks_at = Instant::now() + LOOK_EVERY;
                }
            }
        }
    }
}

struct Keeper {
    context: TaskContext,
    /// The epoch of the last look, and how many looks it had counted.
    last: Option<(Epoch, u64)>,
    /// Held while anything is pending that this worker can run as fast as it goes.
    lease: Option<Lease>,
    /// Those that run, by dataset.
    running: HashMap<String, Running>,
    /// Datasets with a new definition that the feed does not follow yet, and since when.
    redefined: HashMap<String, Instant>,
    /// Datasets whose revalidation has failed, when it is tried again, and the pauses between attempts.
    postponed: HashMap<String, (Instant, Backoff)>,
}

/// A revalidation that runs.
struct Running {
    work: Background<Result<LoadReport, EngineError>>,
    /// Of one that goes at a rate and may take hours: others run beside it, also in other workers. None: it has the common lease.
    own_lease: Option<Lease>,
}

fn is_slow(dataset: &Dataset) -> bool {
    dataset.settings.revalidation_rate.is_some()
}

impl Keeper {
    async fn look(&mut self) {
        match epoch::ensure(&self.context.engine, LOOKS).await {
            Ok(state) => {
                self.note_up().await;
                self.check_rolled_back(&state).await;
                self.note_state(&state);
                self.want_backfills(&state);
                self.note_watermark().await;
                self.run_next(&state).await;
                self.drop_windows().await;
            }
            Err(error) => self.note_trouble(&error).await,
        }
    }

    async fn note_watermark(&self) {
        let engine = &self.context.engine;
        if !engine.feed.is_on {
            return;
        }
        let read = engine.redis.watermark().await;
        self.context.health.update(|facts| {
            if let Ok(watermark) = read {
                facts.see_watermark(watermark);
            }
            if let Some((watermark, moved)) = &facts.watermark {
                let age = moved.elapsed().as_secs_f64();
                engine.metrics.watermark_age_seconds.get_or_create(&Unlabelled).set(age);
                // Of the watermark, not of who leads: a worker that leads no more would go on telling what it knew.
                for dataset in engine.catalog.iter() {
                    let is_covered = watermark.not_covered.iter().all(|name| name != dataset.name());
                    let labels = ByDataset::new(dataset.name());
                    engine.metrics.covered.get_or_create(&labels).set(i64::from(is_covered));
                }
            }
        });
    }

    async fn note_up(&mut self) {
        let health = &self.context.health;
        if health.note("redis", Ok(())) {
            info!("redis answers");
        }
        if health.note("postgres", Ok(())) {
            info!("postgres answers");
            if let Err(error) = self.context.engine.redis.note_outage(None, None).await {
                debug!(error = %chain(&error), "the end of the outage is noted at the next look");
                health.update(|facts| drop(facts.dependencies.remove("postgres")));
            }
        }
    }

    async fn note_trouble(&mut self, error: &EngineError) {
        let text = error.told();
        let health = &self.context.health;
        match error {
            EngineError::Cache(_) | EngineError::PreconditionFailed(PreconditionFailed::Version) => {
                if health.note("redis", Err(text.clone())) {
                    warn!(error = text, "redis does not answer as it should, trying again");
                }
            }
            EngineError::Source(_) | EngineError::OtherLife => {
                // The metadata was read before Postgres was asked.
                if health.note("redis", Ok(())) {
                    info!("redis answers");
                }
                if health.note("postgres", Err(text.clone())) {
                    warn!(error = text, "postgres does not answer as it should, trying again");
                }
                let now = now_ms();
                if let Err(error) = self.context.engine.redis.note_outage(None, Some(now)).await {
                    debug!(error = %chain(&error), "the outage could not be noted");
                }
            }
            EngineError::Dataset { .. }
            | EngineError::PreconditionFailed(_)
            | EngineError::Superseded { .. }
            | EngineError::RedisRolledBack
            | EngineError::Cancelled => debug!(error = text, "the epoch could not be checked, trying again"),
        }
    }

    /// The counter of looks only grows within an epoch, whoever looks. If it does not, Redis rolled back.
    async fn check_rolled_back(&mut self, state: &EpochState) {
        let counted = state.metadata.counted;
        let is_behind = self.last.is_some_and(|(epoch, last)| epoch == state.epoch && counted <= last);
        self.last = Some((state.epoch, counted));
        if is_behind {
            self.renew_epoch().await;
        }
    }

    async fn renew_epoch(&mut self) {
        let what = "redis rolled back to an older state, all entries are revalidated";
        if let Some(times) = log_limit::due(what, "", 1) {
            warn!(times, "{what}");
        }
        let engine = &self.context.engine;
        engine.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
        if let Err(error) = epoch::renew(engine).await {
            // Still behind at the next look: the last count is kept.
            self.last = self.last.map(|(epoch, _)| (epoch, u64::MAX));
            let what = "a new epoch could not begin, trying again";
            if let Some(attempts) = log_limit::due(what, "", 1) {
                warn!(error = error.told(), attempts, "{what}");
            }
        }
    }

    fn note_state(&self, state: &EpochState) {
        let (metadata, unfilled) = (&state.metadata, &state.metadata.unfilled);
        let engine = &self.context.engine;
        for dataset in engine.catalog.iter() {
            let is_pending = metadata.is_pending(dataset.name()) || unfilled.contains_key(dataset.name());
            let labels = ByDataset::new(dataset.name());
            engine.metrics.pending_revalidations.get_or_create(&labels).set(i64::from(is_pending));
            let is_paused = metadata.paused.contains_key(dataset.name());
            engine.metrics.paused.get_or_create(&labels).set(i64::from(is_paused));
            if dataset.note_paused(is_paused) {
                info!(dataset = dataset.name(), is_paused, "a person has paused the dataset, or resumed it");
                // What was due meanwhile.
                self.context.backfills.wake.now();
            }
            let progress = metadata.progress.get(dataset.name()).filter(|_| is_pending);
            let count = |count: Option<u64>| i64::try_from(count.unwrap_or_default()).unwrap_or(i64::MAX);
            let done = progress.map(|progress| progress.done);
            engine.metrics.revalidated_entries.get_or_create(&labels).set(count(done));
            let entries = progress.map(|progress| progress.entries);
            engine.metrics.entries_to_revalidate.get_or_create(&labels).set(count(entries));
        }
        self.context.health.update(|facts| {
            let cause = metadata.reasons().map(|(_, reason)| reason.to_owned()).next();
            facts.see_epoch(state.epoch.to_string(), now_ms(), cause);
            let superseded = engine.catalog.iter().filter(|dataset| dataset.is_superseded());
            let superseded: BTreeSet<String> = superseded.map(|dataset| dataset.name().to_owned()).collect();
            if !facts.superseded.is_subset(&superseded) {
                // What was wanted before another worker's definition counted.
                self.context.backfills.wake.now();
            }
            facts.superseded = superseded;
            let owned = |(dataset, reason): (&str, &str)| (dataset.to_owned(), reason.to_owned());
            facts.pending = metadata.reasons().map(owned).collect();
            facts.paused.clone_from(&metadata.paused);
            facts.left_out =
                metadata.slots.iter().map(|(name, slots)| owned((name, slots.reason()))).collect();
        });
    }

    /// A scan of Redis does not find what is missing there. Whoever sees that a backfill must follow wants it, until one has
    /// begun after the cause, wherever it runs.
    fn want_backfills(&self, state: &EpochState) {
        let engine = &self.context.engine;
        for (name, cause) in &state.metadata.unfilled {
            if engine.catalog.get(name).is_some_and(|dataset| !dataset.is_superseded()) {
                self.context.backfills.want(name, Since::cause(*cause));
            }
        }
    }

    /// Begins the next revalidation that is pending, if this worker leads.
    async fn run_next(&mut self, state: &EpochState) {
        let engine = self.context.engine.clone();
        // First: revalidations may follow one another for ever, and this takes a moment.
        if let Some(former) = former::left_behind(&engine) {
            self.delete_former(&former).await;
        }
        self.note_redefined(state);
        let waiting = self.waiting(state);
        if !self.is_busy() && waiting.iter().all(|dataset| is_slow(dataset)) {
            self.lease = None;
        }
        for dataset in waiting {
            self.begin(&dataset).await;
        }
    }

    /// Begins a revalidation, if there is room and no other worker runs it. One at a time, of all workers, goes as fast as it can.
    async fn begin(&mut self, dataset: &Arc<Dataset>) {
        let (name, is_slow) = (dataset.name().to_owned(), is_slow(dataset));
        let slow = self.running.values().filter(|running| running.own_lease.is_some()).count();
        let has_room = if is_slow { slow < SLOW_MAX } else { !self.is_busy() };
        if !has_room {
            return;
        }
        let (lost, own_lease) = if is_slow {
            let asked = self.context.elector.try_lead(&LeaseName::revalidation(&name)).await;
            let LeaseReply::Granted(lease) = asked else { return };
            (lease.lost().clone(), Some(lease))
        } else {
            let Some(lost) = self.lead().await else { return };
            (lost, None)
        };
        let (engine, policy) = (self.context.engine.clone(), self.context.config.service.on_new_epoch);
        let dataset = Arc::clone(dataset);
        let work = async move { revalidation::run(&engine, &dataset, policy, &lost).await };
        self.running.insert(name, Running { work: Background::spawn(work), own_lease });
    }

    /// Whether one runs as fast as it can.
    fn is_busy(&self) -> bool {
        self.running.values().any(|running| running.own_lease.is_none())
    }

    /// When the feed begins to follow a new definition, every entry is pending once more: that is waited for a little, so that one
    /// revalidation is enough.
    fn note_redefined(&mut self, state: &EpochState) {
        let is_new =
            |name: &str| state.metadata.pending.get(name).is_some_and(|why| why.reason() == REDEFINED);
        self.redefined.retain(|name, _| is_new(name));
        if self.context.engine.feed.is_on {
            for name in state.metadata.pending.keys().filter(|name| is_new(name)) {
                self.redefined.entry(name.clone()).or_insert_with(Instant::now);
            }
        }
    }

    /// The datasets whose revalidation may begin.
    fn waiting(&self, state: &EpochState) -> Vec<Arc<Dataset>> {
        let pending = state.metadata.pending.keys().chain(state.metadata.slots.keys());
        let datasets = pending.filter_map(|name| self.context.engine.catalog.get(name));
        let waiting = datasets.filter(|dataset| {
            let name = dataset.name();
            !dataset.is_superseded()
                && !self.running.contains_key(name)
                && self.redefined.get(name).is_none_or(|since| FOLLOWED_WITHIN < since.elapsed())
                && !self.is_postponed(name)
        });
        waiting.cloned().collect()
    }

    /// Nothing renders these keys any more, and the last worker that did is gone.
    async fn delete_former(&mut self, (name, definition): &(String, String)) {
        let Some(lost) = self.lead().await else { return };
        let engine = &self.context.engine;
        if let Err(error) = former::delete_entries(engine, (name, definition), &lost).await {
            debug!(dataset = name, error = %chain(&error), "entries of a former definition are deleted later");
        }
    }

    /// Cancelled when this worker does not lead any more; none: it does not.
    async fn lead(&mut self) -> Option<CancellationToken> {
        if self.lease.as_ref().is_none_or(|lease| lease.lost().is_cancelled()) {
            // Given back before it is asked for again.
            self.lease = None;
            let LeaseReply::Granted(lease) = self.context.elector.try_lead(&LeaseName::REVALIDATION).await
            else {
                return None;
            };
            self.lease = Some(lease);
        }
        self.lease.as_ref().map(|lease| lease.lost().clone())
    }

    fn is_postponed(&self, dataset: &str) -> bool {
        self.postponed.get(dataset).is_some_and(|(until, _)| Instant::now() < *until)
    }

    /// The end of a revalidation that runs, once there is one, and of which dataset; none: it panicked.
    async fn revalidated(&mut self) -> (String, Option<Result<LoadReport, EngineError>>) {
        if self.running.is_empty() {
            return std::future::pending().await;
        }
        let ends = self
            .running
            .iter_mut()
            .map(|(name, running)| Box::pin(async move { (name.clone(), running.work.result().await) }));
        select_all(ends).await.0
    }

    async fn on_revalidated(&mut self, name: String, result: Option<Result<LoadReport, EngineError>>) {
        self.running.remove(&name);
        let context = &self.context;
        match result {
            Some(Ok(report)) => {
                self.postponed.remove(&name);
                context.change_feed.now();
                context.health.update(|facts| drop(facts.broken.remove(&name)));
                info!(
                    dataset = name,
                    stored = report.stored,
                    gone = report.gone,
                    invalidated = report.invalidated,
                    "entries are revalidated"
                );
                // The most wanted ones may be missing; where every row is to be there, Redis says so itself.
                let dataset = context.engine.catalog.get(&name);
                let is_warmed = dataset.is_some_and(|dataset| {
                    let settings = &dataset.settings;
                    settings.scope == Scope::All && settings.warm.is_some() && !dataset.is_filled_whole()
                });
                if is_warmed {
                    context.backfills.want(&name, Since::now());
                }
            }
            Some(Err(EngineError::RedisRolledBack)) => self.renew_epoch().await,
            Some(Err(error @ EngineError::Dataset { .. })) => {
                let text = error.told();
                let what = "the dataset does not fit the database";
                if let Some(attempts) = log_limit::due(what, &name, 1) {
                    warn!(dataset = name, error = text, attempts, "{what}");
                }
                self.postpone(&name);
                self.context.health.update(|facts| drop(facts.broken.insert(name, text)));
            }
            Some(Err(error)) => {
                debug!(dataset = name, error = %chain(&error), "the revalidation is still pending, trying again");
                self.postpone(&name);
            }
            None => {
                warn!(dataset = name, "the revalidation panicked, trying again");
                self.postpone(&name);
            }
        }
    }

    fn postpone(&mut self, dataset: &str) {
        let now = Instant::now();
        let new = (now, Backoff::new(RETRY_MIN, RETRY_MAX));
        let (until, pauses) = self.postponed.entry(dataset.to_owned()).or_insert(new);
        *until = now + pauses.pause();
    }

    async fn drop_windows(&self) {
        let engine = &self.context.engine;
        for _ in 0..DROPS_MAX {
            match engine.redis.drop_old_windows(DROPPED_AT_ONCE).await {
                Ok(dropped) => {
                    engine.metrics.windows_dropped.inc_by(dropped.sets);
                    if !dropped.has_more {
                        return;
                    }
                }
                Err(error) => {
                    debug!(error = %chain(&error), "old tag sets are dropped at the next look");
                    return;
                }
            }
        }
    }
}
