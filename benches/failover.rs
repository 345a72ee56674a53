//! How long it takes until writes are visible again: after a failover of Redis, a promotion of Postgres, and when another worker
//! takes over.
//!
//! `make bench`. The goals in seconds are those of the design; a plain backfill in the same run is what a revalidation of everything
//! is measured by. `ROWS=100000` and `ROUNDS=3` make it shorter, `PARTS=sentinel,promotion,worker` runs these parts alone.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::{Postgres, Redis, Sentinels};
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a state is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() {
    let number =
        |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (rows, rounds) = (number("ROWS", 1_000_000), number("ROUNDS", 9));
    let parts = std::env::var("PARTS").unwrap_or_default();
    let is_asked = |part: &str| parts.is_empty() || parts.split(',').any(|asked| asked == part);
    if is_asked("sentinel") {
        sentinel(rounds).await;
    }
    if is_asked("worker") {
        take_over(rounds).await;
    }
    if is_asked("promotion") {
        promotion(rows).await;
    }
}

fn toml(more: &str) -> String {
    format!(
        "[service]\nnamespace = \"bench\"\n[log]\nlevel = \"error\"\n[admin]\nlisten = \"\"\n[dataset.item]\n\
         query = \"select * from items\"\nkey = \"item:{{id}}\"\nformat = \"json\"\nttl = \"1h\"\nwarm = {{}}\n\
         watch = [{{ table = \"items\", key = {{ id = \"id\" }} }}]\n{more}"
    )
}

fn environment(postgres: &str, redis: &str) -> BTreeMap<String, String> {
    [
        ("CACHEKEEPER__POSTGRES__URL".to_owned(), postgres.to_owned()),
        ("CACHEKEEPER__REDIS__URL".to_owned(), redis.to_owned()),
    ]
    .into()
}

fn config(postgres: &str, redis: &str) -> Config {
    Config::load(Path::new("bench.toml"), toml(""), &environment(postgres, redis)).unwrap().0
}

async fn fill(postgres: &Postgres, redis: &str, rows: u64) {
    let sql = format!(
        "create table items (id int primary key, name text, description text, price int, category_id int, \
         in_stock bool, updated_at timestamptz); \
         insert into items select n, 'item number ' || n, repeat('some words about it ', 8), n % 10000, n % 100, \
         n % 2 = 0, '2026-01-01'::timestamptz + n * interval '1 second' from generate_series(1, {rows}) n; \
         analyze items; checkpoint"
    );
    postgres.execute(&sql).await.unwrap();
    let context = Context::of_worker(&config(&postgres.url(), redis)).unwrap();
    context.postgres.migrate().await.unwrap();
}

async fn connect(port: u16) -> Option<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    client.get_multiplexed_async_connection().await.ok()
}

/// Waits for a state, and answers it.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn is_ready(worker: &Worker) {
    until("the worker is ready", async || worker.health.reasons().is_empty().then_some(())).await;
}

/// Writes a row now; answers how long it is until its entry shows it at this Redis.
async fn visible(postgres: &Postgres, redis: u16, number: i64) -> Duration {
    let began = Instant::now();
    let price = 1_000_000 + number;
    postgres.execute(&format!("update items set price = {price} where id = 7")).await.unwrap();
    until("a write is visible", async || {
        let value: Option<String> = connect(redis).await?.get("item:7").await.ok()?;
        value?.contains(&format!("\"price\":{price}")).then_some(())
    })
    .await;
    began.elapsed()
}

fn tell(what: &str, goal: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    println!(
        "{what}: p50 {:.2} s, least {:.2}, most {:.2} ({} times); goal {goal}",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1],
        times.len()
    );
}

/// The master is killed; from the moment that a sentinel names the other one until a write of that moment is visible there.
async fn sentinel(rounds: u64) {
    let (mut killed, mut switched) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut master = Redis::start(&[]).await.unwrap();
        let port = master.port();
        let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {port}")]).await.unwrap();
        let sentinels = Sentinels::start(port, &[]).await.unwrap();
        let postgres = Postgres::start(&[]).await.unwrap();
        fill(&postgres, &sentinels.url(), 10_000).await;
        let worker = Worker::start(config(&postgres.url(), &sentinels.url())).await.unwrap();
        is_ready(&worker).await;
        let elected = async |before: u16| {
            until("another master is elected", async || {
                for position in 0..3 {
                    match sentinels.master(position).await {
                        Ok(port) if port != before && port != 0 => return Some(port),
                        Ok(_) | Err(_) => {}
                    }
                }
                None
            })
            .await
        };
        if round % 2 == 0 {
            sentinels.fail_over().await.unwrap();
            let now = elected(port).await;
            switched.push(visible(&postgres, now, 1).await.as_secs_f64());
        } else {
            master.kill();
            let now = elected(port).await;
            killed.push(visible(&postgres, now, 2).await.as_secs_f64());
        }
        assert!(worker.stop().await);
        drop((replica, sentinels));
    }
    tell("a write after Sentinel has named another master, the old one killed", "1.5 s", killed);
    tell("the same, the old one demoted", "1.5 s", switched);
}

