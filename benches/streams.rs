//! Whether people who watch slow down what they watch: commit to visible with and without 1,000 open event streams, in turn, in one run.
//!
//! `make bench`. Timings are of this machine and this moment: look at the ratios. `STREAMS=4000` opens more.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::{Postgres, Redis, free_port};
use redis::AsyncCommands;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

const ROUNDS: usize = 5;
const SECONDS: u64 = 5;
const ROWS: u64 = 10_000;
/// Each commits 100 times a second.
const WRITERS: u64 = 2;

#[tokio::main]
async fn main() {
    let count = std::env::var("STREAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000);
    let (postgres, redis) =
        tokio::try_join!(Postgres::start(&["shared_buffers=256MB"]), Redis::start(&[])).unwrap();
    postgres
        .execute(&format!(
            "create table items (id int primary key, name text, price int);
             insert into items select n, 'item number ' || n, n from generate_series(1, {ROWS}) n"
        ))
        .await
        .unwrap();
    let port = free_port().unwrap();
    let config = config(&postgres, &redis, port, count);
    Context::of_worker(&config).unwrap().postgres.migrate().await.unwrap();
    let worker = Worker::start(config).await.unwrap();
    let began = Instant::now();
    while !worker.health.reasons().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", worker.health.reasons());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // The first round warms up.
    for round in 0..=ROUNDS {
        let alone = lags(&postgres, &redis).await;
        let read = Arc::new(AtomicU64::new(0));
        let streams = open(port, count, &read).await;
        let watched = lags(&postgres, &redis).await;
        drop(streams);
        if 0 < round {
            let bytes = read.load(Ordering::Relaxed);
            println!(
                "round {round}: p50 {:.2} ms, p99 {:.2} ms alone; {:.2} ms, {:.2} ms with {count} streams, which read {} KiB",
                at(&alone, 0.5),
                at(&alone, 0.99),
                at(&watched, 0.5),
                at(&watched, 0.99),
                bytes >> 10
            );
            without.push((at(&alone, 0.5), at(&alone, 0.99)));
            with.push((at(&watched, 0.5), at(&watched, 0.99)));
        }
    }
    let median = |pairs: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    println!(
        "commit to visible with {count} event streams, of what it is without, medians of {ROUNDS} rounds: p50 {:.2}, p99 {:.2}",
        median(&with, |pair| pair.0) / median(&without, |pair| pair.0),
        median(&with, |pair| pair.1) / median(&without, |pair| pair.1),
    );
    worker.stop().await;
}

fn config(postgres: &Postgres, redis: &Redis, port: u16, streams: usize) -> Config {
    // At most half of the connections may be streams.
    let connections = 2 * streams + 20;
    let text = format!(
        "[service]\nnamespace = \"bench\"\n[log]\nlevel = \"error\"\n\
         [admin]\nlisten = \"127.0.0.1:{port}\"\nmax_connections = {connections}\n[dataset.item]\n\
         query = \"select * from items\"\nkey = \"item:{{id}}\"\nformat = \"json\"\nttl = \"1h\"\nwarm = {{}}\n\
         watch = [{{ table = \"items\", key = {{ id = \"id\" }} }}]\n"
    );
    let environment: BTreeMap<String, String> = [
        ("CACHEKEEPER__POSTGRES__URL".to_owned(), postgres.url()),
        ("CACHEKEEPER__REDIS__URL".to_owned(), redis.url()),
    ]
    .into();
    Config::load(Path::new("bench.toml"), text, &environment).unwrap().0
}

/// Opens streams, each of which has begun to be answered, and reads what they say.
async fn open(port: u16, count: usize, read: &Arc<AtomicU64>) -> JoinSet<()> {
    let mut streams = JoinSet::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = "GET /api/v1/live HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = vec![0; 16 << 10];
        let first = stream.read(&mut buffer).await.unwrap();
        let head = String::from_utf8_lossy(&buffer[..first]).into_owned();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"), "{head}");
        let read = Arc::clone(read);
        streams.spawn(async move {
            while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
                read.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        });
    }
    streams
}

/// From a commit until a GET returns the new value, in milliseconds, sorted.
async fn lags(postgres: &Postgres, redis: &Redis) -> Vec<f64> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut session = postgres.session().await.unwrap();
        let client = redis::Client::open(redis.url()).unwrap();
        let mut client = client.get_multiplexed_async_connection().await.unwrap();
        writers.spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            let mut lags = Vec::new();
            for number in 0..SECONDS * 100 {
                pace.tick().await;
                let id = 1 + (number * 7919 + writer * 104_729) % ROWS;
                let price: u32 = rand::random();
                let price = price >> 1;
                session.execute(&format!("update items set price = {price} where id = {id}")).await.unwrap();
                let committed = Instant::now();
                let expected = format!("\"price\":{price}}}");
                while !client.get::<_, String>(format!("item:{id}")).await.unwrap().contains(&expected) {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
                lags.push(committed.elapsed().as_secs_f64() * 1e3);
            }
            lags
        });
    }
    let mut lags: Vec<f64> = writers.join_all().await.into_iter().flatten().collect();
    lags.sort_by(f64::total_cmp);
    lags
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}
