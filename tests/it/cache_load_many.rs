//! `get_or_load_many`: what holds for one key holds for each of many. Time stands still here and is moved by the tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_client::{Cache, ClientError, ManyLoaded, Partial, Policy};
use tokio::sync::Semaphore;
use tokio::time::{Instant, advance};

use crate::support::RedisRig;

const MINUTE: Duration = Duration::from_secs(60);
type Failure = std::io::Error;

/// A source that notes what it was asked for, waits to be let through, and answers `round * 100 + id`.
#[derive(Clone)]
struct Source {
    asked: Arc<Mutex<Vec<Vec<u32>>>>,
    gate: Arc<Semaphore>,
    is_failing: bool,
}

impl Source {
    fn new(permits: usize) -> Self {
        Self { asked: Arc::default(), gate: Arc::new(Semaphore::new(permits)), is_failing: false }
    }

    fn failing(&self) -> Self {
        Self { is_failing: true, ..self.clone() }
    }

    fn calls(&self) -> Vec<Vec<u32>> {
        self.asked.lock().unwrap().clone()
    }

    async fn load(self, mut ids: Vec<u32>) -> Result<HashMap<u32, u32>, Failure> {
        ids.sort_unstable();
        let round = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(ids.clone());
            u32::try_from(asked.len()).unwrap()
        };
        self.gate.acquire().await.unwrap().forget();
        if self.is_failing {
            return Err(Failure::other("the database is down"));
        }
        Ok(ids.into_iter().map(|id| (id, round * 100 + id)).collect())
    }

    /// What a caller gets for these ids, within an hour of the paused clock.
    async fn want(&self, cache: &Cache, ids: &[u32], policy: &Policy) -> Partial<u32, u32> {
        let source = self.clone();
        let load = move |ids| source.clone().load(ids);
        let call = cache.get_or_load_many::<u32, u32, _, _, _, _>(ids, key, policy, load);
        tokio::time::timeout(60 * MINUTE, call).await.expect("it does not wait for ever").unwrap()
    }
}

fn key(id: &u32) -> String {
    format!("p:{id}")
}

