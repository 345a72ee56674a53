//! What the library costs beside the raw client, in one run each.
//!
//! `make bench`. Timings are of this machine and this moment: look at the ratios.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper_client::{Cache, Near, Policy, SetManyOptions};
use cachekeeper_testkit::servers::Redis;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
const ROUNDS: usize = 5;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Item {
    id: u64,
    name: String,
    body: String,
}

fn items(count: usize) -> Vec<(String, Item)> {
    let item = |n: usize| Item { id: n as u64, name: format!("item {n}"), body: "x".repeat(970) };
    (0..count).map(|n| (format!("item:{n}"), item(n))).collect()
}

#[tokio::main]
async fn main() {
    let only = std::env::args().nth(1).filter(|argument| !argument.starts_with("--"));
    let redis = Redis::start(&[]).await.unwrap();
    let wants = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wants("get") {
        get(&redis).await;
    }
    if wants("instructions") {
        instructions(&redis).await;
    }
    if wants("set_many") {
        let slow = link(redis.port(), Duration::from_micros(250)).await;
        set_many(&redis.url(), "loopback").await;
        set_many(&format!("redis://{slow}/0"), "a link with 0.5 ms round trip").await;
    }
    if wants("near") {
        near(&redis).await;
    }
    if wants("cold") {
        cold(&redis).await;
    }
}

async fn raw(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Price {
    cents: i64,
    at: u64,
}

/// Reads of one task that are timed together: a clock costs as much as a read.
const TIMED: usize = 1_000;

/// Nanoseconds of a read, each of so many.
async fn nanos<U: Future<Output = ()>>(count: usize, read: impl Fn(usize) -> U) -> Vec<f64> {
    let mut each = Vec::new();
    for round in 0..count / TIMED {
        let began = Instant::now();
        for n in 0..TIMED {
            read(round + n).await;
        }
        each.push(began.elapsed().as_nanos() as f64 / TIMED as f64);
    }
    each
}

/// Hits of the near cache, beside the bare store that it is made of.
async fn near(redis: &Redis) {
    let cache = Cache::connect(&redis.url(), "bench").unwrap().build();
    let space = cache.space::<u64, Price>("price").near(Near::bytes("64MiB")).build().unwrap();
    let prices: Vec<(u64, Price)> = (0..1_000).map(|id| (id, Price { cents: 999, at: id })).collect();
    assert!(space.set_many(prices.iter().map(|(id, price)| (id, price))).await.unwrap().is_complete());
    let bare = Arc::new(quick_cache::sync::Cache::<Arc<str>, Arc<Price>>::new(10_000));
    for (id, price) in &prices {
        bare.insert(format!("price:{id}").into(), Arc::new(*price));
    }
    // Until all of them are near.
    let is_near = async || {
        for (id, _) in &prices {
            if space.get_aged(id).await.unwrap().behind_redis.is_zero() {
                return false;
            }
        }
        true
    };
    while !is_near().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut ours, mut bares) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let near = |n: usize| {
            let space = &space;
            async move {
                std::hint::black_box(space.get(&(n as u64 % 1_000)).await.unwrap().unwrap());
            }
        };
        ours.extend(nanos(1_000_000, near).await);
        let stored = |n: usize| {
            let bare = &bare;
            async move {
                let key = format!("price:{}", n % 1_000);
                std::hint::black_box(bare.get(key.as_str()).unwrap());
            }
        };
        bares.extend(nanos(1_000_000, stored).await);
    }
    let (ours, bares) = (median(ours), median(bares));
    // A handle for each read would be what is measured.
    let shared: &'static _ = Box::leak(Box::new(space.clone()));
    let both = rate(2, 5_000_000, move |n| {
        let space = shared;
        async move {
            std::hint::black_box(space.get(&(n as u64)).await.unwrap().unwrap());
        }
    })
    .await;
    println!(
        "a near hit: p50 {ours:.0} ns, of the bare store {bares:.0} ns (both with the key as a text); {:.1} million reads a second by two \
         tasks\n",
        both / 1e6
    );
}

/// Reads a second by many tasks over one connection.
async fn rate<F, U>(tasks: usize, each: usize, read: F) -> f64
where
    F: Fn(usize) -> U + Clone + Send + 'static,
    U: Future<Output = ()> + Send,
{
    let began = Instant::now();
    let all: Vec<_> = (0..tasks)
        .map(|task| {
            let read = read.clone();
            tokio::spawn(async move {
                for n in 0..each {
                    read((task * each + n) % 1_000).await;
                }
            })
        })
        .collect();
    for one in all {
        one.await.unwrap();
    }
    (tasks * each) as f64 / began.elapsed().as_secs_f64()
}

