//! The library beside what is well: a caller in a hurry, a lock that another one waits for, a runtime that nobody drives, a delete that
//! Redis does not take.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cachekeeper_client::{
    BreakerSettings, BreakerState, Cache, LockOptions, Near, Policy, SetManyOptions, Sliding,
};
use redis::AsyncCommands;
use tokio::runtime::{Builder, Runtime};

use crate::cache::{HOUR, cache_of};
use crate::support::{RedisRig, wait_until};

type Failure = std::io::Error;

async fn takes_writes(rig: &RedisRig, is_so: bool) {
    let replicas = if is_so { "0" } else { "1" };
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("min-replicas-to-write").arg(replicas);
    let () = command.query_async(&mut rig.client().await).await.unwrap();
}

/// A reader that had begun before kept the old value near.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_is_not_near_although_redis_has_not_taken_it() {
    let rig = RedisRig::start(&[]).await;
    for round in 0..12 {
        let cache = cache_of(&rig);
        let space = cache.space::<str, u32>("near").near(Near::bytes("8MiB")).build().unwrap();
        takes_writes(&rig, true).await;
        space.set("k", &1).await.unwrap();
        wait_until("it is near", async || {
            let read = space.get_aged("k").await.unwrap();
            if read.behind_redis.is_zero() { Err(format!("{read:?}")) } else { Ok(()) }
        })
        .await;
        takes_writes(&rig, false).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..32)
            .map(|_| {
                let (space, is_over) = (space.clone(), Arc::clone(&is_over));
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        drop(space.get("k").await);
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            space.get("k").await.unwrap();
        }
        space.delete("k").await.unwrap_err();
        is_over.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.unwrap();
        }
        for _ in 0..20 {
            assert_eq!(space.get("k").await.unwrap(), None, "round {round}");
        }
    }
}

/// Their limit is their own: it says nothing of Redis.
#[tokio::test]
async fn callers_in_a_hurry_open_no_breaker() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("other", &1, HOUR).await.unwrap();
    for hard in [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(50)] {
        let policy = Policy::ttl(HOUR).hard_timeout(hard);
        let loads = (0..40).map(|number| {
            let (cache, policy) = (cache.clone(), policy.clone());
            async move {
                let key = format!("k{number}");
                drop(cache.get_or_load(&key, &policy, async || Ok::<_, Failure>(Some(1))).await);
            }
        });
        futures_util::future::join_all(loads).await;
        assert_eq!(cache.breaker_state(), BreakerState::Closed, "{hard:?}");
        assert_eq!(cache.get::<u32>("other").await.unwrap(), Some(1));
    }
}

/// And where Redis hangs the breaker opens, although nobody waits as long as a command may take.
#[tokio::test]
async fn where_redis_hangs_callers_in_a_hurry_are_enough_to_open_the_breaker() {
    let rig = RedisRig::start(&[]).await;
    let settings = BreakerSettings { failures: 1, ..BreakerSettings::default() };
    let cache = Cache::connect(&rig.redis.url(), "t").unwrap().breaker(settings).build();
    cache.set("k", &1, HOUR).await.unwrap();
    rig.redis.pause();
    let policy = Policy::ttl(HOUR).hard_timeout(Duration::from_millis(100));
    wait_until("the breaker opens", async || {
        drop(cache.get_or_load("k", &policy, async || Ok::<_, Failure>(Some(2))).await);
        let state = cache.breaker_state();
        if state == BreakerState::Closed { Err(format!("{state:?}")) } else { Ok(()) }
    })
    .await;
    rig.redis.resume();
}

/// The outer ones held all permits that the inner ones waited for.
#[tokio::test]
async fn a_load_within_a_load_waits_for_no_permit_without_redis() {
    let rig = RedisRig::start(&[]).await;
    let settings = BreakerSettings { failures: 1, ..BreakerSettings::default() };
    let builder = Cache::connect(&rig.redis.url(), "t").unwrap().breaker(settings);
    let cache = builder.loads_without_redis(2).build();
    drop(rig);
    cache.get::<u32>("x").await.unwrap_err();
    let policy = Policy::ttl(HOUR);
    let loads = (0..8).map(|number| {
        let (cache, policy) = (cache.clone(), policy.clone());
        async move {
            let (inner, inner_policy) = (cache.clone(), policy.clone());
            let outer = move || async move {
                tokio::task::yield_now().await;
                let key = format!("product:{number}");
                inner.get_or_load(&key, &inner_policy, async move || Ok::<_, Failure>(Some(number))).await
            };
            cache.get_or_load(&format!("page:{number}"), &policy, outer).await.unwrap()
        }
    });
    let all = tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(loads)).await;
    assert_eq!(all.unwrap(), (0..8).map(Some).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_lock_is_free_while_another_task_waits_for_it_and_one_more() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let locks = cache.locks();
    let held = locks.acquire("b", LockOptions::default()).await.unwrap();
    let waiting = {
        let cache = cache.clone();
        let options = LockOptions { wait: Duration::from_secs(60), ..LockOptions::default() };
        tokio::spawn(async move { cache.locks().acquire_all(&["a", "b"], options).await.map(drop) })
    };
    // It runs in this thread, up to where it waits.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let life = Duration::from_secs(5);
    let a = locks.try_acquire("a", life).await.unwrap();
    a.expect("a is free").release().await.unwrap();
    let options = LockOptions { wait: Duration::from_secs(30), ..LockOptions::default() };
    locks.acquire("a", options).await.expect("a is free").release().await.unwrap();
    assert!(locks.try_acquire("b", life).await.unwrap().is_none());
    drop(held);
    waiting.await.unwrap().unwrap();
}

