//! Keeps every dataset filled: at start, on its schedule, and when somebody wants a backfill.
//!
//! Backfills run one after another, each under a lease of its dataset, so that several workers do not do the same work. One
//! that fails is tried again with growing pauses, and goes on where it was interrupted. What is wanted stays wanted until
//! it is done, also across a restart of this task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::attempts::{Attempts, NO_CHANCE, RETRY_MAX};
use super::background::Background;
use super::clock::now_ms;
use super::context::TaskContext;
use super::inbox::Since;
use super::task::Task;
use super::under_way::UnderWay;
use super::wake::Wake;
use crate::schedule::next_fire;
use cachekeeper_engine::backfill::{BackfillOptions, backfill, interrupted};
use cachekeeper_engine::backoff::every;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lease::{LeaseName, LeaseReply};
use cachekeeper_engine::load::LoadReport;
use cachekeeper_engine::log_limit;
use cachekeeper_engine::metrics::{ByDataset, ByDatasetOutcome};
use cachekeeper_protocol::units::show_duration;

/// Schedules are looked at no less often than this, so that a clock that was set is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A backfill of another worker may end sooner than its lease would.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(1);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const LOOK_AT_PROGRESS: Duration = Duration::from_millis(250);
const WAIT_FOR_LISTENER: Duration = Duration::from_millis(20);
const WAIT_FOR_LISTENER_MAX: Duration = Duration::from_secs(5);

/// Runs backfills.
#[derive(Debug)]
pub struct Warmer;

impl Task for Warmer {
    const NAME: &'static str = "warmer";

    fn wake(context: &TaskContext) -> Wake {
        context.backfills.wake.clone()
    }

    async fn run(context: TaskContext, wake: Wake) {
        let mut plan = Plan {
            context,
            not_before: BTreeMap::new(),
            attempts: BTreeMap::new(),
            fires: BTreeMap::new(),
            running: None,
            began: Instant::now(),
        };
        plan.start();
        let interrupted = want_interrupted(plan.context.clone());
        let runs = async {
            loop {
                let looks_at = plan.look();
                tokio::select! {
                    end = plan.ended() => plan.on_ended(end),
                    () = wake.requested_until(looks_at) => {}
                }
            }
        };
        tokio::join!(interrupted, runs);
    }
}

struct Plan {
    context: TaskContext,
    /// Wanted datasets that must wait.
    not_before: BTreeMap<String, Instant>,
    attempts: BTreeMap<String, Attempts>,
    /// When the schedules fire next.
    fires: BTreeMap<String, DateTime<Utc>>,
    running: Option<Running>,
    began: Instant,
}

struct Running {
    dataset: String,
    work: Background<BackfillEnd>,
}

/// A backfill that ran.
struct Ran {
    result: Result<Box<LoadReport>, EngineError>,
    took: Duration,
    /// The incarnation of the database in which it began, where that is known.
    incarnation: Option<String>,
}

/// How a backfill ended.
enum BackfillEnd {
    /// It ran.
    Ran(Ran),
    /// Another worker runs it; look again after this.
    Elsewhere(Duration),
    /// Another worker has run it since it was wanted.
    DoneElsewhere,
    /// Somebody has cancelled it.
    Cancelled,
    /// Somebody has paused the dataset: it goes on when that is over.
    Paused,
}

impl Plan {
    fn start(&mut self) {
        // What a former run of this task did not come to the end of.
        self.context.backfills.put_back();
        self.context.backfills.under_way.ended();
        let now = Utc::now();
        let not_warmed = self.context.health.facts().not_warmed;
        for dataset in self.context.engine.catalog.iter() {
            let Some(warm) = &dataset.settings.warm else { continue };
            // After a restart of this task alone, what was warmed stays warmed.
            if warm.on_start && not_warmed.contains(dataset.name()) {
                self.context.backfills.want(dataset.name(), Since::start());
            }
            if let Some(fire) = next_fire(warm, now) {
                self.fires.insert(dataset.name().to_owned(), fire);
            }
        }
    }

