//! The near cache of the library: what it answers, what empties it, and what it does where Redis does not tell of changes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_client::{Cache, Loaded, Near, Policy, Space, ValueFormat};
use redis::AsyncCommands;

use crate::cache::{HOUR, Product, cache_of, product};
use crate::support::{RedisRig, wait_until};

fn near() -> Near {
    Near::bytes("8MiB").staleness("300ms")
}

fn space_of(cache: &Cache) -> Space<u32, Product> {
    cache.space::<u32, Product>("product").policy(Policy::ttl(HOUR)).near(near()).build().unwrap()
}

/// Reads until an answer is near.
async fn is_near(space: &Space<u32, Product>, id: u32) {
    wait_until("a read is near", async || {
        let read = space.get_aged(&id).await.map_err(|error| error.to_string())?;
        if read.behind_redis.is_zero() { Err(format!("{read:?}")) } else { Ok(()) }
    })
    .await;
}

async fn calls(rig: &RedisRig, command: &str) -> u64 {
    let mut client = rig.client().await;
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut client).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn what_is_near_costs_no_command_and_others_changes_are_seen() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    space.set(&1, &product(1)).await.unwrap();
    is_near(&space, 1).await;
    let before = calls(&rig, "pttl").await;
    let mut near = 0;
    for _ in 0..1_000 {
        let read = space.get_aged(&1).await.unwrap();
        assert_eq!(read.value, Some(product(1)));
        near += u64::from(!read.behind_redis.is_zero());
    }
    // On a busy machine a proof may come late; then a read goes to Redis.
    assert_eq!(calls(&rig, "pttl").await - before, 1_000 - near);
    assert!(500 < near, "{near}");
    let other = cache_of(&rig);
    other.set("product:1", &product(7), HOUR).await.unwrap();
    wait_until("the change is seen", async || {
        let value = space.get(&1).await.unwrap();
        if value == Some(product(7)) { Ok(()) } else { Err(format!("{value:?}")) }
    })
    .await;
    is_near(&space, 1).await;
    let missing = space.get_many(&[&1, &2]).await.unwrap();
    assert_eq!(missing, [Some(product(7)), None]);
    wait_until("both are near", async || {
        let before = calls(&rig, "pttl").await;
        assert_eq!(space.get_many(&[&1, &2]).await.unwrap(), missing);
        let asked = calls(&rig, "pttl").await - before;
        if asked == 0 { Ok(()) } else { Err(format!("{asked} commands")) }
    })
    .await;
    let _: () = rig.client().await.flushall().await.unwrap();
    wait_until("that everything is gone is seen", async || {
        let value = space.get(&1).await.unwrap();
        if value.is_none() { Ok(()) } else { Err(format!("{value:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_is_near_is_not_loaded_nor_asked_for_among_many() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let load = || {
        let asked = Arc::clone(&asked);
        move |ids: Vec<u32>| {
            asked.lock().unwrap().push(ids.clone());
            async move {
                let found = ids.into_iter().filter(|id| *id != 9).map(|id| (id, product(id)));
                Ok::<HashMap<u32, Product>, std::io::Error>(found.collect())
            }
        }
    };
    let first = space.get_or_load_many(&[1, 2, 9], load()).await.unwrap();
    assert_eq!((first.values.len(), first.failed.len()), (2, 0));
    wait_until("both are near", async || {
        let before = (calls(&rig, "pttl").await, calls(&rig, "mget").await);
        let values = space.get_or_load_many(&[1, 2], load()).await.unwrap().values;
        assert_eq!((values.get(&1), values.get(&2)), (Some(&product(1)), Some(&product(2))));
        let after = (calls(&rig, "pttl").await, calls(&rig, "mget").await);
        if before == after { Ok(()) } else { Err(format!("{before:?} {after:?}")) }
    })
    .await;
    space.set(&1, &product(7)).await.unwrap();
    let values = space.get_or_load_many(&[1, 3], load()).await.unwrap().values;
    assert_eq!(
        (values.get(&1), values.get(&3)),
        (Some(&product(7)), Some(&product(3))),
        "own writes are seen"
    );
    assert_eq!(*asked.lock().unwrap(), [vec![1, 2, 9], vec![3]]);
}

#[tokio::test]
async fn very_many_are_read_by_few_commands_and_are_near_then() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    let products: Vec<(u32, Product)> = (0..5_000).map(|id| (id, product(id))).collect();
    space.set_many(products.iter().map(|(id, product)| (id, product))).await.unwrap();
    is_near(&space, 1).await;
    // One of another type, one that is missing, and one asked for twice.
    let _: usize = rig.client().await.lpush("product:6000", 1).await.unwrap();
    let wanted: Vec<u32> = (0..5_000).chain([6_000, 6_001, 3]).collect();
    let ids: Vec<&u32> = wanted.iter().collect();
    let expected = |id: &u32| (*id < 5_000).then(|| product(*id));
    let before = calls(&rig, "evalsha").await;
    assert_eq!(space.get_many(&ids).await.unwrap(), wanted.iter().map(expected).collect::<Vec<_>>());
    let commands = calls(&rig, "evalsha").await - before;
    assert!(commands < 100, "{commands} commands");
    wait_until("all are near", async || {
        let before = calls(&rig, "pttl").await;
        assert_eq!(space.get_many(&ids).await.unwrap().len(), wanted.len());
        let asked = calls(&rig, "pttl").await - before;
        if asked == 0 { Ok(()) } else { Err(format!("{asked} keys are asked for")) }
    })
    .await;
}

#[tokio::test]
async fn a_value_that_its_loader_lets_live_shorter_is_near_as_well() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let policy = Policy::ttl(HOUR).eager(0.5);
    let space = cache.space::<u32, Product>("product").policy(policy).near(near()).build().unwrap();
    let brief = || async { Ok::<_, std::io::Error>(Loaded::found(product(1)).ttl(HOUR / 10)) };
    wait_until("it is near", async || {
        let before = calls(&rig, "pttl").await;
        assert_eq!(space.get_or_load(&1, brief).await.unwrap(), Some(product(1)));
        let asked = calls(&rig, "pttl").await - before;
        if asked == 0 { Ok(()) } else { Err(format!("{asked} commands")) }
    })
    .await;
}

#[tokio::test]
async fn what_this_process_changes_is_seen_at_once() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    let tagged = space.with(Policy::ttl(HOUR).tags(["all"]));
    space.set(&1, &product(1)).await.unwrap();
    is_near(&space, 1).await;
    for round in 0..50 {
        space.set(&1, &product(round)).await.unwrap();
        assert_eq!(space.get(&1).await.unwrap(), Some(product(round)));
        assert_eq!(space.get(&1).await.unwrap(), Some(product(round)));
        cache.set("product:1", &product(round + 1), HOUR).await.unwrap();
        assert_eq!(space.get(&1).await.unwrap(), Some(product(round + 1)));
        match round % 4 {
            0 => drop(space.delete(&1).await.unwrap()),
            1 => {
                tagged.set(&1, &product(round)).await.unwrap();
                assert_eq!(space.get(&1).await.unwrap(), Some(product(round)));
                cache.invalidate_tags(&["all"]).await.unwrap();
            }
            2 => {
                let mut batch = cache.batch();
                batch.delete("product:1").unwrap();
                batch.run().await.unwrap();
            }
            _ => {
                let report = space.set_many([(&1, &product(999))]).await.unwrap();
                assert!(report.is_complete());
                assert_eq!(space.get(&1).await.unwrap(), Some(product(999)));
                cache.delete_many(&["product:1"]).await.unwrap();
            }
        }
        assert_eq!(space.get(&1).await.unwrap(), None, "round {round}");
    }
}

