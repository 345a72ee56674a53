//! The seed's patterns of loading what is missing, on real servers.

use std::collections::{BTreeMap, HashMap};
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper_client::{
    BreakerSettings, BreakerState, Cache, ClientError, LoadLockOptions, Loaded, Policy, SetManyOptions,
};
use cachekeeper_config as config;
use cachekeeper_testkit::servers::Session;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;
use tokio::sync::{Notify, Semaphore};

use crate::cache::{HOUR, cache_of};
use crate::support::{RedisRig, Rig, carried_out, count_anew, wait_until};

type Failure = std::io::Error;

/// A loader that says when it began, and goes on when it is let through.
#[derive(Clone)]
struct Gate {
    began: Arc<Notify>,
    open: Arc<Semaphore>,
    calls: Arc<AtomicU32>,
}

impl Gate {
    fn new() -> Self {
        Self { began: Arc::default(), open: Arc::new(Semaphore::new(0)), calls: Arc::default() }
    }

    async fn pass(&self) -> u32 {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.began.notify_one();
        self.open.acquire().await.unwrap().forget();
        number
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

fn answer(value: u32) -> Ready<Result<Option<u32>, Failure>> {
    ready(Ok(Some(value)))
}

#[tokio::test]
async fn row_2_a_fill_on_redis_lives_as_long_as_it_shall_and_loses_to_every_invalidation() {
    let rig = RedisRig::start(&[]).await;
    let (cache, other, mut client) = (cache_of(&rig), cache_of(&rig), rig.client().await);
    let policy = Policy::ttl(HOUR).tags(["t"]);
    for (how, late) in
        [("nothing", "late"), ("delete", "late"), ("tag", "late"), ("set", "late"), ("late tag", "late")]
    {
        let gate = Gate::new();
        let loading = tokio::spawn({
            let (cache, gate, policy) = (cache.clone(), gate.clone(), policy.clone());
            async move {
                let load = async move || Ok::<_, Failure>(Loaded::found(gate.pass().await).tags([late]));
                cache.get_or_load::<u32, _, _, _, _>("k", &policy, load).await
            }
        });
        gate.began.notified().await;
        // By another process.
        match how {
            "delete" => drop(other.delete("k").await.unwrap()),
            "tag" => drop(other.invalidate_tags(&["t"]).await.unwrap()),
            "late tag" => drop(other.invalidate_tags(&["late"]).await.unwrap()),
            "set" => other.set("k", &77, HOUR).await.unwrap(),
            _ => {}
        }
        gate.open.add_permits(1);
        assert_eq!(loading.await.unwrap().unwrap(), Some(1), "{how}");
        let expected = match how {
            "nothing" => Some(1),
            "set" => Some(77),
            _ => None,
        };
        assert_eq!(cache.get::<u32>("k").await.unwrap(), expected, "{how}");
        if how == "nothing" {
            let left: i64 = client.pttl("k").await.unwrap();
            assert!((3_500_000..=3_600_000).contains(&left), "{left}");
            assert_eq!(other.invalidate_tags(&["late"]).await.unwrap(), 1, "it is a member of both");
        }
        other.delete("k").await.unwrap();
    }
}

const SHOP: &str = "
    create table products (id int primary key, name text);
    create table reviews (product_id int, body text);
    create table stock (product_id int primary key, pieces int);
    insert into products values (1, 'new name');
    insert into reviews values (1, 'good'), (1, 'better');
    insert into stock values (1, 7);";

#[tokio::test]
async fn row_8_an_object_of_three_parts_is_refreshed_from_postgres_in_one_step() {
    let rig = Rig::start(SHOP).await;
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().build();
    let mut client = rig.client().await;
    for key in ["product:1", "reviews:1", "stock:1", "temp:product:1"] {
        cache.set(key, "old", HOUR).await.unwrap();
    }
    let mut session = rig.postgres.session().await.unwrap();
    let mut text = async |query: &str| session.text(query).await.unwrap().unwrap();
    let name = text("select name from products where id = 1").await;
    let reviews = text("select string_agg(body, ',' order by body) from reviews where product_id = 1").await;
    let reviews: Vec<&str> = reviews.split(',').collect();
    let pieces: u32 = text("select pieces::text from stock where product_id = 1").await.parse().unwrap();
    count_anew(&mut client).await;
    let mut batch = cache.batch();
    batch.set("product:1", &name, HOUR).unwrap();
    batch.set("reviews:1", &reviews, HOUR / 2).unwrap();
    batch.set("stock:1", &pieces, HOUR / 12).unwrap();
    let temporary = batch.delete("temp:product:1").unwrap();
    let results = batch.run().await.unwrap();
    assert!(results.flag(&temporary).unwrap());
    assert_eq!(carried_out(&mut client, "exec").await, 1);
    assert_eq!(cache.get::<String>("product:1").await.unwrap().as_deref(), Some("new name"));
    assert_eq!(cache.get::<Vec<String>>("reviews:1").await.unwrap().unwrap(), ["better", "good"]);
    assert_eq!(cache.get::<u32>("stock:1").await.unwrap(), Some(7));
    assert!(!cache.exists("temp:product:1").await.unwrap());
    for (key, life) in [("product:1", 3_600_000), ("reviews:1", 1_800_000), ("stock:1", 300_000)] {
        let left: i64 = client.pttl(key).await.unwrap();
        assert!((life - 60_000..=life).contains(&left), "{key}: {left}");
    }
}

#[tokio::test]
async fn row_11_a_hit_costs_one_get_and_takes_no_lock() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    cache.set("warm", &5, HOUR).await.unwrap();
    count_anew(&mut client).await;
    let never = async || -> Result<Option<u32>, Failure> { panic!("it is there") };
    assert_eq!(cache.get_or_load("warm", &Policy::ttl(HOUR), never).await.unwrap(), Some(5));
    let text: String = redis::cmd("INFO").arg("commandstats").query_async(&mut client).await.unwrap();
    // Beside what looks at the statistics, and the greeting of each second.
    let ignored = ["config|resetstat", "config", "info", "hello", "client|setname", "client|getname"];
    let used: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'))
        .filter(|(name, _)| !ignored.contains(name))
        .collect();
    assert_eq!(used.keys().collect::<Vec<_>>(), [&"get"], "{text}");
    assert!(used["get"].starts_with("calls=1,"), "{text}");
}

#[tokio::test]
async fn row_17_whoever_waited_in_vain_loads_for_itself_and_stores_nothing() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (cache_of(&rig), rig.client().await);
    let lock = rig.store().keys().lock("load:k");
    // Another process, which takes its time.
    let _: () = client.set_options(&lock, "9 somebody", redis::SetOptions::default()).await.unwrap();
    let options = LoadLockOptions { wait: Duration::from_millis(200), ..LoadLockOptions::default() };
    let policy = Policy::ttl(HOUR).lock(Some(options));
    for expected in [5, 6] {
        assert_eq!(cache.get_or_load("k", &policy, move || answer(expected)).await.unwrap(), Some(expected));
        assert!(!cache.exists("k").await.unwrap(), "the value is the holder's to store");
    }
    let holder: String = client.get(&lock).await.unwrap();
    assert_eq!(holder, "9 somebody");
}