    /// Begins what is due; answers when to look again.
    fn look(&mut self) -> Instant {
        self.fire_schedules();
        let now = Instant::now();
        if !self.is_listening() {
            return now + WAIT_FOR_LISTENER;
        }
        if self.running.is_none() {
            let wanted = self.wanted();
            let due = wanted.iter().find(|name| self.not_before.get(*name).is_none_or(|at| *at <= now));
            if let Some(name) = due {
                self.running = self.begin(name);
            }
        }
        // While one runs its end wakes this task, so what waits for it needs no timer.
        let waiting = if self.running.is_some() { Vec::new() } else { self.wanted() };
        let next_wanted = waiting.iter().map(|name| self.not_before.get(name).copied().unwrap_or(now)).min();
        let next_fire =
            self.fires.values().map(|fire| now + (*fire - Utc::now()).to_std().unwrap_or_default()).min();
        let next = next_wanted.into_iter().chain(next_fire).min().unwrap_or(now + LOOK_EVERY);
        next.clamp(now + Duration::from_millis(10), now + LOOK_EVERY)
    }

    fn wanted(&self) -> Vec<String> {
        let catalog = &self.context.engine.catalog;
        let is_paused = |name: &str| catalog.get(name).is_some_and(|dataset| dataset.is_paused());
        let is_own = |name: &String| catalog.get(name).is_some_and(|dataset| !dataset.is_superseded());
        self.context.backfills.datasets(is_paused).into_iter().filter(is_own).collect()
    }

    /// A backfill that begins before events are listened to, or before the feed has taken over what is covered, would have to
    /// be repeated: what comes in between is lost.
    fn is_listening(&self) -> bool {
        let facts = self.context.health.facts();
        let hears_events = matches!(facts.dependencies.get("subscription"), Some(Ok(())));
        let is_followed = !self.context.engine.feed.is_on || facts.watermark.is_some();
        // Where nobody may subscribe at all, or no watermark can be had, filling late is better than never.
        WAIT_FOR_LISTENER_MAX < self.began.elapsed() || hears_events && is_followed
    }

    fn fire_schedules(&mut self) {
        let now = Utc::now();
        let due: Vec<String> =
            self.fires.iter().filter(|(_, fire)| **fire <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.context.backfills.want(&name, Since::now());
            let dataset = self.context.engine.catalog.get(&name);
            match dataset.and_then(|dataset| next_fire(dataset.settings.warm.as_ref()?, now)) {
                Some(fire) => drop(self.fires.insert(name, fire)),
                None => drop(self.fires.remove(&name)),
            }
        }
    }

    fn begin(&self, name: &str) -> Option<Running> {
        let since = self.context.backfills.begin(name)?;
        let dataset = self.context.engine.catalog.get(name)?.clone();
        let context = self.context.clone();
        let work = Background::spawn(async move { run_backfill(&context, &dataset, since).await });
        Some(Running { dataset: name.to_owned(), work })
    }

    /// The end of the backfill that runs, if one does; none: it panicked.
    async fn ended(&mut self) -> Option<BackfillEnd> {
        match &mut self.running {
            Some(running) => running.work.result().await,
            None => std::future::pending().await,
        }
    }

