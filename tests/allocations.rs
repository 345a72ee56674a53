//! What the hot path allocates (rows 4 and 54 of the seed's patterns). A binary of its own, since it counts in the place of the
//! allocator.

use std::alloc::System;
use std::time::Duration;

use cachekeeper_client::{Cache, Near};
use cachekeeper_testkit::servers::Redis;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const ROUNDS: u64 = 1_000;
const HOUR: Duration = Duration::from_secs(3600);

/// Allocations of one call, over many: what happens beside them (timers, heartbeats) is less than one.
async fn allocations_of(mut call: impl AsyncFnMut()) -> u64 {
    // What is allocated once is.
    for _ in 0..10 {
        call().await;
    }
    let count = || ALLOCATOR.stats().allocations as u64;
    let before = count();
    for _ in 0..ROUNDS {
        call().await;
    }
    (count() - before + ROUNDS / 2) / ROUNDS
}

#[tokio::test]
async fn row_4_a_hit_allocates_what_the_bare_client_does() {
    let redis = Redis::start(&[]).await.unwrap();
    let cache = Cache::connect(&redis.url(), "test").unwrap().build();
    cache.set("k", &7_u64, HOUR).await.unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let bare = client.get_multiplexed_async_connection().await.unwrap();
    let by_bare = allocations_of(async || {
        let mut bare = bare.clone();
        let bytes: Vec<u8> = redis::cmd("GET").arg("k").query_async(&mut bare).await.unwrap();
        assert_eq!(bytes, [7]);
    })
    .await;
    let by_cache = allocations_of(async || assert_eq!(cache.get::<u64>("k").await.unwrap(), Some(7))).await;
    println!("a hit: {by_cache} allocations, by the bare client {by_bare}");
    assert!(by_cache <= by_bare, "{by_cache} by the cache, {by_bare} by the bare client");
}

#[tokio::test]
async fn row_4_a_near_hit_allocates_nothing_but_the_value() {
    let redis = Redis::start(&[]).await.unwrap();
    let cache = Cache::connect(&redis.url(), "test").unwrap().build();
    let near = Near::bytes("1MiB").staleness(HOUR);
    let numbers = cache.space::<u32, u64>("number").near(near.clone()).build().unwrap();
    let texts = cache.space::<u32, String>("text").near(near).build().unwrap();
    numbers.set(&1, &7).await.unwrap();
    texts.set(&1, &"seven".to_owned()).await.unwrap();
    while numbers.get_aged(&1).await.unwrap().behind_redis.is_zero()
        || texts.get_aged(&1).await.unwrap().behind_redis.is_zero()
    {
        tokio::task::yield_now().await;
    }
    let of_number = allocations_of(async || assert_eq!(numbers.get(&1).await.unwrap(), Some(7))).await;
    let of_text = allocations_of(async || assert!(texts.get(&1).await.unwrap().is_some())).await;
    assert_eq!((of_number, of_text), (0, 1));
}

#[tokio::test]
async fn row_54_a_log_line_that_is_off_allocates_nothing() {
    // No subscriber is installed: every level is off.
    let mut value = String::from("a value whose text would be allocated");
    let off = allocations_of(async || {
        tracing::info!(dataset = "product", %value, keys = value.len(), "entries were loaded");
        tracing::debug!(?value, "entries were loaded");
        value.truncate(30);
    })
    .await;
    assert_eq!(off, 0);
}
