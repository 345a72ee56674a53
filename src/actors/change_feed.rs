//! Applies every committed change, and moves the watermark.
//!
//! One worker leads, by a lease; that saves work and guards nothing: of two who move the cursor one is refused. Whoever
//! leads and stands still may be dead while its lease lives on, so another one follows in its place, until the leader moves
//! again. Wherever one of them stops, the next one begins where Redis says.

mod substitution;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::background::Background;
use super::context::TaskContext;
use super::poll_interval::PollInterval;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_config::FeedNeed;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::change_feed::{FeedConsumer, Step};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::coverage::Coverage;
use cachekeeper_engine::definitions;
use cachekeeper_engine::epoch;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::lease::{Lease, LeaseName};
use cachekeeper_engine::metrics::ByReason;
use cachekeeper_engine::shard::Follower;
use cachekeeper_engine::stores::postgres::ErrorKind;
use cachekeeper_engine::stores::redis::Registered;
use cachekeeper_engine::{log_limit, namespaces};

/// How often a worker that does not lead looks at the one who does.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// Coverage is computed anew where the catalogs say so. A worker that does not lead asks them this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pauses between two computations: at least this while the catalogs change, growing while a dataset is not covered.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often the outbox is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(60);
/// R11 asks for one run of the cursor's script a second; half of that leaves time for a slow one.
const ADVANCE_EVERY: Duration = Duration::from_millis(500);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Follows the changes.
#[derive(Debug)]
pub struct ChangeFeed;

impl Task for ChangeFeed {
    const NAME: &'static str = "change_feed";

    fn wake(context: &TaskContext) -> Wake {
        context.change_feed.clone()
    }

    async fn run(context: TaskContext, wake: Wake) {
        let (engine, followed) = (context.engine.clone(), context.engine.registered());
        let feed = Feed {
            context,
            engine,
            followed,
            wake,
            looking: None,
            looked_at: Instant::now(),
            look_at: Instant::now(),
            looks: Backoff::new(LOOK_MIN, LOOK_MAX),
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
    /// With every registered definition, as of `followed`.
    engine: Context,
    followed: Arc<Registered>,
    wake: Wake,
    /// Coverage that is computed beside the changes.
    looking: Option<Background<Result<Looked, EngineError>>>,
    looked_at: Instant,
    /// When it is computed again, while a dataset is not covered; and by whom does not lead, when the catalogs are asked.
    look_at: Instant,
    looks: Backoff,
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

/// What is followed, and its coverage.
struct Looked {
    engine: Context,
    followed: Arc<Registered>,
    coverage: Coverage,
}

/// In whose place changes are followed.
enum Role<'a> {
    /// Until the lease is lost.
    Leader(&'a Lease),
    /// In the place of a leader that stands still, until then, or until somebody else moves the watermark.
    Substitute(Instant),
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
            // What is known may be from before somebody else followed.
            self.look().await;
            self.follow(Role::Leader(&lease)).await;
            self.may_install = false;
        }
    }

    async fn follow(&mut self, role: Role<'_>) {
        let mut follower = Follower::new(&self.engine);
        let mut trim_at = Instant::now();
        let mut interval = PollInterval::default();
        // The first step moves the watermark: others wait to know what is covered.
        let mut advanced: Option<Instant> = None;
        let mut is_woken = false;
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let must_advance = is_woken || advanced.is_none_or(|advanced| ADVANCE_EVERY < advanced.elapsed());
            let is_over = match role {
                Role::Leader(lease) => lease.lost().is_cancelled() || !self.may_lead(),
                Role::Substitute(until) => {
                    until <= Instant::now() || follower.consumer.has_met_another(must_advance).await
                }
            };
            if is_over {
                return;
            }
            if self.look_beside(&follower.consumer).await {
                follower = Follower::new(&self.engine);
            }
            if trim_at <= Instant::now() {
                trim_at = Instant::now() + TRIM_EVERY;
                if let Err(error) = follower.consumer.trim().await {
                    debug!(error = %chain(&error), "the outbox is trimmed later");
                }
            }
            let began = Instant::now();
            let step = Box::pin(follower.step(must_advance)).await;
            if follower.consumer.take_made_pending() {
                self.context.epoch_keeper.now();
            }
            match step {
                Ok(step @ (Step::Idle | Step::Applied(_))) => {
                    self.note(None);
                    retry.reset();
                    let has_advanced = must_advance || matches!(step, Step::Applied(_));
                    if has_advanced && advanced.replace(Instant::now()).is_none() {
                        // There is a watermark now, which the first backfills wait for.
                        self.context.epoch_keeper.now();
                    }
                    is_woken = self.wake.is_requested_within(interval.after(step, began.elapsed())).await;
                }
                // It is waited for, and takes no longer than it must.
                Ok(Step::Waiting) if self.looking.is_some() => tokio::time::sleep(RETRY_MIN).await,
                Ok(Step::Waiting | Step::Again) => retry.wait().await,
                Err(error) => {
                    self.on_error(&error).await;
                    retry.wait_or(self.engine.redis.connected_again()).await;
                }
            }
        }
    }