    fn on_ended(&mut self, end: Option<BackfillEnd>) {
        let Some(Running { dataset: name, .. }) = self.running.take() else { return };
        self.context.backfills.under_way.ended();
        let metrics = &self.context.engine.metrics;
        let count = |outcome| metrics.backfills.get_or_create(&ByDatasetOutcome::new(&name, outcome)).inc();
        match end {
            Some(BackfillEnd::Ran(Ran { result: Ok(report), took, .. })) => {
                count("ok");
                note(&self.context.engine, &name, &report, took);
                self.is_done(&name);
            }
            Some(BackfillEnd::DoneElsewhere) => {
                count("elsewhere");
                info!(dataset = name, "no backfill is needed, one has begun since it was wanted");
                self.is_done(&name);
            }
            Some(BackfillEnd::Cancelled) => {
                count("cancelled");
                info!(dataset = name, "the backfill was cancelled; what it has stored stays");
                self.context.backfills.done();
                self.not_before.remove(&name);
                self.attempts.remove(&name);
                // As warm as somebody wants it: it keeps nobody from being ready.
                self.context.health.update(|facts| {
                    facts.not_warmed.remove(&name);
                });
            }
            Some(BackfillEnd::Paused) => {
                count("paused");
                info!(
                    dataset = name,
                    "the backfill stops: the dataset is paused; it goes on once that is over"
                );
                self.context.backfills.put_back();
            }
            Some(BackfillEnd::Elsewhere(left)) => {
                self.try_after(&name, left.clamp(LOOK_AT_PROGRESS, LOOK_AT_OTHERS));
            }
            Some(BackfillEnd::Ran(Ran { result: Err(error), incarnation, .. })) => {
                count("failed");
                self.on_failed(&name, &error, incarnation);
            }
            None => {
                count("panicked");
                warn!(dataset = name, "the backfill panicked, trying again");
                self.try_after(&name, RETRY_MAX);
            }
        }
    }

    fn is_done(&mut self, name: &str) {
        self.context.backfills.done();
        self.context.change_feed.now();
        self.not_before.remove(name);
        self.attempts.remove(name);
        self.context.engine.lost_backfills.clear(name);
        self.context.health.update(|facts| {
            facts.not_warmed.remove(name);
            facts.broken.remove(name);
        });
    }

    fn try_after(&mut self, name: &str, pause: Duration) {
        self.context.backfills.put_back();
        self.not_before.insert(name.to_owned(), Instant::now() + pause);
    }

    fn on_failed(&mut self, name: &str, error: &EngineError, incarnation: Option<String>) {
        let lost = &self.context.engine.lost_backfills;
        match error {
            // A newer process takes care of it, until this one's definition counts again.
            EngineError::Superseded { .. } => return self.context.backfills.put_back(),
            EngineError::RedisRolledBack => self.context.epoch_keeper.now(),
            EngineError::Source(_) if !error.is_source_down() => lost.clear(name),
            EngineError::Dataset { .. } => lost.clear(name),
            // A server that began anew may be heard of before the statement fails.
            EngineError::Source(_) | EngineError::OtherLife | EngineError::PreconditionFailed(_) => {
                lost.note(name, incarnation.as_deref());
            }
            EngineError::Cache(_) | EngineError::Cancelled => {}
        }
        let times = lost.times(name);
        let pause = self.attempts.entry(name.to_owned()).or_default().pause(times);
        let broken = match error {
            EngineError::Dataset { .. } => Some(error.to_string()),
            _ if times < NO_CHANCE => None,
            _ => Some(format!(
                "Postgres has ended during each of its last {times} backfills, by chance or because of what the query needs \
                 (see the server's log, and its memory); the next one begins in {}",
                show_duration(Duration::from_secs(pause.as_secs()))
            )),
        };
        if let Some(text) = broken {
            self.context.health.update(|facts| drop(facts.broken.insert(name.to_owned(), text)));
        }
        let retry_ms = u64::try_from(pause.as_millis()).unwrap_or_default();
        let what = "backfill failed";
        if let Some(attempts) = log_limit::due(what, name, 1) {
            warn!(dataset = name, error = error.told(), retry_ms, attempts, "{what}");
        }
        self.try_after(name, pause);
    }
}

fn note(engine: &Context, name: &str, report: &LoadReport, took: Duration) {
    let by_dataset = ByDataset::new(name);
    let seconds = i64::try_from(now_ms() / 1000).unwrap_or_default();
    engine.metrics.last_backfill.get_or_create(&by_dataset).set(seconds);
    let stored = i64::try_from(report.stored + report.stored_earlier).unwrap_or_default();
    engine.metrics.backfill_entries.get_or_create(&by_dataset).set(stored);
    info!(
        dataset = name,
        stored = report.stored,
        gone = report.gone,
        failed = report.failed,
        duration_ms = u64::try_from(took.as_millis()).unwrap_or_default(),
        "backfill done"
    );
}

