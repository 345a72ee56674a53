//! The library where something is wrong: Redis hangs or takes no writes, runtimes and holders are gone, loaders fail.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper_client::{
    BreakerSettings, BreakerState, Cache, ClientError, Lifetime, Loaded, Near, Policy, SetManyOptions,
};
use redis::AsyncCommands;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, advance};

use crate::cache::{HOUR, cache_of};
use crate::support::{RedisRig, wait_until};

const MINUTE: Duration = Duration::from_secs(60);
type Failure = std::io::Error;

fn answer(value: u32) -> Ready<Result<Option<u32>, Failure>> {
    ready(Ok(Some(value)))
}

fn failing() -> Ready<Result<Option<u32>, Failure>> {
    ready(Err(Failure::other("the database is down")))
}

#[tokio::test]
async fn e1_a_tag_reaches_entries_of_any_life_also_much_later() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let lives = [
        ("forever", Lifetime::Forever),
        ("max", Lifetime::For(Duration::MAX)),
        ("long", Lifetime::For(Duration::from_secs(400 * 366 * 86_400))),
        ("years", Lifetime::For(Duration::from_secs(3 * 366 * 86_400))),
        ("hour", Lifetime::For(HOUR)),
    ];
    for (key, life) in lives {
        cache.set_with_tags(key, &1, life, &["t"]).await.unwrap();
    }
    let policy = Policy::ttl(Duration::MAX).tags(["t"]);
    cache.get_or_load("loaded", &policy, || answer(1)).await.unwrap();
    cache.set_with_tags("brief", &1, Duration::from_millis(10), &["t"]).await.unwrap();
    let began = Instant::now();
    // Windows are whole seconds: several of the shortest must be over, and what is over be dropped.
    wait_until("some windows are over", async || {
        rig.store().drop_old_windows(1_000).await.map_err(|error| error.to_string())?;
        if Duration::from_secs(4) < began.elapsed() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert_eq!(cache.invalidate_tags(&["t"]).await.unwrap(), 6);
    for (key, _) in lives {
        assert!(!cache.exists(key).await.unwrap(), "{key}");
    }
}

#[tokio::test]
async fn e3_with_redis_hanging_a_hard_timeout_still_brings_the_loaders_value() {
    let rig = RedisRig::start(&[]).await;
    let limit = Duration::from_millis(1_500);
    let policy = Policy::ttl(HOUR).hard_timeout(limit);
    for policy in [policy.clone(), policy.clone().fail_safe(HOUR).soft_timeout(limit / 2), policy.lock(None)]
    {
        let cache = cache_of(&rig);
        assert!(cache.get::<u32>("k").await.unwrap().is_none());
        rig.redis.pause();
        let one = cache.get_or_load("k", &policy, || answer(5)).await;
        assert_eq!(one.unwrap(), Some(5));
        let load = |ids: Vec<u32>| async move {
            Ok::<std::collections::HashMap<u32, u32>, Failure>(ids.into_iter().map(|id| (id, id)).collect())
        };
        let key = |id: &u32| format!("p:{id}");
        let many = cache.get_or_load_many::<u32, u32, _, _, _, _>(&[1, 2], key, &policy, load).await.unwrap();
        assert_eq!((many.values.len(), many.failed.len()), (2, 0), "{:?}", many.failed);
        rig.redis.resume();
    }
}

#[test]
fn e4_a_cache_heals_in_another_runtime_than_the_one_in_which_its_breaker_opened() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let mut rig = first.block_on(RedisRig::start(&[]));
    let breaker = BreakerSettings { failures: 1, pause: Duration::from_millis(10) };
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().breaker(breaker).build();
    first.block_on(async { cache.set("k", &1, HOUR).await }).unwrap();
    rig.redis.kill();
    first.block_on(async {
        assert!(cache.delete("k").await.is_err());
        assert_ne!(cache.breaker_state(), BreakerState::Closed);
    });
    drop(first);
    runtime().block_on(async {
        rig.redis.start_again().await.unwrap();
        wait_until("the cache heals", async || match cache.get::<u32>("k").await {
            Ok(value) => {
                assert_eq!(value, None);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        })
        .await;
        cache.set_with_tags("k", &2, HOUR, &["t"]).await.unwrap();
        cache.locks().acquire("a", Default::default()).await.unwrap().release().await.unwrap();
    });
    runtime().block_on(async {
        wait_until("the third one works too", async || {
            cache.get::<u32>("k").await.map_err(|error| error.to_string())
        })
        .await;
        cache.locks().acquire("a", Default::default()).await.unwrap().release().await.unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn e5_a_known_absence_is_served_in_bad_times_as_a_value_is() {
    let cache = Cache::in_memory().build();
    let policy = Policy::ttl(MINUTE).negative(MINUTE).fail_safe(HOUR).throttle(MINUTE / 2);
    let nothing = async || Ok::<_, Failure>(None::<u32>);
    assert_eq!(cache.get_or_load("k", &policy, nothing).await.unwrap(), None);
    advance(2 * MINUTE).await;
    let calls = Arc::new(AtomicU32::new(0));
    for _ in 0..3 {
        let calls = Arc::clone(&calls);
        let load = move || {
            calls.fetch_add(1, Ordering::SeqCst);
            failing()
        };
        assert_eq!(cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await.unwrap(), None);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1, "the loader is asked rarely then");
    let down =
        |_ids: Vec<u32>| async { Err::<std::collections::HashMap<u32, u32>, _>(Failure::other("down")) };
    let key = |_: &u32| "k".to_owned();
    let many = cache.get_or_load_many::<u32, u32, _, _, _, _>(&[1], key, &policy, down).await.unwrap();
    assert!(many.values.is_empty() && many.failed.is_empty(), "{:?}", many.failed);
}

#[tokio::test]
async fn e9_tags_that_do_not_concern_a_load_let_everybody_join_it_and_it_is_stored() {
    let rig = RedisRig::start(&[]).await;
    for cache in [cache_of(&rig), Cache::in_memory().build()] {
        // In an empty Redis the first invalidation makes the table of counters, and refuses whatever began before.
        cache.invalidate_tags(&["unrelated"]).await.unwrap();
        for late in [None, Some("late")] {
            let (calls, gate, began) =
                (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
            let spawn = || {
                let (cache, calls, gate, began) =
                    (cache.clone(), Arc::clone(&calls), Arc::clone(&gate), Arc::clone(&began));
                tokio::spawn(async move {
                    let policy = Policy::ttl(HOUR).tags(["own"]);
                    let load = async move || {
                        let number = calls.fetch_add(1, Ordering::SeqCst) + 1;
                        began.notify_one();
                        gate.acquire().await.unwrap().forget();
                        Ok::<_, Failure>(Loaded::found(number).tags(late))
                    };
                    cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await
                })
            };
            let mut all = vec![spawn()];
            began.notified().await;
            for _ in 0..20 {
                cache.invalidate_tags(&["unrelated"]).await.unwrap();
                all.push(spawn());
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            }
            // Everybody who came has asked Redis.
            cache.get::<u32>("other").await.unwrap();
            gate.add_permits(100);
            let mut found = Vec::new();
            for one in all {
                found.push(one.await.unwrap().unwrap().unwrap());
            }
            let calls = calls.load(Ordering::SeqCst);
            match late {
                None => {
                    assert_eq!((calls, found), (1, vec![1; 21]));
                    assert_eq!(cache.get::<u32>("k").await.unwrap(), Some(1));
                }
                // Its tag may have been the one: who came later gets a value that was loaded later.
                Some(_) => assert!(found[0] == 1 && found[1..].iter().all(|value| 1 < *value), "{found:?}"),
            }
            cache.delete("k").await.unwrap();
        }
    }
}

#[tokio::test]
async fn e10_where_redis_takes_no_writes_the_old_value_is_deleted_as_soon_as_it_does() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    let keys = ["s:plain", "s:tagged", "s:batched", "s:many", "s:unguarded", "s:deleted"];
    for key in keys {
        cache.set(key, &1, HOUR).await.unwrap();
    }
    let mut demand = async |replicas: u32| {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg("min-replicas-to-write").arg(replicas);
        let _: () = command.query_async(&mut client).await.unwrap();
    };
    demand(1).await;
    let noted = |error: &ClientError| {
        assert!(matches!(error, ClientError::Unavailable { is_noted: true, .. }), "{error:?}");
        assert!(error.to_string().contains("no writes"), "{error}");
    };
    noted(&cache.set("s:plain", &2, HOUR).await.unwrap_err());
    noted(&cache.set_with_tags("s:tagged", &2, HOUR, &["t"]).await.unwrap_err());
    let mut batch = cache.batch();
    batch.set("s:batched", &2, HOUR).unwrap();
    noted(&batch.run().await.unwrap_err());
    noted(&cache.delete("s:deleted").await.unwrap_err());
    for (key, refuses_older_fills) in [("s:many", true), ("s:unguarded", false)] {
        let options = SetManyOptions { refuses_older_fills, ..SetManyOptions::ttl(HOUR) };
        assert_eq!(cache.set_many(&[(key, 2)], options).await.failed.len(), 1);
    }
    let in_redis: Vec<Option<Vec<u8>>> = rig.client().await.mget(&keys[..]).await.unwrap();
    assert!(in_redis.iter().all(Option::is_some), "Redis answers reads meanwhile, with the old values");
    reads_as_missing(&cache, &keys).await;
    demand(0).await;
    let client = rig.client().await;
    wait_until("all old values are gone", async || {
        let left: Vec<Option<Vec<u8>>> =
            client.clone().mget(&keys[..]).await.map_err(|error| error.to_string())?;
        if left.iter().all(Option::is_none) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    cache.set("s:plain", &3, HOUR).await.unwrap();
    assert_eq!(cache.get::<u32>("s:plain").await.unwrap(), Some(3));
}

/// Whatever way somebody reads these keys, which exist in Redis, they are missing.
async fn reads_as_missing(cache: &Cache, keys: &[&str]) {
    let near = cache.space::<str, u32>("s").near(Near::bytes("1MiB")).build().unwrap();
    let read = cache.get_many::<u32>(keys).await.unwrap();
    assert!(read.iter().all(Option::is_none), "{read:?}");
    for key in keys {
        assert_eq!(cache.get::<u32>(key).await.unwrap(), None, "{key}");
        assert_eq!(cache.get_bytes(key).await.unwrap(), None, "{key}");
        assert_eq!(near.get(key.trim_start_matches("s:")).await.unwrap(), None, "{key}");
        assert!(!cache.exists(key).await.unwrap(), "{key}");
        let mut batch = cache.batch();
        let (value, flag) = (batch.get::<u32>(key).unwrap(), batch.exists(key).unwrap());
        let results = batch.run().await.unwrap();
        assert_eq!((results.value(&value).unwrap(), results.flag(&flag).unwrap()), (None, false), "{key}");
        for policy in [Policy::ttl(HOUR), Policy::ttl(HOUR).fail_safe(HOUR)] {
            let loaded = cache.get_or_load::<u32, _, _, _, _>(key, &policy, failing).await;
            assert!(loaded.is_err(), "{key}: there is no old value for bad times: {loaded:?}");
        }
    }
}

#[tokio::test]
async fn e13_without_a_worker_the_sets_of_tags_go_when_their_entries_have() {
    let rig = RedisRig::start(&[]).await;
    let (cache, client) = (cache_of(&rig), rig.client().await);
    for n in 0..2_000 {
        let tags = [format!("of:{n}"), "all".to_owned()];
        cache.set_with_tags(&format!("n:{n}"), &n, Duration::from_secs(1), &tags).await.unwrap();
    }
    cache.set_with_tags("stays", &1, HOUR, &["all"]).await.unwrap();
    wait_until("the sets are gone", async || {
        let keys: Vec<String> = client.clone().keys("ck:*").await.unwrap();
        // The counters, the metadata, the list of windows; one window, its set and the list of its tags.
        if keys.len() <= 6 { Ok(()) } else { Err(format!("{} keys", keys.len())) }
    })
    .await;
    assert_eq!(cache.invalidate_tags(&["all"]).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn e14_a_loader_that_waits_for_itself_is_told_so() {
    fn ask(
        cache: Cache,
        chain: &'static [&'static str],
    ) -> futures_util::future::BoxFuture<'static, Result<Option<u32>, ClientError>> {
        Box::pin(async move {
            let Some((first, rest)) = chain.split_first() else { return Ok(Some(5)) };
            let policy = Policy::ttl(MINUTE);
            let next = cache.clone();
            cache.get_or_load::<u32, _, _, _, _>(first, &policy, move || ask(next, rest)).await
        })
    }
    let cache = Cache::in_memory().build();
    for chain in [&["a", "a"][..], &["a", "b", "a"], &["a", "b", "c", "b"]] {
        let error = ask(cache.clone(), chain).await.unwrap_err();
        assert!(error.to_string().contains("waits for itself"), "{error}");
    }
    assert_eq!(ask(cache.clone(), &["a", "b", "c"]).await.unwrap(), Some(5));
    cache.delete_many(&["a", "b", "c"]).await.unwrap();
    // Two who began apart, and each wants what the other loads.
    let gate = Arc::new(tokio::sync::Barrier::new(2));
    let both = [("a", "b"), ("b", "a")].map(|(own, other)| {
        let (cache, inner, gate) = (cache.clone(), cache.clone(), Arc::clone(&gate));
        tokio::spawn(async move {
            let load = async move || {
                gate.wait().await;
                let found =
                    inner.get_or_load::<u32, _, _, _, _>(other, &Policy::ttl(MINUTE), || answer(9)).await;
                // The one who is refused goes on without it.
                Ok::<_, Failure>(Some(found.ok().flatten().unwrap_or(1)))
            };
            cache.get_or_load::<u32, _, _, _, _>(own, &Policy::ttl(MINUTE), load).await
        })
    });
    for one in both {
        assert_eq!(one.await.unwrap().unwrap(), Some(1));
    }
}

#[tokio::test]
async fn e16_readers_behind_a_holder_that_was_killed_cause_one_load_and_its_value_is_stored() {
    let rig = RedisRig::start(&[]).await;
    let mut client = rig.client().await;
    let lock = rig.store().keys().lock("load:k");
    let _: () = client.pset_ex(&lock, "9 somebody who was killed", 2_000).await.unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let policy = Policy::ttl(HOUR);
    let all: Vec<_> = (0..50)
        .map(|_| {
            // Each in a process of its own.
            let (cache, calls, policy) = (cache_of(&rig), Arc::clone(&calls), policy.clone());
            tokio::spawn(async move {
                let load = async move || Ok::<_, Failure>(Some(calls.fetch_add(1, Ordering::SeqCst) + 1));
                cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await
            })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), Some(1));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(cache_of(&rig).get::<u32>("k").await.unwrap(), Some(1), "it is stored");
    // How long the lock of a load lives: so long its readers wait for nothing.
    let (held, mut looking) = (cache_of(&rig), client.clone());
    let lock = rig.store().keys().lock("load:other");
    let load = async move || Ok::<_, Failure>(Some(looking.pttl::<_, i64>(lock).await.unwrap()));
    let left = held.get_or_load::<i64, _, _, _, _>("other", &policy, load).await.unwrap().unwrap();
    assert!((1..=2_000).contains(&left), "{left}");
}