#[tokio::test]
async fn row_23_and_24_what_is_missing_comes_by_one_statement_and_is_stored_by_one_script() {
    let table = "create table products (id int primary key, name text);
        insert into products select n, 'product ' || n from generate_series(1, 50) n";
    let rig = Rig::start(table).await;
    let cache = Cache::connect(&rig.redis.url(), "test").unwrap().build();
    let mut client = rig.client().await;
    cache.set("product:1", "cached", HOUR).await.unwrap();
    let statements = Arc::new(AtomicU32::new(0));
    let load = {
        let (url, statements) = (rig.postgres.url(), Arc::clone(&statements));
        move |ids: Vec<i32>| {
            let (url, statements) = (url.clone(), Arc::clone(&statements));
            async move {
                statements.fetch_add(1, Ordering::SeqCst);
                let mut session = Session::open(&url).await.map_err(Failure::other)?;
                let list: Vec<String> = ids.iter().map(ToString::to_string).collect();
                let query = format!(
                    "select json_object_agg(id, name)::text from products where id in ({})",
                    list.join(",")
                );
                let found = session.text(&query).await.map_err(Failure::other)?.unwrap_or("{}".to_owned());
                let found: HashMap<i32, String> = serde_json::from_str(&found).map_err(Failure::other)?;
                Ok::<_, Failure>(found)
            }
        }
    };
    let ids: Vec<i32> = (1..=60).chain(1..=20).collect();
    // Without the lock between processes, so that the only script is the store, which the server knows already.
    let policy = Policy::ttl(HOUR).lock(None);
    cache.get_or_load("other", &policy, || answer(1)).await.unwrap();
    count_anew(&mut client).await;
    let key = |id: &i32| format!("product:{id}");
    let partial =
        cache.get_or_load_many::<i32, String, _, _, _, _>(&ids, key, &policy, load.clone()).await.unwrap();
    assert_eq!((partial.values.len(), partial.failed.len()), (50, 0));
    assert_eq!((&*partial.values[&1], &*partial.values[&50]), ("cached", "product 50"));
    assert!(!partial.values.contains_key(&51), "absent ids are absent");
    assert_eq!(statements.load(Ordering::SeqCst), 1);
    assert_eq!(carried_out(&mut client, "evalsha").await, 1, "one script stores them all");
    let left: i64 = client.pttl("product:50").await.unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    // Nothing is missing any more: no statement, no script.
    let present: Vec<i32> = (1..=50).collect();
    let again = cache.get_or_load_many::<i32, String, _, _, _, _>(&present, key, &policy, load).await;
    assert_eq!(again.unwrap().values.len(), 50);
    assert_eq!(statements.load(Ordering::SeqCst), 1);
    assert_eq!(carried_out(&mut client, "evalsha").await, 1);
}

