//! Keeps every dataset filled: at start, on its schedule, and when somebody wants a pass.
//!
//! Passes run one after another in a task, each under the lease `warm:<dataset>`, so that several workers do not do
//! the same work. A pass that fails is tried again with a growing delay; one that was interrupted is resumed. If the
//! actor dies, schedules and the passes at start are looked up again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::address::AddressBook;
use super::clock::now_ms;
use super::epoch_keeper::EpochKeeperMessage;
use super::health::Health;
use super::lock_renewer::{LEASE_LIFE, LockRenewerMessage, Wish};
use super::task::Task;
use crate::schedule::next_fire;
use cachekeeper_engine::flows::catalog::Dataset;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::flows::reload::{RETRY_DELAY_MAX, Report};
use cachekeeper_engine::flows::warm::{PassOptions, Progress, pass};
use cachekeeper_engine::metrics::{ByDataset, ByDatasetOutcome};

const RETRY_DELAY_MIN: Duration = Duration::from_millis(200);
/// Schedules are looked at no less often than this, so that a clock that was set is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// A pass of another worker may end sooner than its lease would.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(1);
/// How long Redis's clock may have been on its way here.
const CLOCK_SLACK: Duration = Duration::from_millis(100);
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
const WAIT_FOR_LISTENER: Duration = Duration::from_millis(20);
const WAIT_FOR_LISTENER_MAX: Duration = Duration::from_secs(5);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct WarmerArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Where facts go.
    pub health: Health,
}

/// Messages.
#[derive(Debug)]
pub enum WarmerMessage {
    /// Look whether a pass is due. Sent by the actor's own timer.
    Look,
    /// Somebody wants a pass: an event, or a debt that was paid. If it is lost, the next schedule repairs.
    PassWanted {
        /// Of which dataset.
        dataset: String,
        /// A pass that began after this moment of Redis's clock will do; none: after now.
        since_ms: Option<u64>,
    },
    /// The task of a pass is over.
    PassEnded {
        /// Of which dataset.
        dataset: String,
        /// How; none if it panicked.
        result: Option<PassEnd>,
    },
}

/// How a pass ended.
#[derive(Debug)]
pub enum PassEnd {
    /// It ran.
    Ran(Result<Report, FlowError>, Duration),
    /// Another worker runs it; look again after this.
    Elsewhere(Duration),
    /// Another worker has run it since it was wanted.
    DoneElsewhere,
}

/// A moment, by the clock that it was read from.
#[derive(Debug, Clone, Copy)]
enum Since {
    /// Redis's, in Unix milliseconds.
    Redis(u64),
    /// This process's.
    Here(Instant),
}

#[derive(Debug)]
struct Wanted {
    /// Not before.
    due: Instant,
    /// Any worker's pass that began after this makes this one needless.
    since: Since,
}

/// What the actor knows.
#[derive(Debug)]
pub struct WarmerState {
    arguments: WarmerArguments,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<WarmerMessage>>>>,
    wanted: BTreeMap<String, Wanted>,
    next_fires: BTreeMap<String, DateTime<Utc>>,
    running: Option<Running>,
    began: Instant,
    /// How often a dataset's pass has failed in a row.
    failures: BTreeMap<String, u32>,
}

#[derive(Debug)]
struct Running {
    dataset: String,
    _task: Task,
    cancel: CancellationToken,
    since: Since,
}

/// The actor.
#[derive(Debug)]
pub struct Warmer;

impl Actor for Warmer {
    type Msg = WarmerMessage;
    type State = WarmerState;
    type Arguments = WarmerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<WarmerMessage>,
        arguments: WarmerArguments,
    ) -> Result<WarmerState, ActorProcessingErr> {
        let mut state = WarmerState {
            arguments,
            timer: None,
            wanted: BTreeMap::new(),
            next_fires: BTreeMap::new(),
            running: None,
            began: Instant::now(),
            failures: BTreeMap::new(),
        };
        state.plan_start();
        state.arm(&myself, Duration::ZERO);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<WarmerMessage>,
        message: WarmerMessage,
        state: &mut WarmerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WarmerMessage::Look => {}
            WarmerMessage::PassWanted { dataset, since_ms } => {
                let since = since_ms.map_or_else(|| Since::Here(Instant::now()), Since::Redis);
                state.want(&dataset, Duration::ZERO, since);
            }
            WarmerMessage::PassEnded { dataset, result } => state.on_pass_ended(&dataset, result),
        }
        state.on_look(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<WarmerMessage>,
        state: &mut WarmerState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        if let Some(running) = state.running.take() {
            running.cancel.cancel();
            state.release(&running.dataset);
        }
        Ok(())
    }
}

impl WarmerState {
    fn arm(&mut self, myself: &ActorRef<WarmerMessage>, delay: Duration) {
        if let Some(timer) = self.timer.replace(myself.send_after(delay, || WarmerMessage::Look)) {
            timer.abort();
        }
    }

