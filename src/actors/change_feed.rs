//! Applies every committed change, and moves the watermark.
//!
//! One worker leads, by a lease; that saves work and guards nothing: two leaders are refused by the cursor's script.
//! The loop runs in a task, because one batch can take long; the actor only sees that it goes on. Where it dies, the
//! next one begins where Redis says.

use std::collections::BTreeMap;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::address::AddressBook;
use super::epoch_keeper::EpochKeeperMessage;
use super::health::Health;
use super::lock_renewer::{LEASE_LIFE, Lease, LockRenewerMessage, Wish};
use super::refresher::RefresherMessage;
use super::task::Task;
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::coverage;
use cachekeeper_engine::flows::epoch;
use cachekeeper_engine::flows::error::{FlowError, chain};
use cachekeeper_engine::flows::follow::{Follower, Step};
use cachekeeper_engine::flows::followed::Coverage;
use cachekeeper_engine::metrics::{ByDataset, ByReason};

const LEASE: &str = "feed";
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const LEAD_AGAIN: Duration = Duration::from_millis(500);
/// Coverage is looked at this often (DESIGN 2.4), and the outbox is trimmed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// The cursor's script runs at least once a second, with room for a slow one (R11).
const ADVANCE_EVERY: Duration = Duration::from_millis(500);
/// A leader that does not move the watermark for so long may be dead, while its lease lives on.
const LEADERLESS_AFTER: Duration = Duration::from_millis(1_500);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct ChangeFeedArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Where facts go.
    pub health: Health,
}

/// Messages.
#[derive(Debug)]
pub enum ChangeFeedMessage {
    /// The loop has ended, which it never should: it panicked.
    Ended,
}

/// The actor.
#[derive(Debug)]
pub struct ChangeFeed;

impl Actor for ChangeFeed {
    type Msg = ChangeFeedMessage;
    type State = Task;
    type Arguments = ChangeFeedArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ChangeFeedMessage>,
        arguments: ChangeFeedArguments,
    ) -> Result<Task, ActorProcessingErr> {
        let feed = Feed {
            arguments,
            look_at: Instant::now(),
            reasons: BTreeMap::new(),
            is_failing: false,
            last_seen: None,
            is_substitute: false,
            may_install: false,
        };
        Ok(Task::spawn(&myself, feed.run(), |_ended: Option<()>| ChangeFeedMessage::Ended))
    }

    async fn handle(
        &self,
        _myself: ActorRef<ChangeFeedMessage>,
        message: ChangeFeedMessage,
        _task: &mut Task,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ChangeFeedMessage::Ended => Err("the feed's loop has ended".into()),
        }
    }
}

struct Feed {
    arguments: ChangeFeedArguments,
    look_at: Instant,
    /// Why datasets are not covered, so that each reason is said once.
    reasons: BTreeMap<String, String>,
    is_failing: bool,
    /// The watermark's time when it was last seen to move.
    last_seen: Option<(Option<String>, Instant)>,
    /// Whether this worker has just moved it without having the lease.
    is_substitute: bool,
    may_install: bool,
}

impl Feed {
    async fn run(mut self) {
        loop {
            match self.lead().await {
                Some(lease) => {
                    info!("this worker follows the changes");
                    // Two workers whose settings differ must not replace each other's triggers.
                    self.may_install = true;
                    self.look_at = Instant::now();
                    self.follow(&lease.lost).await;
                    self.may_install = false;
                    self.arguments.peers.lock_renewer.hint(LockRenewerMessage::Release { name: lease.name });
                }
                None if self.is_leaderless().await => {
                    // Whoever has the lease may be dead; following without it is safe, and it is tried again soon.
                    debug!("nobody moves the watermark, this worker does until it has the lease");
                    let soon = CancellationToken::new();
                    let timer = soon.clone();
                    let wake = Task::run(async move {
                        tokio::time::sleep(LEAD_AGAIN).await;
                        timer.cancel();
                    });
                    self.follow(&soon).await;
                    self.is_substitute = true;
                    drop(wake);
                }
                None => {
                    self.look_if_due().await;
                    tokio::time::sleep(LEAD_AGAIN).await;
                }
            }
        }
    }

    /// Whether the watermark stands still although somebody has the lease, or this worker moves it in their place.
    async fn is_leaderless(&mut self) -> bool {
        let context = &self.arguments.context;
        if context.coverage().is_none() || context.catalog.iter().any(|dataset| dataset.is_displaced()) {
            return false;
        }
        let Ok(watermark) = context.redis.watermark().await else { return false };
        let as_of = watermark.map(|watermark| watermark.as_of);
        if std::mem::take(&mut self.is_substitute) {
            return true;
        }
        if self.last_seen.as_ref().is_none_or(|(seen, _)| *seen != as_of) {
            self.last_seen = Some((as_of, Instant::now()));
        }
        self.last_seen.as_ref().is_some_and(|(_, since)| LEADERLESS_AFTER < since.elapsed())
    }

    async fn lead(&self) -> Option<Lease> {
        let context = &self.arguments.context;
        // A process that a newer one has displaced must not move the cursor past what it does not know (R16).
        if context.catalog.iter().any(|dataset| dataset.is_displaced()) {
            return None;
        }
        let renewer = self.arguments.peers.lock_renewer.get()?;
        let ask = |reply| LockRenewerMessage::Acquire { name: LEASE.to_owned(), life: LEASE_LIFE, reply };
        match renewer.call(ask, Some(ASK_TIMEOUT)).await {
            Ok(ractor::rpc::CallResult::Success(Wish::Granted(lease))) => Some(lease),
            _ => None,
        }
    }

