//! The demonstration: private servers, a shop, load, faults if wanted, and a comparison of everything at the end.

pub mod client;
pub mod cluster_events;
pub mod failover;
pub mod load;
pub mod servers;
pub mod shop;
pub mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::failover::FirstLeader;
use self::load::Shoppers;
use self::servers::Servers;
use self::shop::Size;
use self::view::{Scene, View};
use crate::actors::TASKS;
use crate::app::Worker;
use crate::shards;
use crate::supervisor::SupervisorMessage;
use cachekeeper_config::Config;
use cachekeeper_engine::audit::{Comparison, Extent, compare};
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::explain::explain;
use cachekeeper_engine::stores::redis::PlacedShard;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::units::parse_duration;
use cachekeeper_testkit::servers::{Postgres, free_port};

/// Options of `cachekeeper demo`.
#[derive(Debug, Args)]
pub struct Options {
    /// End after this long, for example 30s [default: at Ctrl-C]
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
    /// Kill an actor, Postgres or Redis every few seconds
    #[arg(long, conflicts_with = "cluster")]
    faults: bool,
    /// With a Redis Cluster of six nodes: cluster slots move, and a master is killed
    #[arg(long)]
    cluster: bool,
    /// How many products the shop has; the other tables go by that
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=1_000_000))]
    products: u32,
}

/// How the demonstration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Redis and Postgres agree.
    Agreed,
    /// They do not, or something failed.
    Differed,
    /// The options were wrong.
    Misused,
    /// The private servers could not be started.
    NoServers,
}

const CONFIG: &str = include_str!("../config/demo.toml");
/// The address of the admin listener, where it is not given: a free one of this machine.
const LISTEN: &str = "CACHEKEEPER__ADMIN__LISTEN";
const SHOWN: [u32; 4] = [1, 2, 3, 42];
/// The key that is explained at the end.
const EXPLAINED: &str = "product:42";
/// When the worker that leads first is killed, where the demo does not end before twice that.
const FAILOVER_AFTER: Duration = Duration::from_secs(10);
const FAULT_EVERY: Duration = Duration::from_secs(6);
/// How long the servers are waited for when their sizes are shown.
const SHOWN_WITHIN: Duration = Duration::from_millis(300);
/// How long the worker may take to catch up when the load has ended.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);

/// Runs the demonstration.
pub async fn run(options: &Options, environment: &BTreeMap<String, String>) -> Ending {
    let mut view = View::default();
    let duration = match options.duration.as_deref().map(parse_duration).transpose() {
        Ok(duration) => duration,
        Err(help) => {
            view.say(&format!("error: --for: {help}"));
            return Ending::Misused;
        }
    };
    let shop = Size { products: options.products };
    match Stage::build((shop, options.cluster), environment, &mut view).await {
        Ok(stage) => stage.play(duration, options.faults, view).await.unwrap_or_else(|error| {
            View::default().say(&format!("error: {error:#}"));
            Ending::Differed
        }),
        Err(error) => {
            view.say(&format!("error: {error:#}"));
            Ending::NoServers
        }
    }
}

/// The settings of the demo's workers: those of the environment, with the private servers.
fn settings(
    environment: &BTreeMap<String, String>,
    postgres: &Postgres,
    redis: &Servers,
) -> anyhow::Result<BTreeMap<String, String>> {
    let own = environment.iter().filter(|(name, _)| name.starts_with("CACHEKEEPER__"));
    let mut settings: BTreeMap<String, String> =
        own.map(|(name, value)| (name.clone(), value.clone())).collect();
    settings.insert("CACHEKEEPER__POSTGRES__URL".to_owned(), postgres.url());
    settings.insert("CACHEKEEPER__REDIS__URL".to_owned(), redis.url());
    if matches!(redis, Servers::Cluster(_)) {
        // No stream of events is read on a cluster yet.
        settings.insert("CACHEKEEPER__INVALIDATION__STREAM".to_owned(), String::new());
    }
    settings.entry("CACHEKEEPER__LOG__LEVEL".to_owned()).or_insert_with(|| "error".to_owned());
    let free = format!("127.0.0.1:{}", free_port()?);
    settings.entry(LISTEN.to_owned()).or_insert(free);
    Ok(settings)
}

/// Everything that the demo has running.
struct Stage {
    postgres: Postgres,
    redis: Servers,
    config: Config,
    worker: Worker,
    /// On a single Redis.
    first: Option<FirstLeader>,
    shoppers: Shoppers,
    happened: Vec<String>,
    next_fault: usize,
}

