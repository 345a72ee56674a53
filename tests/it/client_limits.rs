//! The library with inputs at their edges: durations, shares, types that are nothing, keys of foreign types.

use std::future::{Ready, ready};
use std::time::{Duration, SystemTime};

use cachekeeper_client::{
    BreakerSettings, Cache, Chaos, Fault, LoadLockOptions, LockOptions, Place, Policy, SetManyOptions,
    Sliding,
};
use redis::AsyncCommands;

use crate::cache::{HOUR, cache_of};
use crate::support::RedisRig;

type Failure = std::io::Error;

fn answer(value: u32) -> Ready<Result<Option<u32>, Failure>> {
    ready(Ok(Some(value)))
}

const SPANS: [Duration; 4] = [Duration::ZERO, Duration::from_nanos(1), HOUR, Duration::MAX];
const SHARES: [f64; 6] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.5, 1e300];

#[tokio::test]
async fn e12_no_span_and_no_share_makes_a_load_panic_or_fail() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    for span in SPANS {
        for share in SHARES {
            let lock = LoadLockOptions { life: span, wait: span };
            let policies = [
                Policy::ttl(span).jitter(share).eager(share),
                Policy::ttl(HOUR).jitter(share).eager(share).fail_safe(span).throttle(span),
                Policy::ttl(span).negative(span).fail_safe(span).soft_timeout(span).eager(share),
                Policy::ttl(HOUR).lock(Some(lock)),
            ];
            for (number, policy) in policies.iter().enumerate() {
                cache.delete("k").await.unwrap();
                for _ in 0..2 {
                    let loaded = cache.get_or_load("k", policy, || answer(5)).await;
                    assert_eq!(loaded.unwrap(), Some(5), "{span:?} {share} policy {number}");
                    let failing = async || Err::<Option<u32>, _>(Failure::other("down"));
                    drop(cache.get_or_load::<u32, _, _, _, _>("other", policy, failing).await);
                }
            }
            let chaos = Chaos::with_seed(1);
            chaos.set(Place::Redis, Fault::Delay(Duration::ZERO), share);
            let odd = Cache::in_memory().chaos(chaos).build();
            odd.set("k", &1, span).await.unwrap();
        }
    }
}

#[tokio::test]
async fn e12_no_span_makes_another_operation_panic_or_fail() {
    let rig = RedisRig::start(&[]).await;
    for span in SPANS {
        let breaker = BreakerSettings { failures: 0, pause: span };
        let builder = Cache::connect(&rig.redis.url(), "test").unwrap().breaker(breaker);
        let cache = builder.loads_without_redis(usize::MAX).slow_from(span).build();
        cache.set_with_tags("k", &1, span, &["t"]).await.unwrap();
        let options = SetManyOptions { chunk: usize::MAX, parallel: usize::MAX, ..SetManyOptions::ttl(span) };
        assert!(cache.set_many(&[("m", 1)], options).await.is_complete());
        cache.set("s", &1, HOUR).await.unwrap();
        assert_eq!(cache.get_sliding::<u32>("s", Sliding::idle(span)).await.unwrap(), Some(1), "{span:?}");
        for until in [SystemTime::UNIX_EPOCH, SystemTime::now() + HOUR] {
            cache.set("s", &1, HOUR).await.unwrap();
            let sliding = Sliding { idle: span, until: Some(until) };
            assert_eq!(cache.get_sliding::<u32>("s", sliding).await.unwrap(), Some(1), "{span:?}");
        }
        cache.expire("s", span).await.unwrap();
        let locks = cache.locks();
        assert!(locks.wait_for_unlock("free", span).await.unwrap());
        let options = LockOptions { life: span, wait: span, max_hold: Some(span), is_renewed: true };
        match locks.acquire("a", options).await {
            Ok(guard) => drop(guard.release().await.unwrap()),
            Err(error) => assert!(span < Duration::from_millis(10), "{error}"),
        }
        let hold = LockOptions { max_hold: Some(span), ..LockOptions::default() };
        locks.acquire("b", hold).await.unwrap().release().await.unwrap();
    }
}

#[test]
fn e12_a_cache_is_opened_outside_of_a_runtime() {
    let cache = Cache::connect("redis://127.0.0.1:1/0", "test").unwrap().build();
    drop(cache.locks().clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(cache.get::<u32>("k")).unwrap_err().is_unavailable());
}

