//! Applies every committed change, and moves the watermark.
//!
//! One worker leads, by a lease; that saves work and guards nothing: of two who move the cursor one is refused. Whoever
//! leads and stands still may be dead while its lease lives on, so another one follows in its place, until the leader moves
//! again. Wherever one of them stops, the next one begins where Redis says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::coverage;
use cachekeeper_engine::coverage::Coverage;
use cachekeeper_engine::epoch;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::lease::{Lease, LeaseName};
use cachekeeper_engine::metrics::{ByDataset, ByReason};
use cachekeeper_engine::namespaces;

/// How often a worker that does not lead looks at the one who does.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// Coverage is looked at this often, and the outbox is trimmed.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// R11 asks for one run of the cursor's script a second; half of that leaves time for a slow one.
const ADVANCE_EVERY: Duration = Duration::from_millis(500);
/// A leader that does not move the watermark for so long may be dead, while its lease lives on.
const LEADERLESS_AFTER: Duration = Duration::from_millis(1_500);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Follows the changes.
#[derive(Debug)]
pub struct ChangeFeed;

impl Task for ChangeFeed {
    const NAME: &'static str = "change_feed";

    async fn run(context: TaskContext, _wake: Wake) {
        let feed = Feed {
            context,
            look_at: Instant::now(),
            reasons: BTreeMap::new(),
            is_failing: false,
            last_seen: None,
            may_install: false,
            is_noted: false,
        };
        match feed.run().await {}
    }
}

struct Feed {
    context: TaskContext,
    /// When the coverage is looked at next.
    look_at: Instant,
    /// Why datasets are not covered, so that each reason is said once.
    reasons: BTreeMap<String, String>,
    is_failing: bool,
    /// The watermark's time when it was last seen to move.
    last_seen: Option<(Option<String>, Instant)>,
    /// Two workers whose settings differ must not replace each other's triggers: only who leads installs them.
    may_install: bool,
    /// Whether it is noted which tables are watched.
    is_noted: bool,
}

/// In whose place changes are followed.
enum Role<'a> {
    /// Until the lease is lost.
    Leader(&'a Lease),
    /// In the place of a leader that stands still, until somebody else moves the watermark.
    Substitute,
}

impl Feed {
    async fn run(mut self) -> Infallible {
        let context = self.context.clone();
        loop {
            let lease = tokio::select! {
                lease = wait_to_lead(&context) => lease,
                never = self.stand_by() => match never {},
            };
            info!("this worker follows the changes");
            self.may_install = true;
            self.is_noted = false;
            self.look_at = Instant::now();
            self.follow(Role::Leader(&lease)).await;
            self.may_install = false;
        }
    }