    async fn on_error(&mut self, error: &EngineError) {
        let engine = &self.context.engine;
        match error {
            EngineError::RedisRolledBack => {
                let what = "redis rolled back to an older state, the feed goes on from there";
                if let Some(times) = log_limit::due(what, "", 1) {
                    warn!(times, "{what}");
                }
                engine.metrics.gaps.get_or_create(&ByReason::new("redis_rolled_back")).inc();
                if let Err(error) = epoch::renew(engine).await {
                    debug!(error = %chain(&error), "a new epoch could not begin, trying again");
                }
                self.context.epoch_keeper.now();
            }
            EngineError::PreconditionFailed(gone) => {
                debug!(%gone, "the current epoch changed, the feed begins again");
            }
            error => self.note_error(error).await,
        }
    }

    /// Says once that the feed cannot go on; where the schema is not as it should be, what is wrong with it.
    async fn note_error(&mut self, error: &EngineError) {
        self.note(Some(error.told()));
        let EngineError::Source(source) = error else { return };
        if !source.may_be_of_the_schema() {
            return;
        }
        let flaws = self.context.engine.postgres.schema_flaws().await.unwrap_or_default();
        let reason = if !flaws.is_empty() {
            Some(format!(
                "the schema `cachekeeper` is damaged: {}; run `cachekeeper migrate`",
                flaws.join("; ")
            ))
        } else if source.kind == ErrorKind::Forbidden {
            let text = "this role has not the rights that it needs in the schema `cachekeeper`";
            Some(format!("{text}: {}; run `cachekeeper migrate --grant ROLE` as its owner", source.message()))
        } else {
            None
        };
        let known = self.context.health.facts().schema;
        if let Some(reason) = reason.as_ref().filter(|_| known != reason) {
            warn!(reason, "the feed cannot go on before the schema is mended");
        }
        self.context.health.update(|facts| facts.schema = reason);
    }

    /// Says once that the feed cannot go on, and once that it does.
    fn note(&mut self, trouble: Option<String>) {
        match (&trouble, self.is_failing) {
            (Some(text), false) => warn!(error = text, "the feed cannot go on, trying again"),
            (None, true) => {
                self.context.health.update(|facts| facts.schema = None);
                info!("the feed goes on");
            }
            _ => {}
        }
        self.is_failing = trouble.is_some();
    }

    /// Computes the coverage where it is due, beside the changes: the cursor does not wait for it. Whether other definitions are
    /// followed from now on.
    async fn look_beside(&mut self, follower: &FeedConsumer) -> bool {
        let mut is_new = false;
        if let Some(looking) = self.looking.as_mut().filter(|looking| looking.has_ended()) {
            let looked = looking.result().await;
            self.looking = None;
            let catalog = Arc::clone(&self.engine.catalog);
            match looked {
                Some(looked) => self.on_looked(looked).await,
                None => warn!("computing the coverage panicked, trying again"),
            }
            is_new = !Arc::ptr_eq(&catalog, &self.engine.catalog);
        }
        let is_wanting = || {
            let known = self.context.engine.coverage();
            known.is_none_or(|known| known.is_to_be_completed || known.gaps().next().is_some())
        };
        let is_due = (follower.wants_coverage() || self.follows_others())
            && LOOK_MIN < self.looked_at.elapsed()
            || self.look_at <= Instant::now() && is_wanting();
        if self.looking.is_none() && is_due {
            self.looking = Some(Background::spawn(self.compute()));
        }
        is_new
    }

