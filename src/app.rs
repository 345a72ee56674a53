//! The worker as a whole: build the stores, look at the servers, run the actors, stop them in time.

mod looks;
mod on_cluster;
mod start_error;

use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use self::looks::{LookError, check_server, share_names};
pub use self::start_error::StartError;
use crate::actors::clock::now_ms;
use crate::actors::context::{Handover, Leaving, TaskContext};
use crate::actors::health::Health;
use crate::actors::{CLUSTER_TASKS, TASKS};
use crate::schedule;
use crate::supervisor::{Outcome, Supervisor, SupervisorArguments, SupervisorMessage};
use crate::telemetry;
use cachekeeper_config::{Config, FeedMode, ScheduleProblem};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::stores::postgres::ErrorKind;
use cachekeeper_engine::stores::redis::{CacheError, ServerFacts};

/// How long a start waits for what the servers say of themselves. A silent one is waited for with the worker running, so that
/// probes and scrapes are answered.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// How long the last answers over the admin listener may take, event streams included, which do not end by themselves.
const LEFT_WITHIN: Duration = Duration::from_secs(1);

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    root: ActorRef<SupervisorMessage>,
    join: JoinHandle<()>,
    outcome: oneshot::Receiver<Outcome>,
    /// Facts behind readiness.
    pub health: Health,
    /// Stores and metrics.
    pub context: Context,
    handover: Handover,
    leaving: Leaving,
    shutdown_timeout: Duration,
}

impl Worker {
    /// Starts the worker. Servers that are down are waited for, not ready; what waiting cannot mend is an error.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let context = Context::of_worker(&config)?;
        Self::start_with(config, context).await
    }

    /// The same with stores that the caller has prepared.
    pub async fn start_with(config: Config, context: Context) -> Result<Self, StartError> {
        Self::start_after(config, context, Handover::default()).await
    }

    /// The same after another worker of this process.
    pub async fn start_after(
        config: Config,
        context: Context,
        handover: Handover,
    ) -> Result<Self, StartError> {
        check_schedules(&config)?;
        let lost = context.metrics.log_lines_lost.clone();
        telemetry::count_lost_in(lost);
        let health = match &context.cluster {
            Some(_) => Health::of_cluster(context.metrics.clone()),
            None => Health::new(context.metrics.clone()),
        };
        let (redis, postgres) =
            tokio::join!(look_at_redis(&config, &context), look_at_postgres(&config, &context));
        match redis {
            // Known, so that readiness does not name it while it waits for another server.
            Ok(()) => drop(health.note("redis", Ok(()))),
            Err(LookError::Final(error)) => return Err(error),
            Err(LookError::NotNow(error)) => {
                warn!(error = %error, redis = %config.redis.url.redacted(), "redis does not answer yet, waiting for it");
            }
        }
        postgres?;
        health.update(|facts| {
            let warmed =
                config.datasets.iter().filter(|set| set.warm.as_ref().is_some_and(|warm| warm.on_start));
            let not_warmed = warmed.map(|dataset| dataset.name.clone());
            facts.not_warmed = not_warmed.filter(|name| !handover.warmed.contains(name)).collect();
            facts.max_lag = (config.feed.mode == FeedMode::Outbox).then_some(config.feed.max_lag);
        });
        let shutdown_timeout = config.service.shutdown_timeout;
        context.metrics.reload_ok.set(1);
        context.metrics.reload_seconds.set(i64::try_from(now_ms() / 1000).unwrap_or_default());
        info!(
            version = env!("CARGO_PKG_VERSION"),
            namespace = %config.service.namespace,
            datasets = config.datasets.len(),
            postgres = %config.postgres.url.redacted(),
            redis = %config.redis.url.redacted(),
            "worker starts"
        );
        let mut tasks = TaskContext::new(config, context.clone(), health.clone(), handover.clone());
        let leaving = tasks.leaving.clone();
        let (sender, outcome) = oneshot::channel();
        // A second less than the whole: the stores must be closed too.
        let stop_within = shutdown_timeout.saturating_sub(Duration::from_secs(1)).max(shutdown_timeout / 2);
        tasks.of_cluster = context.cluster.as_ref().map(|cluster| on_cluster::of(cluster, stop_within));
        let list = if context.cluster.is_some() { CLUSTER_TASKS.as_slice() } else { TASKS.as_slice() };
        let arguments = SupervisorArguments { context: tasks, tasks: list, stop_within, outcome: sender };
        let (root, join) = Actor::spawn(None, Supervisor, arguments).await.map_err(StartError::Spawn)?;
        Ok(Self { root, join, outcome, health, context, handover, leaving, shutdown_timeout })
    }

    /// The supervisor, for tests and the demo.
    #[must_use]
    pub fn supervisor(&self) -> &ActorRef<SupervisorMessage> {
        &self.root
    }

    /// What the next worker of this process takes over.
    #[must_use]
    pub fn handover(&self) -> Handover {
        self.handover.clone()
    }

    /// Has the worker answer what it was asked over the admin listener, and then leave the socket to the next one.
    pub async fn leave_listener(&self) {
        self.leaving.begun.cancel();
        // It may have none.
        drop(timeout(LEFT_WITHIN, self.leaving.done.cancelled()).await);
    }

    /// Waits until the worker ends by itself: an actor failed too often.
    pub async fn ended(&mut self) -> Outcome {
        (&mut self.outcome).await.unwrap_or(Outcome::GaveUp { task: "supervisor" })
    }

    /// Stops the worker within its time limit. True: in time.
    pub async fn stop(self) -> bool {
        self.health.update(|facts| facts.is_stopping = true);
        self.root.stop(Some("shutdown".to_owned()));
        let in_time = timeout(self.shutdown_timeout, self.join).await.is_ok();
        if timeout(Duration::from_secs(1), self.context.postgres.close()).await.is_err() {
            warn!("connections to postgres were still busy");
        }
        in_time
    }
}