    fn plan_start(&mut self) {
        let now = Utc::now();
        let datasets: Vec<Arc<Dataset>> = self.arguments.context.catalog.iter().cloned().collect();
        for dataset in datasets {
            let Some(warm) = &dataset.settings.warm else {
                continue;
            };
            let is_warm = !self.arguments.health.facts().not_warmed.contains(dataset.name());
            // After a restart of this actor alone, what was warmed stays warmed.
            if warm.on_start && !is_warm {
                self.want(dataset.name(), Duration::ZERO, Since::Here(Instant::now()));
            }
            if let Some(fire) = next_fire(warm, now) {
                self.next_fires.insert(dataset.name().to_owned(), fire);
            }
        }
    }

    fn want(&mut self, dataset: &str, delay: Duration, since: Since) {
        if self.arguments.context.catalog.get(dataset).is_none() {
            return;
        }
        let due = Instant::now() + delay;
        let known = self.wanted.entry(dataset.to_owned()).or_insert(Wanted { due, since });
        known.due = known.due.min(due);
        // The later wish counts: whatever satisfies it satisfies the earlier one too.
        known.since = since;
    }

    fn on_look(&mut self, myself: &ActorRef<WarmerMessage>) {
        self.fire_schedules();
        let now = Instant::now();
        if !self.is_listening() {
            self.arm(myself, WAIT_FOR_LISTENER);
            return;
        }
        if self.running.is_none() {
            let due = self
                .wanted
                .iter()
                .filter(|(_, wanted)| wanted.due <= now)
                .min_by_key(|(_, wanted)| wanted.due);
            if let Some(name) = due.map(|(name, _)| name.clone()) {
                self.start(myself, &name);
            }
        }
        let next_wanted = self.wanted.values().map(|wanted| wanted.due.saturating_duration_since(now)).min();
        let next_fire =
            self.next_fires.values().map(|fire| (*fire - Utc::now()).to_std().unwrap_or_default()).min();
        // While a pass runs its end wakes this actor, so what waits for it needs no timer.
        let next_wanted = next_wanted.filter(|_| self.running.is_none());
        let delay = [next_wanted, next_fire].into_iter().flatten().min().unwrap_or(LOOK_EVERY);
        self.arm(myself, delay.clamp(Duration::from_millis(10), LOOK_EVERY));
    }

    /// A pass that begins before events are listened to would have to be repeated: those in between are lost.
    fn is_listening(&self) -> bool {
        // Where nobody may subscribe at all, filling late is better than never.
        WAIT_FOR_LISTENER_MAX < self.began.elapsed()
            || matches!(self.arguments.health.facts().dependencies.get("subscription"), Some(Ok(())))
    }

    fn fire_schedules(&mut self) {
        let now = Utc::now();
        let due: Vec<String> =
            self.next_fires.iter().filter(|(_, fire)| **fire <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.want(&name, Duration::ZERO, Since::Here(Instant::now()));
            let dataset = self.arguments.context.catalog.get(&name).cloned();
            match dataset.and_then(|dataset| next_fire(dataset.settings.warm.as_ref()?, now)) {
                Some(fire) => drop(self.next_fires.insert(name, fire)),
                None => drop(self.next_fires.remove(&name)),
            }
        }
    }

    fn start(&mut self, myself: &ActorRef<WarmerMessage>, name: &str) {
        let Some(wanted) = self.wanted.remove(name) else {
            return;
        };
        let Some(dataset) = self.arguments.context.catalog.get(name).cloned() else {
            return;
        };
        let cancel = CancellationToken::new();
        let (arguments, stop, ended) = (self.arguments.clone(), cancel.clone(), name.to_owned());
        let since = wanted.since;
        let work = async move { run_pass(&arguments, &dataset, since, stop).await };
        let task =
            Task::spawn(myself, work, move |result| WarmerMessage::PassEnded { dataset: ended, result });
        self.running = Some(Running { dataset: name.to_owned(), _task: task, cancel, since });
    }

    fn on_pass_ended(&mut self, name: &str, result: Option<PassEnd>) {
        let since = self.running.take().map_or_else(|| Since::Here(Instant::now()), |running| running.since);
        self.release(name);
        let labels = |outcome| ByDatasetOutcome::new(name, outcome);
        let passes = &self.arguments.context.metrics.passes;
        match result {
            Some(PassEnd::Ran(Ok(report), took)) => {
                passes.get_or_create(&labels("ok")).inc();
                let by_dataset = ByDataset::new(name);
                let metrics = &self.arguments.context.metrics;
                metrics
                    .last_pass
                    .get_or_create(&by_dataset)
                    .set(i64::try_from(now_ms() / 1000).unwrap_or_default());
                metrics
                    .pass_entries
                    .get_or_create(&by_dataset)
                    .set(i64::try_from(report.stored).unwrap_or_default());
                info!(
                    dataset = name,
                    stored = report.stored,
                    gone = report.gone,
                    failed = report.failures.len(),
                    duration_ms = u64::try_from(took.as_millis()).unwrap_or_default(),
                    "pass done"
                );
                self.is_warm(name);
            }
            Some(PassEnd::Elsewhere(left)) => {
                self.want(name, left.clamp(RETRY_DELAY_MIN, LOOK_AT_OTHERS), since);
            }
            Some(PassEnd::DoneElsewhere) => {
                passes.get_or_create(&labels("elsewhere")).inc();
                info!(dataset = name, "a pass has been done since it was wanted");
                self.is_warm(name);
            }
            Some(PassEnd::Ran(Err(error), _)) => {
                passes.get_or_create(&labels("failed")).inc();
                self.on_pass_failed(name, &error, since);
            }
            None => {
                passes.get_or_create(&labels("panicked")).inc();
                warn!(dataset = name, "the pass panicked, trying again");
                self.want(name, RETRY_DELAY_MAX, since);
            }
        }
    }