/// What was under way when its worker ended is gone on with, whoever wanted it then.
async fn want_interrupted(context: TaskContext) {
    let metadata = loop {
        match context.engine.redis.metadata("").await {
            Ok(metadata) => break metadata,
            Err(_) => sleep(LOOK_AT_OTHERS).await,
        }
    };
    for dataset in context.engine.catalog.iter() {
        if let Some(began) = interrupted(&metadata, dataset) {
            context.backfills.want(dataset.name(), Since::interrupted(began));
        }
    }
}

async fn run_backfill(context: &TaskContext, dataset: &Arc<Dataset>, since: Since) -> BackfillEnd {
    let lease = match context.elector.try_lead(&LeaseName::backfill(dataset.name())).await {
        LeaseReply::Granted(lease) => lease,
        LeaseReply::Held { left, .. } => return BackfillEnd::Elsewhere(left),
        LeaseReply::Unavailable(_) => return BackfillEnd::Elsewhere(LOOK_AT_OTHERS),
    };
    // Only under the lease, so that nobody else can be about to do it.
    let (resume, incarnation) = match context.engine.redis.metadata("").await {
        Ok(metadata) => {
            let backfilled = metadata.backfilled.get(dataset.name());
            if backfilled.is_some_and(|backfilled| since.is_satisfied_by(*backfilled, metadata.now_ms)) {
                return BackfillEnd::DoneElsewhere;
            }
            let interrupted = interrupted(&metadata, dataset);
            let resume = interrupted.is_some_and(|began| since.allows_resuming(began, metadata.now_ms));
            (resume, metadata.incarnation)
        }
        Err(error) => {
            return BackfillEnd::Ran(Ran {
                result: Err(error.into()),
                took: Duration::ZERO,
                incarnation: None,
            });
        }
    };
    let began = Instant::now();
    let under_way = &context.backfills.under_way;
    let may_wait = since.is_optional();
    let (cancelled, progress) = under_way.begin(dataset.name(), !may_wait);
    let options = BackfillOptions {
        cancel: lease.lost().child_token(),
        rate: dataset.backfill_rate(),
        progress: Some(progress),
        resume,
    };
    let result = tokio::select! {
        result = backfill(&context.engine, dataset, &options) => result,
        () = tell(under_way, (dataset, may_wait), options.cancel.clone(), &cancelled) => Err(EngineError::Cancelled),
    };
    let is_paused = may_wait && dataset.is_paused();
    match result {
        Err(EngineError::Cancelled) if cancelled.is_cancelled() && !lease.lost().is_cancelled() => {
            if let Err(error) = context.engine.redis.forget_backfill(dataset.name()).await {
                debug!(dataset = dataset.name(), error = error.told(), "the next worker goes on with it");
            }
            BackfillEnd::Cancelled
        }
        Err(EngineError::Cancelled) if is_paused && !lease.lost().is_cancelled() => BackfillEnd::Paused,
        result => BackfillEnd::Ran(Ran { result: result.map(Box::new), took: began.elapsed(), incarnation }),
    }
}

/// Tells how far it is, for ever; and has it end between two batches where somebody cancels it, or pauses the dataset while it may wait.
async fn tell(
    under_way: &UnderWay,
    (dataset, may_wait): (&Dataset, bool),
    end: CancellationToken,
    cancelled: &CancellationToken,
) {
    let mut ticks = every(LOOK_AT_PROGRESS);
    let mut told = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = cancelled.cancelled(), if !end.is_cancelled() => end.cancel(),
        }
        if may_wait && dataset.is_paused() {
            end.cancel();
        }
        under_way.tick();
        if PROGRESS_EVERY <= told.elapsed()
            && let Some(seen) = under_way.look(dataset.name())
        {
            told = Instant::now();
            let (entries, resumed) = (seen.entries, seen.is_resumed);
            info!(dataset = dataset.name(), entries, resumed, "backfill under way");
        }
    }
}
