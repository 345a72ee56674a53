//! The library when servers are paused, killed, full, emptied, replaced; and next to a worker's datasets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper_client::{BreakerSettings, BreakerState, Cache, ClientError, Heard, Policy};
use cachekeeper_config as config;
use cachekeeper_engine::epoch;
use cachekeeper_protocol::event::Event;
use cachekeeper_testkit::servers::Redis;
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use crate::cache::{HOUR, cache_of};
use crate::support::{RedisRig, Rig, wait_until};

type Failure = std::io::Error;

/// A cache that gives up on a reply quickly.
fn impatient(rig: &RedisRig) -> Cache {
    let limit = Duration::from_millis(100);
    let settings = config::Redis {
        connect_timeout: limit,
        response_timeout: limit,
        ..config::Redis::new(config::Secret::new(rig.redis.url()))
    };
    let breaker = BreakerSettings { failures: 3, pause: Duration::from_millis(20) };
    Cache::connect_with(&settings, "test").unwrap().breaker(breaker).loads_without_redis(4).build()
}

async fn closed(cache: &Cache) {
    wait_until("the breaker closes", async || match cache.breaker_state() {
        BreakerState::Closed => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
}

/// A loader that counts how many of it run at the same time.
#[derive(Clone, Default)]
struct Counted {
    calls: Arc<AtomicU32>,
    now: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
}

impl Counted {
    async fn run(self) -> Result<Option<u32>, Failure> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(Some(self.calls.fetch_add(1, Ordering::SeqCst) + 1))
    }
}

#[tokio::test]
async fn row_53_with_redis_paused_the_breaker_opens_loaders_answer_and_missed_deletes_are_made_up() {
    let rig = RedisRig::start(&[]).await;
    let cache = impatient(&rig);
    cache.set("gone", "old", HOUR).await.unwrap();
    cache.set_with_tags("tagged", "old", HOUR, &["t"]).await.unwrap();
    cache.set("replaced", "old", HOUR).await.unwrap();
    rig.redis.pause();
    let deleted = cache.delete("gone").await.unwrap_err();
    assert!(matches!(deleted, ClientError::Unavailable { is_noted: true, .. }), "{deleted}");
    assert!(deleted.to_string().contains("noted"), "{deleted}");
    assert!(cache.invalidate_tags(&["t"]).await.unwrap_err().is_unavailable());
    assert!(cache.set("replaced", "new", HOUR).await.unwrap_err().is_unavailable());
    assert_ne!(cache.breaker_state(), BreakerState::Closed);
    // An error is not a miss, and an open breaker answers at once.
    assert!(cache.get::<String>("gone").await.unwrap_err().is_unavailable());
    let (counted, policy) = (Counted::default(), Policy::ttl(HOUR));
    let all: Vec<_> = (0..40)
        .map(|n| {
            let (cache, counted, policy) = (cache.clone(), counted.clone(), policy.clone());
            tokio::spawn(async move {
                cache.get_or_load::<u32, _, _, _, _>(&format!("k{n}"), &policy, move || counted.run()).await
            })
        })
        .collect();
    for one in all {
        assert!(one.await.unwrap().unwrap().is_some());
    }
    assert_eq!(counted.calls.load(Ordering::SeqCst), 40);
    assert!(counted.most.load(Ordering::SeqCst) <= 4, "loads without Redis are bounded");
    rig.redis.resume();
    closed(&cache).await;
    for key in ["gone", "tagged", "replaced"] {
        assert_eq!(cache.get::<String>(key).await.unwrap(), None, "{key} was to be invalidated");
    }
    cache.set("replaced", "newer", HOUR).await.unwrap();
    assert_eq!(cache.get::<String>("replaced").await.unwrap().as_deref(), Some("newer"));
}

#[tokio::test]
async fn with_redis_killed_and_started_again_the_cache_goes_on() {
    let mut rig = RedisRig::start(&[]).await;
    let cache = impatient(&rig);
    cache.set("k", "v", HOUR).await.unwrap();
    rig.redis.kill();
    for _ in 0..3 {
        assert!(cache.get::<String>("k").await.is_err());
    }
    assert_ne!(cache.breaker_state(), BreakerState::Closed);
    rig.redis.start_again().await.unwrap();
    closed(&cache).await;
    assert_eq!(cache.get::<String>("k").await.unwrap(), None);
    cache.set("k", "v", HOUR).await.unwrap();
    assert_eq!(cache.get::<String>("k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn a_full_redis_refuses_values_but_not_deletes() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.set("k", "old", HOUR).await.unwrap();
    cache.set_with_tags("t", "old", HOUR, &["tag"]).await.unwrap();
    let mut client = rig.client().await;
    let _: () =
        redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query_async(&mut client).await.unwrap();
    assert!(matches!(cache.set("k", "new", HOUR).await, Err(ClientError::Refused(_))));
    assert!(!cache.exists("k").await.unwrap(), "the old value is not right any more");
    assert_eq!(cache.invalidate_tags(&["tag"]).await.unwrap(), 1);
    assert_eq!(cache.breaker_state(), BreakerState::Closed, "a refusal is an answer");
    let loaded =
        cache.get_or_load::<u32, _, _, _, _>("n", &Policy::ttl(HOUR), || Counted::default().run()).await;
    assert_eq!(loaded.unwrap(), Some(1));
}

#[tokio::test]
async fn a_fill_is_refused_when_its_counters_were_lost_with_everything_else() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    cache.delete("k").await.unwrap();
    let (other, mut client) = (cache_of(&rig), rig.client().await);
    let load = async move || {
        // While this loads, Redis loses all it has, and then somebody invalidates: the new counter is the old one's twin.
        let _: () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
        other.delete("k").await?;
        Ok::<_, ClientError>(Some(1))
    };
    assert_eq!(cache.get_or_load::<u32, _, _, _, _>("k", &Policy::ttl(HOUR), load).await.unwrap(), Some(1));
    assert_eq!(cache.get::<u32>("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_hundred_tasks_of_two_processes_load_a_cold_key_once() {
    let rig = RedisRig::start(&[]).await;
    let (calls, policy) = (Arc::new(AtomicU32::new(0)), Policy::ttl(HOUR));
    let caches = [cache_of(&rig), cache_of(&rig)];
    let all: Vec<_> = (0..100)
        .map(|n| {
            let (cache, calls, policy) = (caches[n % 2].clone(), Arc::clone(&calls), policy.clone());
            tokio::spawn(async move {
                let load = async move || {
                    // Long enough for every task to arrive.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok::<_, Failure>(Some(calls.fetch_add(1, Ordering::SeqCst) + 1))
                };
                cache.get_or_load::<u32, _, _, _, _>("cold", &policy, load).await
            })
        })
        .collect();
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), Some(1));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn ten_thousand_keys_under_concurrent_invalidation_keep_no_stale_value() {
    const KEYS: usize = 10_000;
    let rig = RedisRig::start(&[]).await;
    let source: Arc<Vec<AtomicU32>> = Arc::new((0..KEYS).map(|_| AtomicU32::new(0)).collect());
    let policy = Policy::ttl(HOUR).lock(None);
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let (cache, source, policy) = (cache_of(&rig), Arc::clone(&source), policy.clone());
            tokio::spawn(async move {
                for step in 0..KEYS / 4 {
                    let n = (step * 7 + task * 613) % KEYS;
                    let key = format!("n:{n}");
                    if task % 2 == 0 {
                        source[n].fetch_add(1, Ordering::SeqCst);
                        cache.delete(&key).await.unwrap();
                    } else {
                        let source = Arc::clone(&source);
                        let load = async move || {
                            let value = source[n].load(Ordering::SeqCst);
                            tokio::task::yield_now().await;
                            Ok::<_, Failure>(Some(value))
                        };
                        cache.get_or_load::<u32, _, _, _, _>(&key, &policy, load).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let keys: Vec<String> = (0..KEYS).map(|n| format!("n:{n}")).collect();
    let values = cache_of(&rig).get_many::<u32>(&keys).await.unwrap();
    let stale: Vec<_> = values
        .iter()
        .zip(&*source)
        .enumerate()
        .filter(|(_, (value, now))| value.is_some_and(|value| value != now.load(Ordering::SeqCst)))
        .collect();
    assert!(stale.is_empty(), "{} stale values, first {:?}", stale.len(), stale.first());
    assert!(values.iter().flatten().count() > 1_000, "the test stored something");
}

#[tokio::test]
async fn row_27_and_28_events_are_published_and_heard_and_a_gap_is_told() {
    let mut rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let mut events = cache.events().await.unwrap();
    let event = Event { keys: vec!["product:42".to_owned()], ..Event::default() };
    assert_eq!(cache.publish(&event).await.unwrap(), 1);
    assert!(matches!(events.next().await, Heard::Event(heard) if heard == event));
    let mut client = rig.client().await;
    let _: () = client.publish("cache:invalidation", r#"{"CacheKey": "product:42"}"#).await.unwrap();
    assert!(matches!(events.next().await, Heard::Event(heard) if heard.keys == ["product:42"]));
    let _: () = client.publish("cache:invalidation", "{").await.unwrap();
    assert!(matches!(events.next().await, Heard::Invalid(_)));
    rig.redis.kill();
    rig.redis.start_again().await.unwrap();
    assert!(matches!(events.next().await, Heard::Gap));
}

const TABLE: &str = "create table products (id int primary key, name text, category_id int);
    insert into products select n, 'product ' || n, n % 10 from generate_series(1, 100) n";
const DATASET: &str = r#"
[dataset.product]
query = "select id, name, category_id from products"
key = "product:{id}"
tags = ["category:{category_id}"]
ttl = "1h"
watch = [{ table = "products", key = { id = "id" } }]
"#;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Product {
    id: i32,
    name: String,
}

#[tokio::test]
async fn row_1_and_23_a_dataset_is_read_through_its_query_and_stored_under_a_stamp() {
    let mut rig = Rig::start(TABLE).await;
    let context = rig.context(DATASET);
    epoch::ensure(&context, "").await.unwrap();
    let cache = Cache::over(context).build();
    let products = cache.dataset("product").unwrap();
    let first = products.get::<Product>(&["7"]).await.unwrap().unwrap();
    assert_eq!((first.id, &*first.name), (7, "product 7"));
    assert!(cache.exists("product:7").await.unwrap());
    assert_eq!(products.get::<Product>(&["777"]).await.unwrap(), None);
    assert!(!cache.exists("product:777").await.unwrap());
    let many = products.get_many::<Product>(&[&["1"], &["7"], &["777"], &["2"]]).await.unwrap();
    let ids: Vec<Option<i32>> = many.into_iter().map(|one| one.unwrap().map(|product| product.id)).collect();
    assert_eq!(ids, [Some(1), Some(7), None, Some(2)]);
    // Its entries come from Postgres only.
    let refused = cache.set("product:7", "anything", HOUR).await.unwrap_err();
    assert!(refused.to_string().contains("dataset product"), "{refused}");
    assert!(cache.batch().set("product:7", "x", HOUR).is_err());
    assert!(matches!(cache.dataset("nothing"), Err(ClientError::NoDataset(_))));
    // A delete raises the stamp; an application's own entry under the dataset's tag goes with it.
    assert!(cache.delete("product:7").await.unwrap());
    cache.set_with_tags("page:7", "rendered", HOUR, &["category:7"]).await.unwrap();
    products.get::<Product>(&["7"]).await.unwrap();
    rig.postgres.execute("update products set name = 'new' where id = 7").await.unwrap();
    assert!(2 <= cache.invalidate_tags(&["category:7"]).await.unwrap());
    assert!(!cache.exists("page:7").await.unwrap());
    assert_eq!(products.get::<Product>(&["7"]).await.unwrap().unwrap().name, "new");
    // With Redis down, from Postgres.
    rig.redis.kill();
    assert_eq!(products.get::<Product>(&["9"]).await.unwrap().unwrap().id, 9);
    // With Postgres down, from Redis, and an error where it is in neither.
    rig.redis.start_again().await.unwrap();
    closed(&cache).await;
    assert_eq!(products.get::<Product>(&["9"]).await.unwrap().unwrap().id, 9);
    rig.postgres.kill();
    assert!(products.get::<Product>(&["10"]).await.is_err());
}

#[tokio::test]
async fn a_loader_with_a_snapshot_follows_the_stamp_rule() {
    let rig = Rig::start(TABLE).await;
    let context = rig.context(DATASET);
    epoch::ensure(&context, "").await.unwrap();
    let cache = Cache::over(context.clone()).prefixes(["own:"]).build();
    assert_eq!(cache.get::<String>("own:1").await.unwrap(), None);
    wait_until("the prefix is known", async || {
        let known = context.redis.registered_prefixes().await.map_err(|error| error.to_string())?;
        if known.is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
    let policy = Policy::ttl(HOUR);
    let load = |name: &str, invalidate: bool| {
        let (cache, context, name) = (cache.clone(), context.clone(), name.to_owned());
        let url = rig.postgres.url();
        async move || {
            let snapshot = cache.snapshot().await?;
            if invalidate {
                // A change that a worker hears of: it knows the key by its stamp only.
                let event = Event { keys: vec!["own:1".to_owned()], ..Event::default() };
                advance_database(&url).await;
                cachekeeper_engine::events::apply(&context, "test", &[event]).await.unwrap();
            }
            Ok::<_, ClientError>(cachekeeper_client::Loaded::found(name).as_of(snapshot))
        }
    };
    let old = cache.get_or_load::<String, _, _, _, _>("own:1", &policy, load("old", true)).await.unwrap();
    assert_eq!(old.as_deref(), Some("old"));
    assert_eq!(cache.get::<String>("own:1").await.unwrap(), None);
    cache.get_or_load::<String, _, _, _, _>("own:1", &policy, load("new", false)).await.unwrap();
    assert_eq!(cache.get::<String>("own:1").await.unwrap().as_deref(), Some("new"));
}

async fn advance_database(url: &str) {
    let mut session = cachekeeper_testkit::servers::Session::open(url).await.unwrap();
    session.execute("update products set name = name where id = 1").await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_not_redis_is_an_error_and_not_a_miss() {
    let rig = Redis::start(&["--requirepass", "secret"]).await.unwrap();
    let cache = Cache::connect(&rig.url(), "test").unwrap().build();
    let error = cache.get::<String>("k").await.unwrap_err();
    assert!(error.to_string().contains("password"), "{error}");
}
