//! What every task is given. It outlives the restarts of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{ActorCell, SpawnErr};
use tokio_util::sync::CancellationToken;

use super::clock::now_ms;
use super::health::Health;
use super::inbox::{MissedKeys, Since, WantedBackfills};
use super::seen_events::SeenEvents;
use super::wake::Wake;
use crate::control::Control;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::lease::{Elector, Renewer, Wakeups, unique_owner};
use cachekeeper_engine::metrics::{ByReason, BySource};
use cachekeeper_engine::stores::redis::{Cluster, PlacedShard};
use cachekeeper_protocol::event::Event;

/// The socket of the admin listener. It stays open from one worker of a process to the next, so that nobody is turned away, and is
/// served by one at a time.
pub type ListenerSlot = Arc<tokio::sync::Mutex<Option<(SocketAddr, std::net::TcpListener)>>>;

/// How a worker lets go of the admin listener: it answers what was asked, and takes nothing new.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// It is to let go.
    pub begun: CancellationToken,
    /// It has.
    pub done: CancellationToken,
}

/// What a worker takes over from the one before it in the same process; nothing, for the first.
#[derive(Clone, Debug, Default)]
pub struct Handover {
    /// Takes what the process is asked for.
    pub control: Control,
    /// The socket of the admin listener.
    pub listener: ListenerSlot,
    /// Datasets that need not be warmed at the start.
    pub warmed: BTreeSet<String>,
}

/// Starts the tasks of one shard, which have so long to stop.
pub type StartShard = fn(TaskContext, Duration) -> BoxFuture<'static, Result<ActorCell, SpawnErr>>;

/// What a worker on a cluster has as a whole.
#[derive(Clone, Debug)]
pub struct OfCluster {
    /// The cluster.
    pub cluster: Cluster,
    /// How a shard is begun.
    pub start: StartShard,
    /// How long the tasks of a shard may take to stop.
    pub stop_within: Duration,
    /// The shards that are followed.
    pub shards: FollowedShards,
}

/// The shards that are followed, by their numbers. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FollowedShards {
    shards: Arc<Mutex<BTreeMap<u32, FollowedShard>>>,
}

/// A shard that is followed.
#[derive(Clone, Debug)]
pub struct FollowedShard {
    /// Which, and where.
    pub placed: PlacedShard,
    /// What its tasks are given.
    pub tasks: TaskContext,
    /// Its supervisor.
    pub root: ActorCell,
}

impl FollowedShards {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeMap<u32, FollowedShard> {
        self.lock().clone()
    }

    /// Adds one.
    pub fn add(&self, shard: FollowedShard) {
        self.lock().insert(shard.placed.number, shard);
    }

    /// Takes one out.
    pub fn remove(&self, number: u32) {
        self.lock().remove(&number);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, FollowedShard>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores, configuration, and what tasks share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// Stores, datasets and metrics.
    pub engine: Context,
    /// The configuration.
    pub config: Arc<Config>,
    /// Facts behind readiness.
    pub health: Health,
    /// Names this process in leases and streams.
    pub owner: Arc<str>,
    /// Renews the leases of this process.
    pub renewer: Renewer,
    /// Takes them.
    pub elector: Elector,
    /// Wakes the epoch keeper: something has become pending, or the epoch may have ended.
    pub epoch_keeper: Wake,
    /// Wakes the change feed: something is revalidated or filled, so the watermark may name fewer datasets.
    pub change_feed: Wake,
    /// Backfills that are wanted.
    pub backfills: WantedBackfills,
    /// Misses that are to be filled.
    pub misses: MissedKeys,
    /// Events that were applied, by either way.
    pub seen: SeenEvents,
    /// Takes what the process is asked for.
    pub control: Control,
    /// The socket of the admin listener.
    pub listener: ListenerSlot,
    /// How this worker lets go of it.
    pub leaving: Leaving,
    /// On a cluster, of the worker as a whole: its shards.
    pub of_cluster: Option<OfCluster>,
}

impl TaskContext {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(config: Config, engine: Context, health: Health, handover: Handover) -> Self {
        let owner = engine.worker_name().map_or_else(unique_owner, str::to_owned);
        let renewer = Renewer::supervised(engine.redis.clone(), Arc::clone(&engine.metrics));
        let elector = Elector::new(renewer.clone(), Wakeups::new(engine.redis.clone()), &owner);
        Self {
            engine,
            config: Arc::new(config),
            health,
            owner: owner.into(),
            renewer,
            elector,
            epoch_keeper: Wake::default(),
            change_feed: Wake::default(),
            backfills: WantedBackfills::default(),
            misses: MissedKeys::default(),
            seen: SeenEvents::default(),
            control: handover.control,
            listener: handover.listener,
            leaving: Leaving::default(),
            of_cluster: None,
        }
    }

    /// What the tasks of a shard are given by the worker as a whole.
    #[must_use]
    pub fn of_shard(&self, engine: Context, health: Health) -> Self {
        let handover = Handover { control: self.control.clone(), ..Handover::default() };
        Self {
            config: Arc::clone(&self.config),
            ..Self::new((*self.config).clone(), engine, health, handover)
        }
    }

    /// Has keys filled that applications missed.
    pub fn fill_soon(&self, keys: impl IntoIterator<Item = String>) {
        if 0 < self.misses.add(keys) {
            self.engine.metrics.gaps.get_or_create(&ByReason::new("misses_overflow")).inc();
        }
    }

    /// Events were applied; of these datasets they want a backfill. That is written down in Redis too, so that nothing is
    /// lost with this process.
    pub fn note_applied(&self, source: &str, events: &[Event], datasets: &[String]) {
        let lags = &self.engine.metrics.event_lag_seconds;
        let now = now_ms();
        for event in events {
            self.seen.remember(event);
            if let Some(at) = event.at_ms {
                #[expect(clippy::cast_precision_loss, reason = "seconds for a histogram")]
                let lag = now.saturating_sub(at) as f64 / 1000.0;
                lags.get_or_create(&BySource::new(source)).observe(lag);
            }
        }
        if !datasets.is_empty() {
            self.epoch_keeper.now();
        }
        for dataset in datasets {
            self.backfills.want(dataset, Since::now());
        }
    }
}