#[tokio::test]
async fn nothing_near_outlives_its_entry() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    let short = space.with(Policy::ttl(Duration::from_millis(1_500)));
    is_near_of_missing(&space, 1).await;
    short.set(&1, &product(1)).await.unwrap();
    let stored = tokio::time::Instant::now();
    wait_until("it has ended", async || {
        let value = space.get(&1).await.unwrap();
        // Redis itself ends it at this moment, give or take a millisecond.
        let is_over = Duration::from_millis(1_505) < stored.elapsed();
        assert!(value.is_none() || !is_over || space.get(&1).await.unwrap().is_none(), "{value:?}");
        if value.is_none() { Ok(()) } else { Err("it is there".to_owned()) }
    })
    .await;
}

async fn is_near_of_missing(space: &Space<u32, Product>, id: u32) {
    is_near(space, id).await;
    assert_eq!(space.get(&id).await.unwrap(), None);
}

/// Many tasks that want one key after everything was lost ask for it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_gap_a_key_is_read_once_for_all() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    space.set(&1, &product(1)).await.unwrap();
    is_near(&space, 1).await;
    let _: () =
        rig.client().await.set("product:2", rmp_serde::to_vec_named(&product(2)).unwrap()).await.unwrap();
    let before = calls(&rig, "pttl").await;
    let reads: Vec<_> = (0..200)
        .map(|_| {
            let space = space.clone();
            tokio::spawn(async move { space.get(&2).await.unwrap() })
        })
        .collect();
    for read in reads {
        assert_eq!(read.await.unwrap(), Some(product(2)));
    }
    let asked = calls(&rig, "pttl").await - before;
    assert!(asked <= 5, "{asked} commands for one key");
}

