//! The oracle: while programs write and servers die, readers log what they see; then everything they saw is checked
//! against the history that the writers left in the database.

mod bulk_faults;
mod clock_faults;
mod cluster;
mod database_faults;
mod faults;
mod load;
mod network;
mod producers;
mod replicas;
mod rights_faults;
mod rollout_faults;
mod schema;
mod settled;
mod shape_faults;
mod upgrade;
mod verdict;
mod writer_faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachekeeper_config::{Config, Secret};
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::{Clock, Postgres, Redis, Session};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::ledger::Told;
use crate::process::{Launch, WorkerProcess};
use crate::support::{Rig, wait_until};
use faults::Fault;
use load::Observed;
use network::{Encryption, Network};
use replicas::Replicas;
use schema::DATASETS;
use verdict::Lives;

/// What a run shares.
pub struct Arena {
    pub rig: tokio::sync::Mutex<Rig>,
    /// How workers are started.
    pub launch: Arc<Launch>,
    /// What stands between workers and servers, and what the servers have beside them.
    network: Option<Network>,
    replicas: Option<Replicas>,
    /// How the worker's role comes to the database, and anybody to Redis, past the network.
    worker_url: String,
    pub redis_url: String,
    /// How programs come to the database.
    pub writer_url: String,
    pub clocks: Clocks,
    pub is_over: AtomicBool,
    /// While it is raised nobody writes or locks a whole table, or writes what many entries are made of: entries stay as they are
    /// until their own rows change, or a backfill comes.
    pub is_gentle: AtomicBool,
    /// Told when a fault for which everything else has to be at rest has happened.
    pub has_struck: tokio::sync::Notify,
    /// Raised when Redis was made to go back: from then on older values may be seen until a worker notices.
    pub redis_life: std::sync::atomic::AtomicU64,
    /// While some connections lead to another Redis: what is stored through them is not in this one.
    pub is_split: AtomicBool,
    pub observed: Observed,
}

