//! The demonstration: private servers, a shop, load, faults if wanted, and a comparison of everything at the end.

pub mod failover;
pub mod load;
pub mod shop;
pub mod view;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::failover::FirstLeader;
use self::load::Shoppers;
use self::shop::Size;
use self::view::{Scene, View};
use crate::actors::TASKS;
use crate::app::Worker;
use crate::supervisor::SupervisorMessage;
use cachekeeper_config::Config;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::explain::explain;
use cachekeeper_protocol::units::parse_duration;
use cachekeeper_testkit::servers::{Postgres, Redis, free_port};

/// Options of `cachekeeper demo`.
#[derive(Debug, Args)]
pub struct Options {
    /// End after this long, for example 30s [default: at Ctrl-C]
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<String>,
    /// Kill an actor, Postgres or Redis every few seconds
    #[arg(long)]
    faults: bool,
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
    match Stage::build(Size { products: options.products }, environment, &mut view).await {
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

/// Everything that the demo has running.
struct Stage {
    postgres: Postgres,
    redis: Redis,
    worker: Worker,
    first: FirstLeader,
    shoppers: Shoppers,
    happened: Vec<String>,
    next_fault: usize,
}

impl Stage {
    async fn build(
        shop: Size,
        environment: &BTreeMap<String, String>,
        view: &mut View,
    ) -> anyhow::Result<Self> {
        view.say("starting a private Postgres and a private Redis …");
        let (postgres, redis) = tokio::try_join!(Postgres::start(&[]), Redis::start(&[]))?;
        view.say(&format!("  {}\n  {}", postgres.url(), redis.url()));
        view.say(&format!("filling the shop: {} …", shop.told()));
        postgres.execute(&shop.sql()).await?;
        let mut environment: BTreeMap<String, String> = environment
            .iter()
            .filter(|(name, _)| name.starts_with("CACHEKEEPER__"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        environment.insert("CACHEKEEPER__POSTGRES__URL".to_owned(), postgres.url());
        environment.insert("CACHEKEEPER__REDIS__URL".to_owned(), redis.url());
        environment.entry("CACHEKEEPER__LOG__LEVEL".to_owned()).or_insert_with(|| "error".to_owned());
        let free = format!("127.0.0.1:{}", free_port()?);
        environment.entry(LISTEN.to_owned()).or_insert(free);
        let (path, check) = (Path::new("config/demo.toml"), crate::schedule::check);
        let (config, _warnings) = Config::load_with(path, CONFIG.to_owned(), &environment, check)
            .map_err(|problems| anyhow::anyhow!("{}", cachekeeper_config::diagnostic::render(&problems)))?;
        crate::telemetry::start(&config.log).map_err(anyhow::Error::msg)?;
        let shoppers = Shoppers::new(shop, &postgres.url(), &redis.url())?;
        let context = cachekeeper_engine::context::Context::new(&config)?;
        context.postgres.migrate().await?;
        view.say("starting two workers: five datasets, see config/demo.toml");
        let first = FirstLeader::start(CONFIG, &environment, &context).await?;
        let listen = config.admin.listen.clone();
        let worker = Worker::start(config).await?;
        view.say(
            &listen.map_or(String::new(), |listen| format!("the page of the second: http://{listen}/\n")),
        );
        Ok(Self { postgres, redis, worker, first, shoppers, happened: Vec::new(), next_fault: 0 })
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
            if failover_after < began.elapsed() {
                self.happened.extend(self.first.kill(&self.worker.context));
            }
            self.happened.extend(self.first.taken_over().await);
            self.show(&mut view).await;
            if view.is_closed() || duration.is_some_and(|duration| duration <= began.elapsed()) {
                break;
            }
        }
        let took = began.elapsed();
        view.say("\nthe load ends, the worker catches up …");
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        self.settle(&mut view).await;
        let exit = self.report(took, &mut view).await?;
        let in_time = self.worker.stop().await;
        view.say(if in_time { "worker stopped" } else { "the worker did not stop in time" });
        Ok(exit)
    }

    async fn show(&mut self, view: &mut View) {
        let facts = self.worker.context.redis.facts().await.ok();
        let entries = self.worker.context.redis.key_count().await.ok();
        let prices = self.shoppers.peek(&SHOWN).await;
        view.draw(&Scene {
            counts: &self.shoppers.counts,
            health: &self.worker.health,
            entries,
            memory: facts.map(|facts| facts.used_memory),
            prices: &prices,
            happened: &self.happened,
        });
    }

    /// The next fault of the round: each actor, then the servers.
    async fn fault(&mut self) -> anyhow::Result<()> {
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
                self.redis.kill();
                self.redis.start_again().await?;
                "killed Redis with -9: it came back empty".to_owned()
            }
            None => {
                let client = redis::Client::open(self.redis.url())?;
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
            let metadata = self.worker.context.redis.metadata("").await;
            let is_paid = metadata.is_ok_and(|metadata| {
                metadata.is_whole && metadata.reasons().next().is_none() && metadata.backfills.is_empty()
            });
            let pending = self.worker.context.metrics.events_pending.get();
            quiet = if is_ready && is_paid && pending == 0 { quiet + 1 } else { 0 };
            self.show(view).await;
            tokio::time::sleep(view.pause()).await;
        }
    }

    async fn report(&mut self, took: Duration, view: &mut View) -> anyhow::Result<Ending> {
        view.say("\nevery entry in Redis against Postgres:");
        let mut is_clean = true;
        let mut checked = 0;
        let context = self.worker.context.clone();
        let extent = Extent::default();
        for dataset in context.catalog.iter() {
            let found = with_current_epoch(&context, || compare(&context, dataset, &extent)).await?;
            is_clean &= found.is_clean();
            checked += found.checked;
            view.say(&format!("  {found}"));
        }
        for text in &self.happened {
            view.say(&format!("  meanwhile: {text}"));
        }
        let explained = explain(&context, EXPLAINED).await?;
        view.say(&format!("\ncachekeeper explain {EXPLAINED}\n  {}", explained.verdict.sentence));
        view.say(&format!("\n{}\n{checked} entries were compared.", self.shoppers.counts.told(took)));
        view.say(if is_clean { "\nRedis and Postgres agree" } else { "\nRedis and Postgres do NOT agree" });
        Ok(if is_clean { Ending::Agreed } else { Ending::Differed })
    }
}