/// Two workers; the one that leads is stopped, or killed.
async fn take_over(rounds: u64) {
    let (postgres, redis) = tokio::try_join!(Postgres::start(&[]), Redis::start(&[])).unwrap();
    fill(&postgres, &redis.url(), 10_000).await;
    let (mut stopped, mut killed) = (Vec::new(), Vec::new());
    for round in 0..2 * rounds {
        // A process of its own leads, because the second one begins when it does.
        let mut leader = Process::start(&postgres, &redis);
        visible(&postgres, redis.port(), i64::try_from(round).unwrap() * 10 + 10).await;
        let second = Worker::start(config(&postgres.url(), &redis.url())).await.unwrap();
        is_ready(&second).await;
        let number = i64::try_from(round).unwrap() * 10 + 11;
        let is_orderly = round % 2 == 0;
        if is_orderly {
            leader.signal("TERM");
        } else {
            leader.signal("KILL");
        }
        let took = visible(&postgres, redis.port(), number).await.as_secs_f64();
        if is_orderly { &mut stopped } else { &mut killed }.push(took);
        leader.child.wait().unwrap();
        assert!(second.stop().await);
    }
    tell("a write after the leading worker was told to stop", "1.5 s", stopped);
    tell("a write after the leading worker was killed", "3 s (its lease)", killed);
}

struct Process {
    child: Child,
}

impl Process {
    fn start(postgres: &Postgres, redis: &Redis) -> Self {
        let path = std::env::temp_dir().join(format!("cachekeeper-bench-{}.toml", std::process::id()));
        std::fs::write(&path, toml("")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_cachekeeper"))
            .arg("run")
            .arg("-c")
            .arg(&path)
            .envs(environment(&postgres.url(), &redis.url()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A standby is promoted; every entry is revalidated while applications read.
async fn promotion(rows: u64) {
    let settings = ["shared_buffers=512MB", "max_parallel_workers_per_gather=0", "max_wal_size=4GB"];
    let (mut primary, redis) = tokio::try_join!(Postgres::start(&settings), Redis::start(&[])).unwrap();
    fill(&primary, &redis.url(), rows).await;
    let standby = primary.standby(None).await.unwrap();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
    let url = primary.url().replace(&format!("127.0.0.1:{}", primary.port()), &hosts);
    let worker =
        Worker::start(config(&format!("{url}&target_session_attrs=read-write"), &redis.url())).await.unwrap();
    is_ready(&worker).await;
    let plain = plain_backfill(&worker.context).await;
    let before = worker.context.redis.metadata("").await.unwrap().epoch;
    let end = CancellationToken::new();
    let (reads, readers) = read_on(&redis, rows, &end).await;
    primary.execute("update items set price = -1 where id = 1").await.unwrap();
    until("the standby has everything", async || {
        let mut session = standby.session().await.ok()?;
        let price = session.text("select price::text from items where id = 1").await.ok()?;
        (price.as_deref() == Some("-1")).then_some(())
    })
    .await;
    primary.kill();
    standby.promote().await.unwrap();
    until("it takes writes", async || standby.execute("create table promoted ()").await.ok()).await;
    let (began, reads_before) = (Instant::now(), reads.load(Ordering::Relaxed));
    until("a new epoch", async || {
        let metadata = worker.context.redis.metadata("").await.ok()?;
        (metadata.epoch != before).then_some(())
    })
    .await;
    let epoch = began.elapsed().as_secs_f64();
    until("every entry is revalidated", async || {
        let metadata = worker.context.redis.metadata("").await.ok()?;
        (!metadata.is_pending("item") && metadata.unfilled.is_empty()).then_some(())
    })
    .await;
    let whole = began.elapsed().as_secs_f64();
    let pass = whole - epoch;
    let a_second = (reads.load(Ordering::Relaxed) - reads_before) as f64 / whole;
    end.cancel();
    for reader in readers {
        reader.await.unwrap();
    }
    println!(
        "a promotion of Postgres under {rows} entries: a new epoch {epoch:.2} s after it takes writes (goal 1 s), every entry \
         revalidated {pass:.1} s later, beside a plain backfill of {plain:.1} s before: {:.2} (goal 1.6); {a_second:.0} reads a \
         second went on\n",
        pass / plain
    );
    assert!(worker.stop().await);
}

/// Applications that read without end.
async fn read_on(
    redis: &Redis,
    rows: u64,
    end: &CancellationToken,
) -> (Arc<AtomicU64>, Vec<tokio::task::JoinHandle<()>>) {
    let reads = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for reader in 0..2_u64 {
        let (mut client, reads, end) = (connect(redis.port()).await.unwrap(), reads.clone(), end.clone());
        readers.push(tokio::spawn(async move {
            // A thousand a second each: what goes on is asked for, not how many reads Redis can do.
            let mut pace = tokio::time::interval(Duration::from_millis(1));
            let mut number = reader;
            while !end.is_cancelled() {
                pace.tick().await;
                number += 7919;
                let value: Option<Vec<u8>> = client.get(format!("item:{}", 1 + number % rows)).await.unwrap();
                assert!(value.is_some(), "an entry is missing");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    (reads, readers)
}

async fn plain_backfill(context: &Context) -> f64 {
    let options =
        BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
    let began = Instant::now();
    backfill(context, context.catalog.get("item").unwrap(), &options).await.unwrap();
    began.elapsed().as_secs_f64()
}