pub fn seed_of_run() -> u64 {
    let given = std::env::var("CACHEKEEPER_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("CACHEKEEPER_SEED={seed}");
    seed
}

/// How workers and libraries come to the servers.
#[derive(Clone, Copy)]
enum World {
    /// Directly.
    Plain,
    /// Through proxies and a pooler.
    Network,
    /// The same over TLS.
    Tls,
    /// By sentinels, and by a list of hosts.
    Replicas,
}

/// A clock for each kind of process.
pub struct Clocks {
    pub postgres: Clock,
    pub redis: Clock,
    pub workers: Clock,
}

impl Arena {
    async fn start() -> Arc<Self> {
        Self::start_in(World::Plain).await
    }

    async fn start_in(world: World) -> Arc<Self> {
        let settings = [
            "max_prepared_transactions=10",
            "deadlock_timeout=100ms",
            "wal_level=logical",
            "wal_retrieve_retry_interval=200ms",
        ];
        let clock = || Clock::new().unwrap();
        let clocks = Clocks { postgres: clock(), redis: clock(), workers: clock() };
        let (for_postgres, for_redis) = (clocks.postgres.environment(), clocks.redis.environment());
        let encryption = matches!(world, World::Tls).then(Encryption::new);
        let mut arguments = vec!["--enable-debug-command".to_owned(), "yes".to_owned()];
        arguments.extend(encryption.iter().flat_map(Encryption::of_redis));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (postgres, redis) = tokio::join!(
            Postgres::start_with(&settings, &for_postgres),
            Redis::start_with(&arguments, &for_redis)
        );
        let rig = Rig { postgres: postgres.unwrap(), redis: redis.unwrap() };
        rig.postgres.execute(schema::ROLES).await.unwrap();
        let (mut worker_url, mut writer_url) =
            (rig.postgres.url_as(schema::WORKER), rig.postgres.url_as(schema::WRITER));
        Session::open(&worker_url).await.unwrap().execute(schema::TABLES).await.unwrap();
        let (mut network, mut replicas, mut redis_url) = (None, None, rig.redis.url());
        let (mut postgres_of_workers, mut redis_of_workers) = (worker_url.clone(), redis_url.clone());
        match world {
            World::Plain => {}
            World::Network | World::Tls => {
                let between = Network::before(&rig, encryption).await;
                (postgres_of_workers, redis_of_workers) = (between.postgres_url(), between.redis_url());
                network = Some(between);
            }
            World::Replicas => {
                let beside = Replicas::beside(&rig).await;
                (postgres_of_workers, redis_of_workers) = (beside.postgres_url(), beside.redis_url());
                (worker_url, writer_url) =
                    (beside.postgres_address(schema::WORKER), beside.postgres_address(schema::WRITER));
                redis_url = beside.redis_address();
                replicas = Some(beside);
            }
        }
        let mut environment = clocks.workers.environment().to_vec();
        if let Some(trusted) = network.as_ref().and_then(Network::trusted) {
            environment.push(("CACHEKEEPER__REDIS__CA_FILE", trusted.display().to_string()));
        }
        let launch = Launch {
            program: crate::process::program(),
            toml: DATASETS.as_str(),
            postgres_url: postgres_of_workers,
            redis_url: redis_of_workers,
            environment,
        };
        let arena = Arc::new(Self {
            rig: tokio::sync::Mutex::new(rig),
            launch: Arc::new(launch),
            network,
            replicas,
            worker_url,
            redis_url,
            writer_url,
            clocks,
            is_over: AtomicBool::new(false),
            is_gentle: AtomicBool::new(false),
            has_struck: tokio::sync::Notify::new(),
            redis_life: std::sync::atomic::AtomicU64::new(0),
            is_split: AtomicBool::new(false),
            observed: Observed::default(),
        });
        arena.context().await.postgres.migrate().await.unwrap();
        arena
    }

    /// The worker's configuration.
    async fn config(&self) -> Config {
        let mut config = self.config_with(&self.launch.postgres_url, &self.launch.redis_url).await;
        config.redis.tls.ca_file = self.network.as_ref().and_then(Network::trusted);
        config
    }

    async fn config_with(&self, postgres: &str, redis: &str) -> Config {
        let mut config = self.rig.lock().await.config(DATASETS.as_str());
        config.postgres.url = Secret::new(postgres.to_owned());
        config.redis.url = Secret::new(redis.to_owned());
        config
    }

    /// That of a worker which comes to the servers past the network.
    async fn context(&self) -> Context {
        Context::of_worker(&self.config_with(&self.worker_url, &self.redis_url).await).unwrap()
    }
}

/// `CACHEKEEPER_FAULTS` faults under load, of all kinds, one by one and in pairs: no promise is broken, and nobody lends a hand.
/// Without that number each kind of the short form, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_breaks_a_promise() {
    let wanted = wanted();
    let mut every = if wanted.is_some() { Fault::all() } else { Fault::of_the_short_form() };
    let only = std::env::var("CACHEKEEPER_ONLY").unwrap_or_default();
    every.retain(|fault| {
        only.is_empty() || only.split(',').any(|name| format!("{fault:?}").starts_with(name))
    });
    suffer(World::Plain, &every, wanted.unwrap_or(0)).await;
}

/// How many faults a long run is to have; none: the short form.
fn wanted() -> Option<usize> {
    std::env::var("CACHEKEEPER_FAULTS").ok().and_then(|text| text.parse().ok())
}

/// The faults of a world once; in a long run that many, in pairs with others.
async fn suffer_with(world: World, faults: &[Fault], others: Vec<Fault>) {
    let wanted = wanted();
    let others = if wanted.is_some() { others } else { Vec::new() };
    suffer(world, &[faults.to_vec(), others].concat(), wanted.unwrap_or(0)).await;
}