    /// Computes the coverage.
    async fn look(&mut self) {
        self.looking = None;
        let looked = self.compute().await;
        self.on_looked(looked).await;
    }

    /// What is registered, and the coverage of it.
    fn compute(&self) -> impl Future<Output = Result<Looked, EngineError>> + Send + 'static {
        let (own, may_install) = (self.context.engine.clone(), self.may_install);
        let known = (!self.follows_others()).then(|| (self.engine.clone(), Arc::clone(&self.followed)));
        async move {
            let (engine, followed) = match known {
                Some(known) => known,
                None => {
                    let followed = own.registered();
                    (definitions::following(&own).await?, followed)
                }
            };
            let coverage = coverage::look(&engine, may_install).await?;
            Ok(Looked { engine, followed, coverage })
        }
    }

    /// Whether other definitions are registered than those that are followed.
    fn follows_others(&self) -> bool {
        let now = self.context.engine.registered();
        !Arc::ptr_eq(&now, &self.followed) && !now.has_same_definitions(&self.followed)
    }

    /// Whether nobody else is fitter to lead: another worker has every definition that counts, and this one has not.
    fn may_lead(&self) -> bool {
        self.context.engine.may_lead()
    }

    /// Whether the catalogs are as they were when the coverage was computed.
    async fn is_current(&self) -> bool {
        match self.context.engine.coverage() {
            Some(coverage)
                if coverage.gaps().next().is_none()
                    && !coverage.is_to_be_completed
                    && !self.follows_others() =>
            {
                coverage::is_current(&self.engine, &coverage).await.unwrap_or(false)
            }
            _ => false,
        }
    }

    async fn on_looked(&mut self, looked: Result<Looked, EngineError>) {
        self.looked_at = Instant::now();
        match looked {
            Ok(Looked { engine, followed, coverage }) => {
                (self.engine, self.followed) = (engine, followed);
                let (before, is_whole) = (self.reasons.clone(), !coverage.is_to_be_completed);
                self.tell(&coverage);
                self.context.engine.set_coverage(coverage);
                self.note_watched().await;
                if (self.reasons.is_empty() && is_whole) || before != self.reasons {
                    self.looks.reset();
                }
                self.look_at = Instant::now() + self.looks.pause();
            }
            Err(error) => {
                self.note_error(&error).await;
                self.look_at = Instant::now() + LOOK_AGAIN;
            }
        }
    }

    /// Notes which tables this namespace watches, once for each time that this worker leads.
    async fn note_watched(&mut self) {
        if !self.may_install || self.is_noted {
            return;
        }
        self.is_noted = true;
        if let Err(error) = namespaces::note_watched(&self.engine).await {
            debug!(error = %chain(&error), "it is not noted which tables are watched; `migrate` notes it");
        }
    }

    fn tell(&mut self, coverage: &Coverage) {
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
            let catalog = self.context.engine.catalog.iter();
            for dataset in catalog.filter(|dataset| dataset.settings.feed == FeedNeed::Required) {
                if let Some(reason) = found.get(dataset.name()) {
                    facts.unmet.insert(dataset.name().to_owned(), reason.clone());
                }
            }
        });
        self.reasons = found;
    }
}

async fn wait_to_lead(context: &TaskContext) -> Lease {
    loop {
        while !context.engine.may_lead() {
            tokio::time::sleep(WATCH_EVERY).await;
        }
        let lease = context.elector.lead(&LeaseName::FEED).await;
        if context.engine.may_lead() {
            return lease;
        }
    }
}