/// A cache that gives up on a reply quickly, and opens its breaker after three.
fn impatient(rig: &RedisRig) -> Cache {
    let limit = Duration::from_millis(100);
    let settings = config::Redis {
        connect_timeout: limit,
        response_timeout: limit,
        ..config::Redis::new(config::Secret::new(rig.redis.url()))
    };
    let breaker = BreakerSettings { failures: 3, pause: Duration::from_millis(20) };
    Cache::connect_with(&settings, "test").unwrap().breaker(breaker).build()
}

#[tokio::test]
async fn row_49_without_redis_a_hundred_tasks_still_cause_one_load() {
    let rig = RedisRig::start(&[]).await;
    let cache = impatient(&rig);
    cache.set("other", &1, HOUR).await.unwrap();
    rig.redis.pause();
    while cache.breaker_state() == BreakerState::Closed {
        assert!(cache.get::<u32>("other").await.is_err());
    }
    let (gate, policy) = (Gate::new(), Policy::ttl(HOUR));
    let all: Vec<_> = (0..100)
        .map(|_| {
            let (cache, gate, policy) = (cache.clone(), gate.clone(), policy.clone());
            tokio::spawn(async move {
                let load = async move || Ok::<_, Failure>(Some(gate.pass().await));
                cache.get_or_load::<u32, _, _, _, _>("cold", &policy, load).await
            })
        })
        .collect();
    gate.began.notified().await;
    // With the breaker open nobody waits for Redis: all of them have come by now.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    gate.open.add_permits(100);
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), Some(1));
    }
    assert_eq!(gate.calls(), 1);
    rig.redis.resume();
}

