//! The library's locks beside the `rslock` crate, in one run; and a thousand waiters on one lock.
//!
//! `make bench`. Timings are of this machine and this moment: look at the ratios.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_client::{Cache, LockOptions, Locks};
use cachekeeper_testkit::servers::Redis;
use rslock::LockManager;
use tokio::time::Instant;

const LIFE: Duration = Duration::from_secs(10);
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    let redis = Redis::start(&[]).await.unwrap();
    let cache = Cache::connect(&redis.url(), "bench").unwrap().build();
    let ours = cache.locks();
    let theirs = LockManager::new(vec![redis.url()]);
    pairs(ours, &theirs).await;
    waiters(&redis, ours, &theirs).await;
}

/// Pairs of acquire and release a second by some tasks, each with a lock of its own.
async fn rate<U: Future<Output = ()> + Send>(
    tasks: usize,
    each: usize,
    pair: impl Fn(String) -> U + Clone + Send + 'static,
) -> f64 {
    let began = Instant::now();
    let all: Vec<_> = (0..tasks)
        .map(|task| {
            let pair = pair.clone();
            async move {
                for _ in 0..each {
                    pair(format!("lock:{task}")).await;
                }
            }
        })
        .collect();
    futures_util::future::join_all(all).await;
    (tasks * each) as f64 / began.elapsed().as_secs_f64()
}

async fn pairs(ours: &Locks, theirs: &LockManager) {
    for (tasks, each) in [(1, 3_000), (16, 1_000)] {
        let (mut mine, mut other) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let locks = ours.clone();
            let pair = move |name: String| {
                let locks = locks.clone();
                async move {
                    let guard = locks.acquire(&name, LockOptions::default()).await.unwrap();
                    assert!(guard.release().await.unwrap());
                }
            };
            mine.push(rate(tasks, each, pair).await);
            let manager = theirs.clone();
            let pair = move |name: String| {
                let manager = manager.clone();
                async move {
                    let lock = manager.lock(name.as_str(), LIFE).await.unwrap();
                    manager.unlock(&lock).await;
                }
            };
            other.push(rate(tasks, each, pair).await);
        }
        let (mine, other) = (median(mine), median(other));
        println!(
            "acquire and release, {tasks} tasks with a lock each: cachekeeper {mine:.0}/s, rslock {other:.0}/s, ratio {:.2}",
            mine / other
        );
    }
}

/// How long a lock is free between two of many who want it, and how many commands that takes.
async fn waiters(redis: &Redis, ours: &Locks, theirs: &LockManager) {
    for (name, count) in [("cachekeeper", 1_000), ("cachekeeper", 50), ("rslock", 50)] {
        let mut client =
            redis::Client::open(redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut client).await.unwrap();
        let freed: Arc<Mutex<(Option<Instant>, Vec<f64>)>> = Arc::default();
        let began = Instant::now();
        let all: Vec<_> = (0..count)
            .map(|_| {
                let (ours, theirs, freed) = (ours.clone(), theirs.clone(), Arc::clone(&freed));
                tokio::spawn(async move {
                    let took = |freed: &Mutex<(Option<Instant>, Vec<f64>)>| {
                        let mut freed = freed.lock().unwrap();
                        if let Some(at) = freed.0.take() {
                            freed.1.push(at.elapsed().as_secs_f64() * 1e3);
                        }
                    };
                    if name == "rslock" {
                        let lock = loop {
                            if let Ok(lock) = theirs.lock("hot", LIFE).await {
                                break lock;
                            }
                        };
                        took(&freed);
                        freed.lock().unwrap().0 = Some(Instant::now());
                        theirs.unlock(&lock).await;
                    } else {
                        let options = LockOptions { wait: Duration::from_secs(60), ..LockOptions::default() };
                        let guard = ours.acquire("hot", options).await.unwrap();
                        took(&freed);
                        freed.lock().unwrap().0 = Some(Instant::now());
                        assert!(guard.release().await.unwrap());
                    }
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        let took = began.elapsed();
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut client).await.unwrap();
        let calls: u64 = stats
            .lines()
            .filter(|line| {
                ["evalsha", "eval", "set", "get"]
                    .iter()
                    .any(|name| line.starts_with(&format!("cmdstat_{name}:")))
            })
            .filter(|line| name == "rslock" || line.starts_with("cmdstat_evalsha"))
            .filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok())
            .sum();
        let mut times = freed.lock().unwrap().1.clone();
        times.sort_by(f64::total_cmp);
        println!(
            "{count} waiters on one lock, {name}: all served in {:.2} s, hand-over p50 {:.2} ms, p99 {:.2} ms, {:.1} commands each",
            took.as_secs_f64(),
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            calls as f64 / f64::from(count)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
