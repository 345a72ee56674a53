//! The worker as a whole: build the stores, look at the servers, run the actors, stop them in time.

mod on_cluster;

use std::time::Duration;

use ractor::{Actor, ActorRef};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::actors::clock::now_ms;
use crate::actors::{CLUSTER_TASKS, TASKS};
use crate::actors::context::{Handover, Leaving, TaskContext};
use crate::actors::health::Health;
use crate::schedule;
use crate::supervisor::{Outcome, Supervisor, SupervisorArguments, SupervisorMessage};
use crate::telemetry;
use cachekeeper_config::{Config, FeedMode, FeedNeed, ScheduleProblem};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::namespaces::{self, CONFLICT_HELP};
use cachekeeper_engine::stores::postgres::{ErrorKind, POSTGRES_MAJOR_MIN};
use cachekeeper_engine::stores::redis::{CacheError, REDIS_MAJOR_MIN, ServerFacts};

/// How long a start waits for what the servers say of themselves. A silent one is waited for with the worker running, so that
/// probes and scrapes are answered.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// What to do where the URL names a node of a cluster.
const CLUSTER_HELP: &str = "write redis+cluster://host:port,host:port with some of its nodes";

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

/// Why a worker cannot start. Waiting does not help.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A URL cannot be used.
    #[error(transparent)]
    Flow(#[from] EngineError),
    /// Who loaded the configuration did not check the schedules.
    #[error("the schedule of dataset {dataset} cannot be used: {message}")]
    Schedule {
        /// Which dataset.
        dataset: String,
        /// What is wrong.
        message: String,
    },
    /// The actors could not be started.
    #[error("the actors could not be started")]
    Spawn(#[source] ractor::SpawnErr),
    /// The server is too old.
    #[error("Redis {version} is too old: Cachekeeper needs {REDIS_MAJOR_MIN}.0 or newer (or Valkey)")]
    RedisTooOld {
        /// What it says.
        version: String,
    },
    /// The server is too old.
    #[error("Postgres {version} is too old: Cachekeeper needs {POSTGRES_MAJOR_MIN} or newer")]
    PostgresTooOld {
        /// What it says.
        version: i32,
    },
    /// No session would keep what is set and locked in it.
    #[error("{0}")]
    Pooler(String),
    /// The URL names one node of a cluster as if it were alone.
    #[error("this Redis is a node of a cluster: {CLUSTER_HELP}")]
    ClusterNode,
    /// Another namespace of this database uses the same keys.
    #[error("{message}; {CONFLICT_HELP}")]
    SharedNames {
        /// What both would use.
        message: String,
    },
    /// A worker of an earlier version still runs.
    #[error(
        "a worker of an earlier version leads the namespace {namespace:?}; it keeps other keys, and the two would write over each \
         other: stop all earlier workers and libraries, then start this one (a killed one is over after 10 s)"
    )]
    FormerVersion {
        /// Which.
        namespace: String,
    },
    /// Eviction could take what is required.
    #[error(
        "dataset {dataset} has feed = \"required\", but Redis may evict anything ({policy}); set maxmemory-policy to volatile-* or noeviction"
    )]
    Evicting {
        /// Which dataset.
        dataset: String,
        /// Redis's policy.
        policy: String,
    },
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

enum LookError {
    Final(StartError),
    NotNow(String),
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

/// What this namespace uses is made known, unless another one uses it.
async fn share_names(config: &Config, context: &Context) -> Result<(), LookError> {
    let not_now = |error: EngineError| LookError::NotNow(error.told());
    if let Some(conflict) = namespaces::conflicts(context, config).await.map_err(not_now)?.into_iter().next()
    {
        return Err(LookError::Final(StartError::SharedNames { message: conflict.message }));
    }
    namespaces::register(context, config).await.map_err(not_now)
}

fn check_facts(config: &Config, facts: ServerFacts) -> Result<(), LookError> {
    if facts.is_cluster_node {
        return Err(LookError::Final(StartError::ClusterNode));
    }
    check_server(config, facts)
}

fn check_server(config: &Config, facts: ServerFacts) -> Result<(), LookError> {
    if facts.is_too_old() {
        return Err(LookError::Final(StartError::RedisTooOld { version: facts.version }));
    }
    check_eviction(config, &facts)
}

fn check_eviction(config: &Config, facts: &ServerFacts) -> Result<(), LookError> {
    if !facts.evicts_anything() {
        return Ok(());
    }
    let policy = facts.maxmemory_policy.clone();
    if let Some(dataset) = config.datasets.iter().find(|dataset| dataset.feed == FeedNeed::Required) {
        let dataset = dataset.name.clone();
        return Err(LookError::Final(StartError::Evicting { dataset, policy }));
    }
    warn!(
        policy,
        "redis may evict the stamp tables; each time everything is revalidated. Better: volatile-lru, or noeviction"
    );
    Ok(())
}