    /// Watches whoever leads, and follows in their place while they stand still: that is safe without the lease.
    async fn stand_by(&mut self) -> Infallible {
        self.last_seen = None;
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            self.look_if_due().await;
            if self.is_leaderless().await {
                debug!("the watermark does not move, applying changes without the lease");
                self.follow(Role::Substitute).await;
                self.last_seen = None;
            }
        }
    }

    /// Whether the watermark stands still although somebody has the lease.
    async fn is_leaderless(&mut self) -> bool {
        let engine = &self.context.engine;
        if engine.coverage().is_none() || is_superseded(&self.context) {
            return false;
        }
        let Ok(watermark) = engine.redis.watermark().await else { return false };
        let as_of = watermark.map(|watermark| watermark.as_of);
        if self.last_seen.as_ref().is_none_or(|(seen, _)| *seen != as_of) {
            self.last_seen = Some((as_of, Instant::now()));
        }
        self.last_seen.as_ref().is_some_and(|(_, since)| LEADERLESS_AFTER < since.elapsed())
    }

    async fn follow(&mut self, role: Role<'_>) {
        let engine = self.context.engine.clone();
        let mut follower = FeedConsumer::new(&engine);
        let mut interval = PollInterval::default();
        // The first step moves the watermark: others wait to know what is covered.
        let mut advanced: Option<Instant> = None;
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let must_advance = advanced.is_none_or(|advanced| ADVANCE_EVERY < advanced.elapsed());
            let is_over = match role {
                Role::Leader(lease) => lease.lost().is_cancelled(),
                Role::Substitute => follower.has_met_another(must_advance).await,
            };
            if is_over || is_superseded(&self.context) {
                return;
            }
            if self.look_if_due().await
                && let Err(error) = follower.trim().await
            {
                debug!(error = %chain(&error), "the outbox is trimmed later");
            }
            let step = follower.step(must_advance).await;
            match step {
                Ok(step @ (Step::Idle | Step::Applied(_))) => {
                    self.note(None);
                    retry.reset();
                    let has_advanced = must_advance || matches!(step, Step::Applied(_));
                    if has_advanced && advanced.replace(Instant::now()).is_none() {
                        // There is a watermark now, which the first backfills wait for.
                        self.context.epoch_keeper.now();
                    }
                    tokio::time::sleep(interval.after(step)).await;
                }
                Ok(Step::Waiting | Step::Again) => retry.wait().await,
                Err(error) => {
                    self.on_error(&error).await;
                    retry.wait().await;
                }
            }
        }
    }

    async fn on_error(&mut self, error: &EngineError) {
        let engine = &self.context.engine;
        match error {
            EngineError::RedisRolledBack => {
                warn!("redis rolled back to an older state, the feed goes on from there");
                engine.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                if let Err(error) = epoch::renew(engine).await {
                    debug!(error = %chain(&error), "a new epoch could not begin, trying again");
                }
                self.context.epoch_keeper.now();
            }
            EngineError::PreconditionFailed(gone) => {
                debug!(%gone, "the current epoch changed, the feed begins again");
            }
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
        let engine = self.context.engine.clone();
        match coverage::look(&engine, self.may_install).await {
            Ok(coverage) => {
                let is_settling = coverage.gaps().next().is_some();
                self.tell(&coverage);
                engine.set_coverage(coverage);
                self.note_watched().await;
                // Sooner while a dataset is not covered.
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

    /// Notes which tables this namespace watches, once for each time that this worker leads.
    async fn note_watched(&mut self) {
        if !self.may_install || self.is_noted {
            return;
        }
        self.is_noted = true;
        if let Err(error) = namespaces::note_watched(&self.context.engine).await {
            debug!(error = %chain(&error), "it is not noted which tables are watched; `migrate` notes it");
        }
    }

    fn tell(&mut self, coverage: &Coverage) {
        let engine = &self.context.engine;
        for (name, mark) in &coverage.datasets {
            engine.metrics.covered.get_or_create(&ByDataset::new(name)).set(i64::from(mark.is_ok()));
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
        self.context.health.update(|facts| {
            facts.uncovered.clone_from(&found);
            facts.unmet.clear();
            for dataset in engine.catalog.iter().filter(|dataset| dataset.settings.feed == FeedNeed::Required)
            {
                if let Some(reason) = found.get(dataset.name()) {
                    facts.unmet.insert(dataset.name().to_owned(), reason.clone());
                }
            }
        });
        self.reasons = found;
    }
}

/// Whether a newer process has registered another definition. Then this one must not move the cursor past what it does not
/// know (R16).
fn is_superseded(context: &TaskContext) -> bool {
    context.engine.catalog.iter().any(|dataset| dataset.is_superseded())
}

async fn wait_to_lead(context: &TaskContext) -> Lease {
    loop {
        while is_superseded(context) {
            tokio::time::sleep(WATCH_EVERY).await;
        }
        let lease = context.elector.lead(&LeaseName::FEED).await;
        if !is_superseded(context) {
            return lease;
        }
    }
}

/// How long to wait between two polls: shortly while there is something to do, and longer and longer when not.
#[derive(Debug)]
struct PollInterval {
    idle: u32,
    pause: Duration,
}

impl Default for PollInterval {
    fn default() -> Self {
        Self { idle: 0, pause: Self::BUSY }
    }
}

impl PollInterval {
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