    async fn follow(&mut self, until: &CancellationToken) {
        let context = self.arguments.context.clone();
        let mut follower = Follower::new(&context);
        let mut pace = Pace::default();
        let mut advanced = Instant::now();
        let mut retry = RETRY_MIN;
        while !until.is_cancelled() && !context.catalog.iter().any(|dataset| dataset.is_displaced()) {
            if self.look_if_due().await
                && let Err(error) = follower.trim().await
            {
                debug!(error = %chain(&error), "the outbox is trimmed later");
            }
            let must_advance = ADVANCE_EVERY < advanced.elapsed();
            let step = follower.step(must_advance).await;
            let keys = follower.take_dropped();
            if !keys.is_empty() {
                self.arguments.peers.refresher.hint(RefresherMessage::Missed { keys });
            }
            match step {
                Ok(step @ (Step::Idle | Step::Applied(_))) => {
                    self.note(None);
                    retry = RETRY_MIN;
                    if must_advance || matches!(step, Step::Applied(_)) {
                        advanced = Instant::now();
                    }
                    tokio::time::sleep(pace.after(step)).await;
                }
                Ok(Step::Waiting | Step::Again) => {
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
                Err(error) => {
                    self.on_error(&error).await;
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn on_error(&mut self, error: &FlowError) {
        let context = &self.arguments.context;
        match error {
            FlowError::WentBack => {
                warn!("redis went back to an older state, the feed goes on from there");
                context.metrics.gaps.get_or_create(&ByReason::new("redis_went_back")).inc();
                if let Err(error) = epoch::relabel(context).await {
                    debug!(error = %chain(&error), "a new epoch could not begin, trying again");
                }
                self.arguments.peers.epoch_keeper.hint(EpochKeeperMessage::Look);
            }
            // Begun again at once, with the keys of that dataset deleted.
            FlowError::Slow { .. } => {}
            FlowError::Gone(gone) => debug!(%gone, "the order of things changed, the feed begins again"),
            error => self.note(Some(chain(error))),
        }
    }

    /// Says once that the feed cannot go on, and once that it does.
    fn note(&mut self, trouble: Option<String>) {
        match (&trouble, self.is_failing) {
            (Some(text), false) => warn!(error = text, "the feed cannot go on, trying again"),
            (None, true) => info!("the feed goes on"),
            _ => {}
        }
        self.is_failing = trouble.is_some();
    }

    /// Looks at the coverage once a minute; true: it did.
    async fn look_if_due(&mut self) -> bool {
        if Instant::now() < self.look_at {
            return false;
        }
        let context = self.arguments.context.clone();
        match coverage::look(&context, self.may_install).await {
            Ok(coverage) => {
                let is_settling = coverage.gaps().next().is_some();
                self.tell(&coverage);
                context.set_coverage(coverage);
                // What is not covered may be soon.
                self.look_at = Instant::now() + if is_settling { LOOK_EVERY / 12 } else { LOOK_EVERY };
                true
            }
            Err(error) => {
                self.note(Some(chain(&error)));
                self.look_at = Instant::now() + LOOK_AGAIN;
                false
            }
        }
    }

    fn tell(&mut self, coverage: &Coverage) {
        let context = &self.arguments.context;
        for (name, mark) in &coverage.datasets {
            context.metrics.covered.get_or_create(&ByDataset::new(name)).set(i64::from(mark.is_ok()));
        }
        let found: BTreeMap<String, String> =
            coverage.gaps().map(|(name, reason)| (name.clone(), reason.clone())).collect();
        for (name, reason) in &found {
            if self.reasons.get(name) != Some(reason) {
                warn!(dataset = name, reason, "the dataset is not covered: its changes may be missed");
            }
        }
        for name in self.reasons.keys().filter(|name| !found.contains_key(*name)) {
            info!(dataset = name, "the dataset is covered");
        }
        self.arguments.health.update(|facts| {
            facts.uncovered.clone_from(&found);
            facts.unmet.clear();
            for dataset in
                context.catalog.iter().filter(|dataset| dataset.settings.feed == FeedNeed::Required)
            {
                if let Some(reason) = found.get(dataset.name()) {
                    facts.unmet.insert(dataset.name().to_owned(), reason.clone());
                }
            }
        });
        self.reasons = found;
    }
}

/// How long to wait between two polls: shortly while there is something to do, and longer and longer when not.
#[derive(Debug)]
struct Pace {
    idle: u32,
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: 0, pause: Self::BUSY }
    }
}

impl Pace {
    const BUSY: Duration = Duration::from_millis(1);
    const IDLE: Duration = Duration::from_millis(25);
    /// Idle polls before the pauses grow: about a fifth of a second.
    const PATIENCE: u32 = 100;

    fn after(&mut self, step: Step) -> Duration {
        if let Step::Applied(statements) = step
            && 0 < statements
        {
            *self = Self::default();
            return self.pause;
        }
        self.idle += 1;
        if Self::PATIENCE < self.idle {
            self.pause = (self.pause * 5 / 4).min(Self::IDLE);
        }
        self.pause
    }
}