async fn get(redis: &Redis) {
    let cache = Cache::connect(&redis.url(), "bench").unwrap().build();
    let connection = raw(&redis.url()).await;
    let values = items(1_000);
    cache.set_many(&values, SetManyOptions::ttl(HOUR)).await;
    for (tasks, each) in [(1, 20_000), (64, 4_000)] {
        let (mut raws, mut ours, mut loads) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let client = connection.clone();
            raws.push(
                rate(tasks, each, move |n| {
                    let mut client = client.clone();
                    async move {
                        let value: Option<Vec<u8>> = client.get(format!("item:{n}")).await.unwrap();
                        let item: Item = rmp_serde::from_slice(&value.unwrap()).unwrap();
                        std::hint::black_box(item);
                    }
                })
                .await,
            );
            let typed = cache.clone();
            ours.push(
                rate(tasks, each, move |n| {
                    let cache = typed.clone();
                    async move {
                        std::hint::black_box(cache.get::<Item>(&format!("item:{n}")).await.unwrap().unwrap());
                    }
                })
                .await,
            );
            let policy = Policy::ttl(HOUR);
            let cache = cache.clone();
            loads.push(
                rate(tasks, each, move |n| {
                    let (cache, policy) = (cache.clone(), policy.clone());
                    async move {
                        let load = async || Ok::<Option<Item>, std::io::Error>(None);
                        let item =
                            cache.get_or_load::<Item, _, _, _, _>(&format!("item:{n}"), &policy, load).await;
                        std::hint::black_box(item.unwrap().unwrap());
                    }
                })
                .await,
            );
        }
        let (raws, ours, loads) = (median(raws), median(ours), median(loads));
        println!(
            "get, {tasks} tasks: raw client and rmp_serde {raws:.0}/s; cache.get {ours:.0}/s, ratio {:.2}; get_or_load (hit) {loads:.0}/s, ratio {:.2}",
            ours / raws,
            loads / raws
        );
    }
}

/// A fixed number of reads, for callgrind: `valgrind --tool=callgrind <this program> instructions`, once with `RAW=1`.
async fn instructions(redis: &Redis) {
    let cache = Cache::connect(&redis.url(), "bench").unwrap().build();
    let mut connection = raw(&redis.url()).await;
    cache.set_many(&items(1), SetManyOptions::ttl(HOUR)).await;
    let is_raw = std::env::var_os("RAW").is_some();
    let reads = std::env::var("READS").ok().and_then(|reads| reads.parse().ok()).unwrap_or(2_000);
    for _ in 0..reads {
        if is_raw {
            let value: Vec<u8> = connection.get("item:0").await.unwrap();
            std::hint::black_box(rmp_serde::from_slice::<Item>(&value).unwrap());
        } else {
            std::hint::black_box(cache.get::<Item>("item:0").await.unwrap().unwrap());
        }
    }
    println!("{reads} reads, raw: {is_raw}");
}

async fn set_many(url: &str, link: &str) {
    let cache = Cache::connect(url, "bench").unwrap().build();
    let mut connection = raw(url).await;
    println!("\nset_many of 1 KB values, over {link}");
    for count in [100, 500, 1_000, 5_000] {
        let values = items(count);
        let (mut piped, mut counted, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS * 2 + 1 {
            let began = Instant::now();
            let mut pipeline = redis::Pipeline::with_capacity(count);
            for (key, value) in &values {
                let bytes = rmp_serde::to_vec_named(value).unwrap();
                pipeline.cmd("SET").arg(key).arg(bytes).arg("PX").arg(3_600_000).ignore();
            }
            pipeline.query_async::<()>(&mut connection).await.unwrap();
            piped.push(began.elapsed().as_secs_f64() * 1e3);
            for (refuses_older_fills, times) in [(true, &mut counted), (false, &mut plain)] {
                let options = SetManyOptions { refuses_older_fills, ..SetManyOptions::ttl(HOUR) };
                let report = cache.set_many(&values, options).await;
                assert!(report.is_complete());
                times.push(report.elapsed.as_secs_f64() * 1e3);
            }
        }
        let began = Instant::now();
        for (key, value) in &values {
            let bytes = rmp_serde::to_vec_named(value).unwrap();
            let _: () = connection.pset_ex(key, bytes, 3_600_000).await.unwrap();
        }
        let loop_ms = began.elapsed().as_secs_f64() * 1e3;
        let (piped, counted, plain) = (median(piped), median(counted), median(plain));
        println!(
            "{count:>5}: raw pipeline {piped:.1} ms; counted {counted:.1} ms, ratio {:.2}; plain {plain:.1} ms, ratio {:.2}; one awaited SET after another {loop_ms:.0} ms, {:.0} times as long as counted",
            counted / piped,
            plain / piped,
            loop_ms / counted
        );
    }
}

/// One cold key for a hundred tasks.
async fn cold(redis: &Redis) {
    let cache = Cache::connect(&redis.url(), "bench").unwrap().build();
    let (calls, policy) = (Arc::new(AtomicU32::new(0)), Policy::ttl(HOUR));
    let began = Instant::now();
    let all: Vec<_> = (0..100)
        .map(|_| {
            let (cache, calls, policy) = (cache.clone(), Arc::clone(&calls), policy.clone());
            tokio::spawn(async move {
                let load = async move || {
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Ok::<_, std::io::Error>(Some(1_u32))
                };
                cache.get_or_load::<u32, _, _, _, _>("cold", &policy, load).await.unwrap()
            })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap(), Some(1));
    }
    let calls = calls.load(Ordering::SeqCst);
    println!(
        "\n100 tasks, one cold key, a loader of 10 ms: {calls} load, all served after {:.1} ms",
        began.elapsed().as_secs_f64() * 1e3
    );
}

/// A TCP link to this port that delivers bytes so much later, each way.
async fn link(port: u16, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let ((client_in, client_out), (server_in, server_out)) =
                (client.into_split(), server.into_split());
            tokio::spawn(carry(client_in, server_out, delay));
            tokio::spawn(carry(server_in, client_out, delay));
        }
    });
    address
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<(std::time::Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            // The runtime's timer counts whole milliseconds: the last part is waited for by yielding.
            while std::time::Instant::now() < due {
                tokio::task::yield_now().await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if sender.send((std::time::Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}