impl Stage {
    async fn build(
        (shop, is_cluster): (Size, bool),
        environment: &BTreeMap<String, String>,
        view: &mut View,
    ) -> anyhow::Result<Self> {
        let one = if is_cluster { "Redis Cluster: three masters, three replicas" } else { "Redis" };
        view.say(&format!("starting a private Postgres and a private {one} …"));
        let (postgres, redis) = tokio::try_join!(Postgres::start(&[]), Servers::start(is_cluster))?;
        view.say(&format!("  {}\n  {}", postgres.url(), redis.url()));
        view.say(&format!("filling the shop: {} …", shop.told()));
        postgres.execute(&shop.sql()).await?;
        let environment = settings(environment, &postgres, &redis)?;
        let (path, check) = (Path::new("config/demo.toml"), crate::schedule::check);
        let (config, _warnings) = Config::load_with(path, CONFIG.to_owned(), &environment, check)
            .map_err(|problems| anyhow::anyhow!("{}", cachekeeper_config::diagnostic::render(&problems)))?;
        crate::telemetry::start(&config.log).map_err(anyhow::Error::msg)?;
        let shoppers = Shoppers::new(shop, &postgres.url(), &redis.url())?;
        let context = cachekeeper_engine::context::Context::new(&config)?;
        context.postgres.migrate().await?;
        let how_many = if is_cluster { "a worker" } else { "two workers" };
        view.say(&format!("starting {how_many}: five datasets, see config/demo.toml"));
        let first =
            if is_cluster { None } else { Some(FirstLeader::start(CONFIG, &environment, &context).await?) };
        let listen = config.admin.listen.clone();
        let worker = Worker::start(config.clone()).await?;
        let shown = if is_cluster { "its health" } else { "the page of the second" };
        let path = if is_cluster { "healthz" } else { "" };
        view.say(&listen.map_or(String::new(), |listen| format!("{shown}: http://{listen}/{path}\n")));
        Ok(Self { postgres, redis, config, worker, first, shoppers, happened: Vec::new(), next_fault: 0 })
    }