/// A renewer in a runtime that lives and is not driven renews nothing: then the lock is not held, whatever was told.
#[test]
fn a_lock_that_nobody_renews_is_not_held() {
    let (idle, own) = (Builder::new_current_thread().enable_all().build().unwrap(), Runtime::new().unwrap());
    let rig = own.block_on(RedisRig::start(&[]));
    let cache = cache_of(&rig);
    own.block_on(cache.set("x", &1, HOUR)).unwrap();
    let first = idle.block_on(cache.locks().acquire("first", LockOptions::default())).unwrap();
    idle.block_on(first.release()).unwrap();
    own.block_on(async {
        let options = LockOptions { life: Duration::from_millis(500), ..LockOptions::default() };
        let lock = cache.locks().acquire("y", options).await.unwrap();
        assert!(lock.is_held());
        wait_until("another process has it", async || {
            let taken = cache_of(&rig).locks().try_acquire("y", HOUR).await.unwrap();
            taken.map(std::mem::forget).ok_or_else(|| "still held".to_owned())
        })
        .await;
        assert!(!lock.is_held());
    });
}

#[test]
fn a_guard_that_is_dropped_outside_of_a_runtime_is_released() {
    let runtime = Runtime::new().unwrap();
    let rig = runtime.block_on(RedisRig::start(&[]));
    let cache = cache_of(&rig);
    let options = LockOptions { life: HOUR, ..LockOptions::default() };
    let lock = runtime.block_on(cache.locks().acquire("l", options)).unwrap();
    std::thread::spawn(move || drop(lock)).join().unwrap();
    let free = cache.locks().wait_for_unlock("l", Duration::from_secs(60));
    assert!(runtime.block_on(free).unwrap());
}

/// A plain store settles what was noted for deletion, and a lifetime of nothing is a delete.
#[tokio::test]
async fn a_plain_store_of_many_is_not_deleted_afterwards() {
    let rig = RedisRig::start(&[]).await;
    let settings = BreakerSettings { pause: Duration::from_millis(20), ..BreakerSettings::default() };
    let cache = Cache::connect(&rig.redis.url(), "t").unwrap().breaker(settings).build();
    cache.set("k", &"old", HOUR).await.unwrap();
    takes_writes(&rig, false).await;
    cache.set("k", &"new", HOUR).await.unwrap_err();
    takes_writes(&rig, true).await;
    let plain = |life| SetManyOptions { refuses_older_fills: false, ..SetManyOptions::ttl(life) };
    let report = cache.set_many(&[("k", "newest")], plain(HOUR)).await;
    assert_eq!((report.stored, report.failed), (1, Vec::new()));
    // Whatever was noted has been made up for when a later delete is.
    cache.set("l", &"old", HOUR).await.unwrap();
    takes_writes(&rig, false).await;
    cache.delete("l").await.unwrap_err();
    takes_writes(&rig, true).await;
    let client = rig.client().await;
    wait_until("what was missed is made up for", async || {
        let there: bool = client.clone().exists("l").await.unwrap();
        if there { Err("l is there".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!(cache.get::<String>("k").await.unwrap().as_deref(), Some("newest"));
    let report = cache.set_many(&[("k", "gone")], plain(Duration::ZERO)).await;
    assert_eq!((report.stored, report.failed), (1, Vec::new()));
    assert_eq!(cache.get::<String>("k").await.unwrap(), None);
}

#[tokio::test]
async fn an_entry_whose_end_a_sliding_read_moves_is_not_near_any_more() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = cache.space::<str, u32>("near").near(Near::bytes("1MiB")).build().unwrap();
    for _ in 0..10 {
        space.set("k", &1).await.unwrap();
        wait_until("it is near", async || {
            let read = space.get_aged("k").await.unwrap();
            if read.behind_redis.is_zero() { Err(format!("{read:?}")) } else { Ok(()) }
        })
        .await;
        let past = Sliding { idle: HOUR, until: Some(std::time::SystemTime::UNIX_EPOCH) };
        drop(cache.get_sliding::<u32>("near:k", past).await);
        assert_eq!(space.get("k").await.unwrap(), None);
    }
}