#[tokio::test]
async fn row_53_a_half_open_breaker_lets_only_its_probe_through() {
    let rig = RedisRig::start(&[]).await;
    let (cache, mut client) = (impatient(&rig), rig.client().await);
    cache.set("k", &1, HOUR).await.unwrap();
    count_anew(&mut client).await;
    rig.redis.pause();
    let mut sent = 0;
    while cache.breaker_state() == BreakerState::Closed {
        assert!(cache.get::<u32>("k").await.is_err());
        sent += 1;
    }
    wait_until("the breaker probes", async || match cache.breaker_state() {
        BreakerState::HalfOpen => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    for _ in 0..200 {
        let refused = cache.get::<u32>("k").await.unwrap_err();
        assert!(refused.to_string().contains("circuit breaker"), "{refused}");
    }
    rig.redis.resume();
    wait_until("the breaker closes", async || match cache.breaker_state() {
        BreakerState::Closed => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    assert!(carried_out(&mut client, "get").await <= sent, "what was refused has not reached the server");
    assert!(0 < carried_out(&mut client, "ping").await);
    assert_eq!(cache.get::<u32>("k").await.unwrap(), Some(1));
}

/// Polls a call so often, and drops it; true: it was over before.
async fn drop_after<T>(polls: usize, call: impl Future<Output = T>) -> bool {
    let mut call = Box::pin(call);
    for _ in 0..polls {
        if futures_util::poll!(call.as_mut()).is_ready() {
            return true;
        }
        // The reply may come meanwhile.
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
    }
    false
}

#[tokio::test]
async fn row_56_a_call_dropped_at_any_point_leaves_no_lock_and_nothing_half_done() {
    let rig = RedisRig::start(&[]).await;
    let (cache, client) = (cache_of(&rig), rig.client().await);
    let policy = Policy::ttl(HOUR);
    let items: Vec<(String, u32)> = (0..10).map(|n| (format!("many:{n}"), n)).collect();
    let keys: Vec<&str> = items.iter().map(|(key, _)| key.as_str()).collect();
    for operation in ["load", "many", "batch", "tags", "invalidate"] {
        let mut polls = 0;
        loop {
            cache.delete_many(&keys).await.unwrap();
            cache.delete("k").await.unwrap();
            cache.set_with_tags("tagged", &1, HOUR, &["t"]).await.unwrap();
            let is_over = match operation {
                "load" => {
                    let load = cache.get_or_load::<u32, _, _, _, _>("k", &policy, || answer(5));
                    drop_after(polls, load).await
                }
                "many" => drop_after(polls, cache.set_many(&items, SetManyOptions::ttl(HOUR))).await,
                "batch" => {
                    let mut batch = cache.batch();
                    items.iter().for_each(|(key, value)| batch.set(key, value, HOUR).unwrap());
                    drop_after(polls, batch.run()).await
                }
                "tags" => drop_after(polls, cache.set_with_tags("k", &5, HOUR, &["t"])).await,
                _ => drop_after(polls, cache.invalidate_tags(&["t"])).await,
            };
            // Commands of one connection are carried out in their order: what was sent is done by now.
            let stored = cache.get_many::<u32>(&keys).await.unwrap().into_iter().flatten().count();
            assert!([0, 10].contains(&stored), "{operation} after {polls} polls: {stored} of ten");
            if operation == "tags" {
                let there = cache.exists("k").await.unwrap();
                assert_eq!(cache.invalidate_tags(&["t"]).await.unwrap(), 1 + u64::from(there), "{polls}");
            }
            wait_until("no lock is left", async || {
                let locks: Vec<String> = client.clone().keys("*lock:*").await.unwrap();
                if locks.is_empty() { Ok(()) } else { Err(format!("{locks:?}")) }
            })
            .await;
            let next = cache.get_or_load::<u32, _, _, _, _>("k", &policy, || answer(6)).await.unwrap();
            assert!(next.is_some());
            if is_over {
                break;
            }
            polls += 1;
        }
        assert!(1 < polls, "{operation} was dropped nowhere");
    }
}

type Answer = Result<Option<u32>, ClientError>;

/// One of two caches that must agree.
struct Twin {
    cache: Cache,
    loading: Option<(Gate, tokio::task::JoinHandle<Answer>)>,
}

impl Twin {
    async fn begin(&mut self, key: &str, value: u32, tags: &[&str], late: &[&str]) {
        let (gate, cache, key) = (Gate::new(), self.cache.clone(), key.to_owned());
        let policy = Policy::ttl(HOUR).tags(tags.iter().copied());
        let late: Vec<String> = late.iter().map(ToString::to_string).collect();
        let passed = gate.clone();
        let task = tokio::spawn(async move {
            let load = async move || {
                passed.pass().await;
                Ok::<_, Failure>(Loaded::found(value).tags(late))
            };
            cache.get_or_load::<u32, _, _, _, _>(&key, &policy, load).await
        });
        gate.began.notified().await;
        self.loading = Some((gate, task));
    }

    async fn end(&mut self) -> Option<u32> {
        let (gate, task) = self.loading.take()?;
        gate.open.add_permits(1);
        task.await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn row_57_the_double_decides_on_fills_and_invalidations_as_redis_does() {
    const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];
    const TAGS: [&str; 3] = ["red", "green", "blue"];
    let rig = RedisRig::start(&[]).await;
    for seed in 0..10 {
        let mut random = StdRng::seed_from_u64(seed);
        let _: () = redis::cmd("FLUSHALL").query_async(&mut rig.client().await).await.unwrap();
        let mut twins =
            [cache_of(&rig), Cache::in_memory().build()].map(|cache| Twin { cache, loading: None });
        for twin in &twins {
            // Makes the table of counters: what began before it is refused on Redis.
            twin.cache.delete("a").await.unwrap();
        }
        for step in 0..150_u32 {
            let (key, tag) = (KEYS[random.random_range(0..5)], TAGS[random.random_range(0..3)]);
            let late = TAGS[random.random_range(0..3)];
            let what = random.random_range(0..7);
            let mut answers = Vec::new();
            for twin in &mut twins {
                let cache = twin.cache.clone();
                answers.push(match what {
                    0 => {
                        cache.set(key, &step, HOUR).await.unwrap();
                        None
                    }
                    1 => cache.delete(key).await.map(u32::from).ok(),
                    2 => {
                        cache.delete(key).await.unwrap();
                        cache.set_with_tags(key, &step, HOUR, &[tag]).await.unwrap();
                        None
                    }
                    3 => u32::try_from(cache.invalidate_tags(&[tag]).await.unwrap()).ok(),
                    4 | 5 if twin.loading.is_none() && cache.get::<u32>(key).await.unwrap().is_none() => {
                        twin.begin(key, step, &[tag], &[late][usize::from(what == 4)..]).await;
                        None
                    }
                    _ => twin.end().await,
                });
            }
            assert_eq!(answers[0], answers[1], "seed {seed}, step {step}, {what} {key} {tag}");
            let [redis, memory] = &twins;
            assert_eq!(
                redis.cache.get_many::<u32>(&KEYS).await.unwrap(),
                memory.cache.get_many::<u32>(&KEYS).await.unwrap(),
                "seed {seed}, step {step}, {what} {key} {tag} {late}"
            );
        }
        for twin in &mut twins {
            twin.end().await;
        }
    }
}