fn values(partial: &Partial<u32, u32>) -> BTreeMap<u32, u32> {
    assert!(partial.failed.is_empty(), "{:?}", partial.failed);
    partial.values.iter().map(|(id, value)| (*id, *value)).collect()
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn e8_old_values_are_served_after_the_soft_timeout_and_the_load_goes_on() {
    let (cache, source) = (Cache::in_memory().build(), Source::new(1));
    let policy = Policy::ttl(MINUTE)
        .fail_safe(10 * MINUTE)
        .soft_timeout(Duration::from_millis(50))
        .hard_timeout(Duration::from_secs(2));
    assert_eq!(values(&source.want(&cache, &[1, 2], &policy).await), [(1, 101), (2, 102)].into());
    advance(2 * MINUTE).await;
    let began = Instant::now();
    assert_eq!(values(&source.want(&cache, &[1, 2], &policy).await), [(1, 101), (2, 102)].into());
    assert_eq!(began.elapsed(), Duration::from_millis(50));
    // For an id of which nothing old is at hand only the hard timeout holds, as for a single key.
    let began = Instant::now();
    let partial = source.want(&cache, &[1, 3], &policy).await;
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    assert_eq!(partial.values, HashMap::from([(1, 101)]));
    assert!(matches!(partial.failed.as_slice(), [(3, ClientError::Timeout(_))]), "{:?}", partial.failed);
    source.gate.add_permits(2);
    settle().await;
    assert_eq!(
        values(&source.want(&cache, &[1, 2, 3], &policy).await),
        [(1, 201), (2, 202), (3, 303)].into()
    );
    assert_eq!(source.calls(), [vec![1, 2], vec![1, 2], vec![3]]);
}

#[tokio::test(start_paused = true)]
async fn e8_after_a_failed_load_old_values_are_served_without_asking_again_for_a_while() {
    let (cache, source) = (Cache::in_memory().build(), Source::new(100));
    let policy = Policy::ttl(MINUTE).fail_safe(10 * MINUTE).throttle(MINUTE / 2);
    source.want(&cache, &[1, 2], &policy).await;
    advance(MINUTE + Duration::from_secs(1)).await;
    let failing = source.failing();
    for _ in 0..3 {
        assert_eq!(values(&failing.want(&cache, &[1, 2], &policy).await), [(1, 101), (2, 102)].into());
    }
    assert_eq!(source.calls().len(), 2, "the loader is asked once");
    // One key alone, and a batch that shares a key with the failed one, know of it.
    let load = async || Ok::<_, Failure>(Some(7_u32));
    assert_eq!(cache.get_or_load("p:1", &policy, load).await.unwrap(), Some(101));
    assert_eq!(values(&source.want(&cache, &[2, 3], &policy).await), [(2, 102), (3, 303)].into());
    advance(MINUTE).await;
    assert_eq!(values(&source.want(&cache, &[1, 2], &policy).await), [(1, 401), (2, 402)].into());
}

#[tokio::test(start_paused = true)]
async fn e8_values_that_are_due_are_served_and_loaded_once_in_the_background() {
    let (cache, source) = (Cache::in_memory().build(), Source::new(1));
    let policy = Policy::ttl(10 * MINUTE).eager(0.2);
    source.want(&cache, &[1, 2, 3], &policy).await;
    advance(9 * MINUTE).await;
    for _ in 0..20 {
        let found = values(&source.want(&cache, &[1, 2, 3], &policy).await);
        assert_eq!(found, [(1, 101), (2, 102), (3, 103)].into());
        settle().await;
    }
    assert_eq!(source.calls(), [vec![1, 2, 3], vec![1, 2, 3]], "one call, in the background");
    source.gate.add_permits(1);
    settle().await;
    assert_eq!(
        values(&source.want(&cache, &[1, 2, 3], &policy).await),
        [(1, 201), (2, 202), (3, 203)].into()
    );
    assert_eq!(source.calls().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn e8_a_load_that_nobody_waits_for_is_cancelled_and_one_that_somebody_waits_for_goes_on() {
    let (cache, source, policy) = (Cache::in_memory().build(), Source::new(0), Policy::ttl(MINUTE));
    let spawn = |ids: &'static [u32]| {
        let (cache, source, policy) = (cache.clone(), source.clone(), policy.clone());
        tokio::spawn(async move { source.want(&cache, ids, &policy).await })
    };
    let (leader, follower) = (spawn(&[1, 2]), spawn(&[2]));
    settle().await;
    leader.abort();
    settle().await;
    source.gate.add_permits(1);
    assert_eq!(values(&follower.await.unwrap()), [(2, 102)].into());
    cache.delete_many(&["p:1", "p:2"]).await.unwrap();
    let alone = spawn(&[1, 2]);
    settle().await;
    alone.abort();
    settle().await;
    source.gate.add_permits(2);
    settle().await;
    assert_eq!(cache.get::<u32>("p:1").await.unwrap(), None, "nobody wanted it any more");
    assert_eq!(values(&source.want(&cache, &[1, 2], &policy).await), [(1, 301), (2, 302)].into());
}

#[tokio::test(start_paused = true)]
async fn e8_a_value_that_does_not_decode_is_loaded_anew_and_the_others_are_not() {
    let (cache, source, policy) = (Cache::in_memory().build(), Source::new(9), Policy::ttl(MINUTE));
    cache.set("p:1", "an older version's text", MINUTE).await.unwrap();
    cache.set("p:2", &7, MINUTE).await.unwrap();
    assert_eq!(values(&source.want(&cache, &[1, 2], &policy).await), [(1, 101), (2, 7)].into());
    assert_eq!(source.calls(), [vec![1]]);
    assert_eq!(cache.get::<u32>("p:1").await.unwrap(), Some(101));
    assert!(cache.render_metrics().unwrap().contains(r#"outcome="undecodable"} 1"#));
}

#[tokio::test]
async fn e8_batches_of_several_processes_load_each_id_once() {
    let rig = RedisRig::start(&[]).await;
    let caches: Vec<Cache> =
        (0..3).map(|_| Cache::connect(&rig.redis.url(), "test").unwrap().build()).collect();
    let policy = Policy::ttl(60 * MINUTE);
    let source = Source::new(0);
    let calls: Vec<_> = [0..40_u32, 20..60, 10..30]
        .into_iter()
        .zip(&caches)
        .map(|(ids, cache)| {
            let (cache, source, policy) = (cache.clone(), source.clone(), policy.clone());
            tokio::spawn(
                async move { source.want(&cache, &ids.collect::<Vec<_>>(), &policy).await.values.len() },
            )
        })
        .collect();
    // Everybody has come as far as he can: the locks of all sixty ids are taken.
    let mut client = rig.client().await;
    crate::support::wait_until("the locks are taken", async || {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg("*lock:load:p:*").query_async(&mut client.clone()).await.unwrap();
        if keys.len() == 60 { Ok(()) } else { Err(format!("{} of 60", keys.len())) }
    })
    .await;
    source.gate.add_permits(100);
    for (call, expected) in calls.into_iter().zip([40, 40, 20]) {
        assert_eq!(call.await.unwrap(), expected);
    }
    let mut asked: Vec<u32> = source.calls().into_iter().flatten().collect();
    asked.sort_unstable();
    assert_eq!(asked, (0..60).collect::<Vec<u32>>());
    drop(redis::cmd("PING").query_async::<String>(&mut client).await);
}

#[tokio::test(start_paused = true)]
async fn row_23_only_missing_ids_are_loaded_in_one_call_and_absent_ones_are_absent() {
    let (cache, policy) = (Cache::in_memory().build(), Policy::ttl(MINUTE));
    cache.set("p:1", "one", MINUTE).await.unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&calls);
    let load = move |ids: Vec<u32>| {
        log.lock().unwrap().push(ids.clone());
        async move {
            let found = ids.into_iter().filter(|id| *id != 3).map(|id| (id, format!("n{id}")));
            Ok::<HashMap<u32, String>, Failure>(found.collect())
        }
    };
    let key = |id: &u32| format!("p:{id}");
    let partial = cache
        .get_or_load_many::<u32, String, _, _, _, _>(&[1, 2, 3, 2, 4], key, &policy, load)
        .await
        .unwrap();
    assert_eq!(partial.values.len(), 3);
    assert_eq!((&*partial.values[&1], &*partial.values[&2]), ("one", "n2"));
    assert!(partial.failed.is_empty());
    assert_eq!(*calls.lock().unwrap(), [vec![2, 3, 4]]);
    assert_eq!(cache.get::<String>("p:4").await.unwrap().as_deref(), Some("n4"));
    assert_eq!(cache.get::<String>("p:3").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn overlapping_batches_load_each_id_once() {
    let (cache, policy) = (Cache::in_memory().build(), Policy::ttl(MINUTE));
    let (seen, gate) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
    let call = |ids: std::ops::Range<u32>| {
        let (cache, policy, seen, gate) =
            (cache.clone(), policy.clone(), Arc::clone(&seen), Arc::clone(&gate));
        let load = move |ids: Vec<u32>| {
            seen.lock().unwrap().extend(ids.clone());
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<HashMap<u32, u32>, Failure>(ids.into_iter().map(|id| (id, id * 10)).collect())
            }
        };
        let ids: Vec<u32> = ids.collect();
        tokio::spawn(async move {
            cache.get_or_load_many::<u32, u32, _, _, _, _>(&ids, |id| format!("p:{id}"), &policy, load).await
        })
    };
    let (first, second) = (call(1..6), call(3..8));
    settle().await;
    gate.add_permits(2);
    for (call, ids) in [(first, 1..6), (second, 3..8)] {
        let values = call.await.unwrap().unwrap().values;
        assert_eq!(values, ids.map(|id| (id, id * 10)).collect());
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_partial_failure_makes_no_absence_and_is_told_by_id() {
    let (cache, policy) = (Cache::in_memory().build(), Policy::ttl(MINUTE).negative(MINUTE));
    let load = |_ids: Vec<u32>| async {
        Ok::<_, Failure>(ManyLoaded {
            found: HashMap::from([(1, 10)]),
            failed: HashMap::from([(2, "its shard is down".to_owned())]),
        })
    };
    let key = |id: &u32| format!("p:{id}");
    let partial =
        cache.get_or_load_many::<u32, u32, _, _, _, _>(&[1, 2, 3], key, &policy, load).await.unwrap();
    assert_eq!(partial.values, HashMap::from([(1, 10)]));
    assert_eq!(partial.failed.len(), 1);
    assert!(partial.failed[0].1.to_string().contains("its shard is down"));
    assert!(!cache.exists("p:2").await.unwrap(), "what failed is not known to be absent");
    assert!(cache.exists("p:3").await.unwrap(), "what the source does not have is");
    let down = |_ids: Vec<u32>| async { Err::<HashMap<u32, u32>, _>(Failure::other("down")) };
    let partial = cache.get_or_load_many::<u32, u32, _, _, _, _>(&[1, 2], key, &policy, down).await.unwrap();
    assert_eq!((partial.values.len(), partial.failed.len()), (1, 1));
}