#[tokio::test]
async fn e15_types_that_are_nothing_read_the_same_first_and_later() {
    let rig = RedisRig::start(&[]).await;
    for cache in [cache_of(&rig), Cache::in_memory().build()] {
        let policy = Policy::ttl(HOUR);
        for negative in [policy.clone(), policy.clone().negative(HOUR)] {
            cache.delete_many(&["n", "u", "a", "x"]).await.unwrap();
            for _first_then_later in 0..2 {
                let null = async || Ok::<_, Failure>(Some(None::<u32>));
                let read = cache.get_or_load::<Option<u32>, _, _, _, _>("n", &negative, null).await;
                assert_eq!(read.unwrap(), Some(None));
                assert_eq!(cache.get::<Option<u32>>("n").await.unwrap(), Some(None));
                let unit = async || Ok::<_, Failure>(Some(()));
                assert_eq!(cache.get_or_load("u", &negative, unit).await.unwrap(), Some(()));
                assert_eq!(cache.get::<()>("u").await.unwrap(), Some(()));
                let nothing = async || Ok::<_, Failure>(None::<u32>);
                assert_eq!(cache.get_or_load("a", &negative, nothing).await.unwrap(), None);
            }
            let absent = async || Ok::<_, Failure>(None::<Option<u32>>);
            let first = cache.get_or_load("x", &negative, absent).await.unwrap();
            let later = cache.get_or_load("x", &negative, absent).await.unwrap();
            assert_eq!(first, later);
        }
    }
}

#[tokio::test]
async fn e11_a_key_of_another_type_concerns_itself_alone() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    let policies =
        [Policy::ttl(HOUR), Policy::ttl(HOUR).fail_safe(HOUR), Policy::ttl(HOUR).eager(0.1).lock(None)];
    for policy in policies {
        for foreign in ["list", "set", "hash", "zset", "stream"] {
            let items: Vec<(String, u32)> = (0..100).map(|n| (format!("p:{n}"), n)).collect();
            cache.set_many(&items, SetManyOptions::ttl(2 * HOUR)).await;
            cache.delete("p:7").await.unwrap();
            make(&mut client, "p:7", foreign).await;
            assert_eq!(cache.get::<u32>("p:7").await.unwrap(), None, "{foreign}");
            let sliding = Sliding::idle(HOUR);
            assert_eq!(cache.get_sliding::<u32>("p:7", sliding).await.unwrap(), None, "{foreign}");
            let mut batch = cache.batch();
            let (one, other) = (batch.get::<u32>("p:7").unwrap(), batch.get::<u32>("p:8").unwrap());
            batch.set("p:9", &90, 2 * HOUR).unwrap();
            let results = batch.run().await.unwrap();
            assert_eq!((results.value(&one).unwrap(), results.value(&other).unwrap()), (None, Some(8)));
            let ids: Vec<u32> = (0..100).collect();
            let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let log = std::sync::Arc::clone(&asked);
            let load = move |ids: Vec<u32>| {
                log.lock().unwrap().extend(ids.clone());
                async move {
                    let found = ids.into_iter().map(|id| (id, id + 1_000));
                    Ok::<std::collections::HashMap<u32, u32>, Failure>(found.collect())
                }
            };
            let key = |id: &u32| format!("p:{id}");
            let all = cache.get_or_load_many::<u32, u32, _, _, _, _>(&ids, key, &policy, load).await.unwrap();
            assert_eq!((all.values.len(), all.values[&7], all.values[&8]), (100, 1_007, 8), "{foreign}");
            assert_eq!(*asked.lock().unwrap(), [7], "{foreign}");
            assert_eq!(cache.get::<u32>("p:7").await.unwrap(), Some(1_007), "it is healed");
            make(&mut client, "one", foreign).await;
            assert_eq!(cache.get_or_load("one", &policy, || answer(5)).await.unwrap(), Some(5));
            assert_eq!(cache.get::<u32>("one").await.unwrap(), Some(5), "{foreign}");
        }
    }
}

async fn make(client: &mut redis::aio::MultiplexedConnection, key: &str, kind: &str) {
    let _: () = client.del(key).await.unwrap();
    let arguments: &[&str] = match kind {
        "list" => &["RPUSH", key, "a"],
        "set" => &["SADD", key, "a"],
        "hash" => &["HSET", key, "a", "b"],
        "zset" => &["ZADD", key, "1", "a"],
        _ => &["XADD", key, "*", "a", "b"],
    };
    let mut command = redis::cmd(arguments[0]);
    let _: redis::Value = command.arg(&arguments[1..]).query_async(client).await.unwrap();
}