    async fn play(
        mut self,
        duration: Option<Duration>,
        with_faults: bool,
        mut view: View,
    ) -> anyhow::Result<Ending> {
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..2 {
            tasks.spawn(self.shoppers.clone().read(stop.clone()));
        }
        tasks.spawn(self.shoppers.clone().write(stop.clone()));
        let failover_after = duration.map_or(FAILOVER_AFTER, |duration| FAILOVER_AFTER.min(duration / 2));
        let (tell, mut told) = mpsc::unbounded_channel();
        let events = match &self.redis {
            Servers::One(_) => None,
            Servers::Cluster(cluster) => {
                let after = duration.map_or(FAILOVER_AFTER, |duration| FAILOVER_AFTER.min(duration / 3));
                Some(tokio::spawn(cluster_events::run(Arc::clone(cluster), after, tell, stop.clone())))
            }
        };
        let began = Instant::now();
        let mut last_fault = began;
        let mut tick = tokio::time::interval(view.pause());
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => break,
                _ = tick.tick() => {}
            }
            if with_faults && FAULT_EVERY < last_fault.elapsed() {
                last_fault = Instant::now();
                self.fault().await?;
            }
            if let Some(first) = &mut self.first {
                if failover_after < began.elapsed() {
                    self.happened.extend(first.kill(&self.worker.context));
                }
                self.happened.extend(first.taken_over().await);
            }
            while let Ok(text) = told.try_recv() {
                self.happened.push(text);
            }
            self.show(&mut view).await;
            if view.is_closed() || duration.is_some_and(|duration| duration <= began.elapsed()) {
                break;
            }
        }
        let took = began.elapsed();
        view.say("\nthe load ends, the worker catches up …");
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        if let Some(events) = events {
            // What has begun comes to its end.
            events.await??;
        }
        while let Ok(text) = told.try_recv() {
            self.happened.push(text);
        }
        self.settle(&mut view).await;
        let exit = self.report(took, &mut view).await?;
        let in_time = self.worker.stop().await;
        view.say(if in_time { "worker stopped" } else { "the worker did not stop in time" });
        Ok(exit)
    }

    async fn show(&mut self, view: &mut View) {
        // While a server is down nobody waits for it here.
        let (entries, memory) = tokio::time::timeout(SHOWN_WITHIN, self.sizes()).await.ok().flatten().unzip();
        let prices = self.shoppers.peek(&SHOWN).await;
        view.draw(&Scene {
            counts: &self.shoppers.counts,
            health: &self.worker.health,
            entries,
            memory,
            prices: &prices,
            happened: &self.happened,
        });
    }

    /// Entries and bytes of all servers that applications read.
    async fn sizes(&self) -> Option<(u64, u64)> {
        let (mut entries, mut bytes) = (0, 0);
        for shard in shards::all(&self.config, &self.worker.context).await.ok()? {
            entries += shard.redis.key_count().await.ok()?;
            bytes += shard.redis.facts().await.ok()?.used_memory;
        }
        Some((entries, bytes))
    }

    /// The next fault of the round: each actor, then the servers.
    async fn fault(&mut self) -> anyhow::Result<()> {
        let Servers::One(redis) = &mut self.redis else { return Ok(()) };
        let which = self.next_fault % (TASKS.len() + 3);
        self.next_fault += 1;
        let text = match TASKS.get(which) {
            Some(task) => {
                drop(self.worker.supervisor().cast(SupervisorMessage::Kill(task.name)));
                format!("killed the actor {}", task.name)
            }
            None if which == TASKS.len() => {
                self.postgres.kill();
                self.postgres.start_again().await?;
                "killed Postgres with -9 and started it again".to_owned()
            }
            None if which == TASKS.len() + 1 => {
                redis.kill();
                redis.start_again().await?;
                "killed Redis with -9: it came back empty".to_owned()
            }
            None => {
                let client = redis::Client::open(redis.url())?;
                let mut connection = client.get_multiplexed_async_connection().await?;
                let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await?;
                "flushed Redis".to_owned()
            }
        };
        self.happened.push(text);
        Ok(())
    }

    /// Waits until nothing is pending, everything is warm, and no event waits.
    async fn settle(&mut self, view: &mut View) {
        let deadline = Instant::now() + SETTLE_WITHIN;
        let mut quiet = 0;
        while quiet < 3 && Instant::now() < deadline {
            let is_ready = self.worker.health.reasons().is_empty();
            let is_paid = self.is_paid().await.unwrap_or(false);
            let pending = self.worker.context.metrics.events_pending.get();
            quiet = if is_ready && is_paid && pending == 0 { quiet + 1 } else { 0 };
            self.show(view).await;
            tokio::time::sleep(view.pause()).await;
        }
    }

    /// Whether nothing is pending on any shard, and each entry is covered.
    async fn is_paid(&self) -> anyhow::Result<bool> {
        for shard in shards::all(&self.config, &self.worker.context).await? {
            let metadata = shard.redis.metadata("").await?;
            if !metadata.is_whole || metadata.reasons().next().is_some() || !metadata.backfills.is_empty() {
                return Ok(false);
            }
        }
        let Some(cluster) = &self.worker.context.cluster else { return Ok(true) };
        let placed = shards::of_cluster(&self.config, (&self.worker.context, cluster)).await?;
        let placed: Vec<PlacedShard> = placed.into_iter().map(|(shard, _)| shard).collect();
        let map = cluster.map().await?;
        let covers = cluster.watermark(&map, &placed).await?.and_then(|watermark| watermark.covers);
        Ok(covers == Some(ClusterSlotSet::all()))
    }

    async fn report(&mut self, took: Duration, view: &mut View) -> anyhow::Result<Ending> {
        view.say("\nevery entry in Redis against Postgres:");
        let mut is_clean = true;
        let mut checked = 0;
        let all = shards::all(&self.config, &self.worker.context).await?;
        let extent = Extent::default();
        for name in self.config.datasets.iter().map(|dataset| dataset.name.as_str()) {
            let mut found = Comparison { dataset: name.to_owned(), ..Comparison::default() };
            for context in &all {
                let Some(dataset) = context.catalog.get(name) else { continue };
                found.add(with_current_epoch(context, || compare(context, dataset, &extent)).await?);
            }
            is_clean &= found.is_clean();
            checked += found.checked;
            view.say(&format!("  {found}"));
        }
        for text in &self.happened {
            view.say(&format!("  meanwhile: {text}"));
        }
        if let Some(context) = shards::of_key(&self.config, &self.worker.context, EXPLAINED).await? {
            let explained = explain(&context, EXPLAINED).await?;
            view.say(&format!("\ncachekeeper explain {EXPLAINED}\n  {}", explained.verdict.sentence));
        }
        view.say(&format!("\n{}\n{checked} entries were compared.", self.shoppers.counts.told(took)));
        view.say(if is_clean { "\nRedis and Postgres agree" } else { "\nRedis and Postgres do NOT agree" });
        Ok(if is_clean { Ending::Agreed } else { Ending::Differed })
    }
}