#[tokio::test]
async fn where_redis_may_not_tell_of_changes_reads_go_to_redis() {
    let rig = RedisRig::start(&[]).await;
    let mut client = rig.client().await;
    for words in [vec!["SETUSER", "shop", "on", ">x", "~*", "&*", "+@all", "-client|tracking"]] {
        let _: () = redis::cmd("ACL").arg(words).query_async(&mut client).await.unwrap();
    }
    let url = rig.redis.url().replace("redis://", "redis://shop:x@");
    let cache = Cache::connect(&url, "test").unwrap().build();
    let space = space_of(&cache);
    for round in 0..20 {
        space.set(&1, &product(round)).await.unwrap();
        let read = space.get_aged(&1).await.unwrap();
        assert_eq!((read.value, read.behind_redis), (Some(product(round)), Duration::ZERO));
    }
    wait_until("it is counted", async || {
        let metrics = cache.render_metrics().unwrap();
        let is_counted = !metrics.contains("near_gaps_total 0");
        if is_counted { Ok(()) } else { Err(metrics) }
    })
    .await;
}

/// A server that has lost its scripts is marked again; meanwhile reads are as without a near cache.
#[tokio::test]
async fn after_scripts_were_flushed_reads_are_right_and_near_again() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    space.set(&1, &product(1)).await.unwrap();
    is_near(&space, 1).await;
    let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut rig.client().await).await.unwrap();
    for round in 0..20 {
        space.set(&1, &product(round)).await.unwrap();
        assert_eq!(space.get(&1).await.unwrap(), Some(product(round)));
    }
    is_near(&space, 1).await;
}

/// A key that is one of two spaces is read in the format in which it is written.
#[tokio::test]
async fn spaces_within_others_have_their_own_format() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let outer = cache.space::<str, u32>("a").format(ValueFormat::Json).near(near()).build().unwrap();
    let _inner = cache.space::<str, u32>("a:b").build().unwrap();
    outer.set("b:1", &49).await.unwrap();
    for _ in 0..50 {
        assert_eq!(outer.get("b:1").await.unwrap(), Some(49));
    }
}

/// Names of which one begins as another does are told to Redis as one.
#[tokio::test]
async fn spaces_may_be_within_others() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let outer = space_of(&cache);
    outer.set(&1, &product(1)).await.unwrap();
    is_near(&outer, 1).await;
    let inner = cache.space::<u32, Product>("product:special").near(near()).build().unwrap();
    inner.set(&1, &product(2)).await.unwrap();
    is_near(&inner, 1).await;
    is_near(&outer, 1).await;
    cache_of(&rig).set("product:special:1", &product(3), HOUR).await.unwrap();
    wait_until("a change of the inner one is seen", async || {
        let value = inner.get(&1).await.unwrap();
        if value == Some(product(3)) { Ok(()) } else { Err(format!("{value:?}")) }
    })
    .await;
}

/// What is read near is in use as far as Redis can tell, so that it is refreshed ahead and not evicted.
#[tokio::test]
async fn redis_is_told_which_near_entries_are_in_use() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let space = space_of(&cache);
    space.set(&1, &product(1)).await.unwrap();
    is_near(&space, 1).await;
    wait_until("redis is told", async || {
        space.get(&1).await.unwrap();
        let told = calls(&rig, "touch").await;
        if 0 < told { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
}

#[tokio::test]
async fn wrong_settings_are_told() {
    let cache = Cache::in_memory().build();
    for near in [Near::bytes("8"), Near::bytes(1).staleness("1ms"), Near::bytes(1).staleness("soon")] {
        let built = cache.space::<u32, Product>("product").near(near).build();
        assert!(built.unwrap_err().to_string().starts_with("near: "));
    }
    // In memory nobody else changes anything, and nothing has to be near.
    let space = space_of(&cache);
    space.set(&1, &product(1)).await.unwrap();
    assert_eq!(space.get(&1).await.unwrap(), Some(product(1)));
}