/// Every one of these faults once, and then more in random order, up to that number.
async fn suffer(world: World, every: &[Fault], wanted: usize) {
    let arena = Arena::start_in(world).await;
    let crashes: Vec<Fault> = Fault::CRASHES.iter().copied().filter(|fault| every.contains(fault)).collect();
    let seed = seed_of_run();
    let mut random = StdRng::seed_from_u64(seed);
    let mut workers = vec![WorkerProcess::start(&arena.launch, ""), WorkerProcess::start(&arena.launch, "")];
    let mut tasks = load::start(&arena, seed);
    tasks.extend(producers::start(&arena, seed).await);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    let began = tokio::time::Instant::now();
    let mut injected = 0;
    while injected < wanted.max(every.len()) {
        let next = every.get(injected).copied();
        let mut chosen = vec![next.unwrap_or_else(|| every[random.random_range(0..every.len())])];
        if every.len() <= injected && random.random_bool(0.4) {
            let is_crash = random.random_bool(0.5) && !crashes.is_empty();
            let others = if is_crash { &crashes } else { every };
            chosen.push(others[random.random_range(0..others.len())]);
        }
        for fault in chosen {
            println!("{injected} {fault:?}, after {:?}", began.elapsed());
            fault.inject(&arena, &mut workers, &mut random, &mut lives).await;
            injected += 1;
        }
        settled::after_a_fault(&arena, &mut lives).await;
    }
    conclude(&arena, tasks, lives, injected, seed).await;
}

/// Lets everything come to rest, and judges what was seen.
async fn conclude(
    arena: &Arena,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    mut lives: Lives,
    injected: usize,
    seed: u64,
) {
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    settled::caught_up(arena).await;
    settled::no_command_is_left(arena).await;
    lives.note(arena).await;
    verdict::agrees(arena).await;
    let verdict = verdict::judge(arena, &lives).await;
    println!("{injected} faults, {verdict}");
    assert!(verdict.violations.is_empty(), "seed {seed}\n{}", verdict.violations.join("\n"));
    // Of a few faults, little is seen on a busy machine.
    let enough = (50 * injected).min(1_000);
    assert!(enough < verdict.checked && 100 < verdict.commits, "too little was looked at: {verdict}");
    let carried_out = arena.observed.told.lock().unwrap().count(Told::Done);
    assert!(enough < carried_out, "only {carried_out} writes were handed over");
}

/// The same checks must see the bug when the stamps are switched off: a test that cannot fail proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_stamps_the_oracle_finds_violations() {
    let seed = seed_of_run();
    let arena = Arena::start().await;
    let config = arena.config().await;
    let mut context = Context::of_worker(&config).unwrap();
    context.redis = context.redis.without_stamps();
    let worker = cachekeeper::app::Worker::start_with(config, context.clone()).await.unwrap();
    // Few entries: on a busy machine, too little is seen of many.
    let mut tasks = load::start(&arena, seed);
    tasks.extend(load::start_readers_of_few(&arena, seed));
    let fills = load::start_stalled_fills(&arena, &context, load::FEW);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    wait_until("the oracle has found a violation", || async {
        let verdict = verdict::judge(&arena, &lives).await;
        if verdict.violations.is_empty() { Err(verdict.to_string()) } else { Ok(()) }
    })
    .await;
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks.into_iter().chain(fills) {
        task.await.unwrap();
    }
    worker.stop().await;
}

/// With the stamps on, the same stalled fills break nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_fills_break_nothing() {
    let seed = seed_of_run();
    let arena = Arena::start().await;
    let config = arena.config().await;
    let context = Context::of_worker(&config).unwrap();
    let worker = cachekeeper::app::Worker::start_with(config, context.clone()).await.unwrap();
    let tasks = load::start(&arena, seed);
    let fills = load::start_stalled_fills(&arena, &context, 0..load::ITEMS);
    let mut lives = Lives::default();
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    wait_until("enough was seen", || async {
        let seen = arena.observed.len();
        if 3_000 < seen { Ok(()) } else { Err(format!("{seen}")) }
    })
    .await;
    arena.is_over.store(true, Ordering::SeqCst);
    for task in tasks.into_iter().chain(fills) {
        task.await.unwrap();
    }
    settled::caught_up(&arena).await;
    lives.note(&arena).await;
    verdict::agrees(&arena).await;
    let verdict = verdict::judge(&arena, &lives).await;
    println!("{verdict}");
    assert!(verdict.violations.is_empty(), "{}", verdict.violations.join("\n"));
    tokio::time::timeout(Duration::from_secs(30), worker.stop()).await.unwrap();
}