    fn is_warm(&mut self, name: &str) {
        self.failures.remove(name);
        self.arguments.health.update(|facts| {
            facts.not_warmed.remove(name);
            facts.broken.remove(name);
        });
    }

    fn on_pass_failed(&mut self, name: &str, error: &FlowError, since: Since) {
        match error {
            // A newer process takes care of it.
            FlowError::Displaced { .. } => {
                self.arguments
                    .health
                    .update(|facts| drop(facts.broken.insert(name.to_owned(), error.to_string())));
                return;
            }
            FlowError::WentBack => {
                self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
            }
            FlowError::Dataset { .. } => {
                self.arguments
                    .health
                    .update(|facts| drop(facts.broken.insert(name.to_owned(), error.to_string())));
            }
            FlowError::Source(_)
            | FlowError::Cache(_)
            | FlowError::Gone(_)
            | FlowError::Retired
            | FlowError::Slow { .. }
            | FlowError::Cancelled => {}
        }
        let failures = self.failures.entry(name.to_owned()).or_default();
        *failures += 1;
        let doubled = RETRY_DELAY_MIN.saturating_mul(1 << (*failures).min(8));
        let delay = doubled.mul_f64(0.5 + 0.5 * rand::random::<f64>()).min(RETRY_DELAY_MAX);
        warn!(dataset = name, error = %chain(error), retry_ms = u64::try_from(delay.as_millis()).unwrap_or_default(),
            "pass failed");
        self.want(name, delay, since);
    }

    fn release(&self, dataset: &str) {
        self.arguments.peers.lock_renewer.hint(LockRenewerMessage::Release { name: lease_name(dataset) });
    }
}

fn lease_name(dataset: &str) -> String {
    format!("warm:{dataset}")
}

async fn run_pass(
    arguments: &WarmerArguments,
    dataset: &Arc<Dataset>,
    since: Since,
    stop: CancellationToken,
) -> PassEnd {
    let Some(renewer) = arguments.peers.lock_renewer.get() else {
        return PassEnd::Elsewhere(RETRY_DELAY_MIN);
    };
    let ask =
        |reply| LockRenewerMessage::Acquire { name: lease_name(dataset.name()), life: LEASE_LIFE, reply };
    let lease = match renewer.call(ask, Some(ASK_TIMEOUT)).await {
        Ok(ractor::rpc::CallResult::Success(Wish::Granted(lease))) => lease,
        Ok(ractor::rpc::CallResult::Success(Wish::Held(left))) => return PassEnd::Elsewhere(left),
        _ => return PassEnd::Elsewhere(RETRY_DELAY_MAX),
    };
    match arguments.context.redis.metadata("").await {
        Ok(head) => {
            let since_ms = match since {
                Since::Redis(since_ms) => since_ms,
                Since::Here(since) => {
                    let elapsed = since.elapsed().saturating_sub(CLOCK_SLACK);
                    head.now_ms.saturating_sub(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
                }
            };
            if head.backfilled.get(dataset.name()).is_some_and(|began| since_ms <= *began) {
                return PassEnd::DoneElsewhere;
            }
        }
        Err(error) => return PassEnd::Ran(Err(error.into()), Duration::ZERO),
    }
    let began = Instant::now();
    let (progress, mut told) = tokio::sync::watch::channel(Progress::default());
    let options = PassOptions {
        cancel: stop.child_token(),
        rate: dataset.settings.warm.as_ref().and_then(|warm| warm.rate),
        progress: Some(progress),
        resume: true,
    };
    let cancel = options.cancel.clone();
    let reporting = async {
        loop {
            tokio::select! {
                () = lease.lost.cancelled() => {
                    cancel.cancel();
                    std::future::pending::<()>().await;
                }
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    let now = told.borrow_and_update().clone();
                    info!(dataset = dataset.name(), entries = now.entries, resumed = now.is_resumed, "pass under way");
                }
            }
        }
    };
    let result = tokio::select! {
        result = pass(&arguments.context, dataset, &options) => result,
        () = reporting => Err(FlowError::Cancelled),
    };
    PassEnd::Ran(result, began.elapsed())
}