/// A worker whose schedule never fires would leave old entries alone without anybody noticing.
fn check_schedules(config: &Config) -> Result<(), StartError> {
    for dataset in &config.datasets {
        let schedule = dataset.warm.as_ref().and_then(|warm| warm.schedule.as_ref());
        let problems = schedule.map(schedule::check).unwrap_or_default();
        if let Some(ScheduleProblem::Expression(message) | ScheduleProblem::TimeZone(message)) =
            problems.into_iter().next()
        {
            return Err(StartError::Schedule { dataset: dataset.name.clone(), message });
        }
    }
    Ok(())
}

/// A server that is down, a wrong password and a certificate can be mended while the worker waits, and their files are read
/// again; so can a pooler, but who starts a worker behind one should know at once.
async fn look_at_postgres(config: &Config, context: &Context) -> Result<(), StartError> {
    let error = match timeout(LOOK_LIMIT, context.postgres.ping()).await {
        // Who cannot tell is asked again by every task.
        Ok(Ok(())) => match timeout(LOOK_LIMIT, context.postgres.too_old()).await {
            Ok(Ok(Some(version))) => return Err(StartError::PostgresTooOld { version }),
            Ok(_) | Err(_) => return Ok(()),
        },
        Ok(Err(error)) if error.kind == ErrorKind::Pooler => return Err(StartError::Pooler(error.told())),
        Ok(Err(error)) => error.told(),
        Err(_) => silent(),
    };
    warn!(error, postgres = %config.postgres.url.redacted(), "postgres does not answer yet, waiting for it");
    Ok(())
}

fn silent() -> String {
    format!("no answer within {} s", LOOK_LIMIT.as_secs())
}

async fn look_at_redis(config: &Config, context: &Context) -> Result<(), LookError> {
    let looking = timeout(LOOK_LIMIT, ask_redis(config, context));
    looking.await.unwrap_or_else(|_| Err(LookError::NotNow(silent())))
}

async fn ask_redis(config: &Config, context: &Context) -> Result<(), LookError> {
    if let Some(cluster) = &context.cluster {
        return on_cluster::ask(config, context, cluster).await;
    }
    let not_now = |error: CacheError| LookError::NotNow(error.told());
    check_facts(config, context.redis.facts().await.map_err(not_now)?)?;
    if context.redis.is_led_by_former_version().await.map_err(not_now)? {
        let namespace = config.service.namespace.clone();
        return Err(LookError::Final(StartError::FormerVersion { namespace }));
    }
    share_names(config, context).await
}

fn check_facts(config: &Config, facts: ServerFacts) -> Result<(), LookError> {
    if facts.is_cluster_node {
        return Err(LookError::Final(StartError::ClusterNode));
    }
    check_server(config, facts)
}
