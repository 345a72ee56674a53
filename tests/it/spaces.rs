//! Spaces: one policy, format and label for keys of one kind; datasets as spaces.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::{Cache, ClientError, Freshness, Loaded, Near, Policy, Token, ValueFormat};
use cachekeeper_testkit::servers::Session;
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use crate::cache::{HOUR, Product, cache_of, product};
use crate::feed::{DATASETS, TABLES, ready};
use crate::support::{RedisRig, Rig, wait_until};

async fn read_token(session: &mut Session) -> Token {
    session.text("select cachekeeper.token()").await.unwrap().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_a_space_stores_is_what_it_expects() {
    let rig = RedisRig::start(&[]).await;
    let cache = cache_of(&rig);
    let minute = Duration::from_secs(60);
    let policy = Policy::ttl(Duration::from_secs(10)).fail_safe(minute).tags(["all"]);
    let space = cache.space::<(u32, str_key::Text), Product>("product").policy(policy).build().unwrap();
    let key = (1, str_key::text("eur"));
    assert_eq!(space.key(&key).unwrap(), "product:1:eur");
    // A set lives as long as a fill would, so a read takes it for fresh (E7).
    space.set(&key, &product(1)).await.unwrap();
    let left: i64 = rig.client().await.pttl("product:1:eur").await.unwrap();
    assert!((69_000..=70_000).contains(&left), "{left}");
    let loaded = space.get_or_load(&key, || async { Err::<Product, _>("not to be asked") }).await.unwrap();
    assert_eq!(loaded, Some(product(1)));
    assert_eq!(space.get_many(&[&key, &(2, str_key::text("usd"))]).await.unwrap(), [Some(product(1)), None]);
    assert_eq!(cache.invalidate_tags(&["all"]).await.unwrap(), 1);
    assert_eq!(space.get(&key).await.unwrap(), None);
    let many = [((3, str_key::text("a")), product(3)), ((4, str_key::text("b:c")), product(4))];
    let report = space.set_many(many.iter().map(|(key, value)| (key, value))).await.unwrap();
    assert_eq!((report.stored, report.is_complete()), (2, true));
    assert_eq!(cache.get::<Product>("product:4:b%3Ac").await.unwrap(), Some(product(4)));
    assert_eq!(cache.invalidate_tags(&["all"]).await.unwrap(), 2);
    let wanted = [(3, str_key::text("a")), (5, str_key::text("b")), (6, str_key::text("c"))];
    let loaded = space
        .get_or_load_many(&wanted, |missing| async move {
            assert_eq!(missing.len(), 3, "one call for all that is missing");
            let found =
                missing.into_iter().filter(|(id, _)| *id != 6).map(|key| (key.clone(), product(key.0)));
            Ok::<_, std::io::Error>(found.collect::<HashMap<_, _>>())
        })
        .await
        .unwrap();
    assert_eq!((loaded.values.len(), loaded.failed.len()), (2, 0));
    assert_eq!(space.get(&wanted[1]).await.unwrap(), Some(product(5)));
    // A call may have another policy.
    space.with(Policy::ttl(minute)).set(&key, &product(2)).await.unwrap();
    let left: i64 = rig.client().await.pttl("product:1:eur").await.unwrap();
    assert!((59_000..=60_000).contains(&left), "{left}");
    assert!(space.exists(&key).await.unwrap());
    assert_eq!(space.delete_many(&[&key]).await.unwrap(), 1);
    let metrics = cache.render_metrics().unwrap();
    assert!(metrics.contains(r#"reads_total{dataset="product",outcome="hit"} 4"#), "{metrics}");
}

/// Texts as parts of keys.
mod str_key {
    pub type Text = String;

    pub fn text(text: &str) -> Text {
        text.to_owned()
    }
}

#[tokio::test]
async fn loaders_answer_a_value_an_option_or_more() {
    let cache = Cache::in_memory().build();
    let space = cache.space::<str, u32>("n").build().unwrap();
    let plain = space.get_or_load("a", || async { Ok::<_, std::io::Error>(1) }).await.unwrap();
    let option = space.get_or_load("b", || async { Ok::<_, std::io::Error>(Some(2)) }).await.unwrap();
    let none = space.get_or_load("c", || async { Ok::<Option<u32>, std::io::Error>(None) }).await.unwrap();
    let loaded = || async { Ok::<_, std::io::Error>(Loaded::found(4).ttl(Duration::from_secs(5))) };
    let more = space.get_or_load("d", loaded).await.unwrap();
    assert_eq!((plain, option, none, more), (Some(1), Some(2), None, Some(4)));
}

/// A value that lives shorter than the policy says is not loaded ahead from its first moment on (faults E6).
#[tokio::test(start_paused = true)]
async fn a_life_of_its_own_is_loaded_ahead_in_its_own_last_share() {
    let cache = Cache::in_memory().build();
    let policy = Policy::ttl(Duration::from_secs(300)).eager(0.2);
    let space = cache.space::<str, u32>("n").policy(policy).build().unwrap();
    let loads = Arc::new(AtomicU32::new(0));
    let read = async || {
        let counted = Arc::clone(&loads);
        let load = move || async move {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Loaded::found(1).ttl(Duration::from_secs(30)))
        };
        assert_eq!(space.get_or_load("a", load).await.unwrap(), Some(1));
        // Loads ahead are tasks of their own.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        loads.load(Ordering::Relaxed)
    };
    for _ in 0..40 {
        assert_eq!(read().await, 1);
    }
    tokio::time::advance(Duration::from_secs(23)).await;
    assert_eq!(read().await, 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    read().await;
    assert_eq!(read().await, 2);
}

#[tokio::test]
async fn a_space_has_a_format_of_its_own_and_wrong_names_are_told() {
    let cache = Cache::in_memory().build();
    let space = cache.space::<u32, Product>("json").format(ValueFormat::Json).build().unwrap();
    space.set(&1, &product(1)).await.unwrap();
    let bytes = cache.get_bytes("json:1").await.unwrap().unwrap();
    assert!(bytes.starts_with(b"{\"id\":1"), "{bytes:?}");
    // What reads by the whole key reads the same.
    assert_eq!(cache.get::<Product>("json:1").await.unwrap(), Some(product(1)));
    let other = cache.space::<u32, Product>("json").build();
    assert!(matches!(other, Err(ClientError::Setting { setting: "format", .. })), "{other:?}");
    for name in ["", "ck", "ck:{shop:0}"] {
        let wrong = cache.space::<u32, Product>(name).build();
        assert!(matches!(wrong, Err(ClientError::Key { .. })), "{name:?}");
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    id: i32,
    name: String,
    price: i64,
}

/// A dataset is a space whose loader is Postgres; near, a change in the database is seen within the bound and the watermark's age.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dataset_is_a_space() {
    let rig = Rig::start(TABLES).await;
    let config = rig.config(DATASETS);
    let worker = Worker::start(config.clone()).await.unwrap();
    ready(&worker).await;
    let cache = Cache::open(&config).unwrap().build();
    let dataset = cache.dataset("product").unwrap();
    let space = dataset.space::<i32, Row>().near(Near::bytes("4MiB")).build().unwrap();
    assert_eq!(space.key(&7).unwrap(), "product:7");
    assert_eq!(space.get(&7).await.unwrap().unwrap().id, 7);
    wait_until("it is near, and how old it may be is told", async || {
        let read = space.get_aged(&7).await.map_err(|error| error.to_string())?;
        let is_told = !read.behind_redis.is_zero() && read.behind_database.is_some();
        if is_told { Ok(()) } else { Err(format!("{read:?}")) }
    })
    .await;
    rig.postgres.execute("update products set price = 424242 where id = 7").await.unwrap();
    wait_until("the change is seen", async || {
        let read = space.get(&7).await.unwrap().unwrap();
        if read.price == 424_242 { Ok(()) } else { Err(format!("{read:?}")) }
    })
    .await;
    // Read your writes.
    let mut session = rig.postgres.session().await.unwrap();
    for price in 1..=20 {
        session.execute(&format!("update products set price = {price} where id = 9")).await.unwrap();
        let token = session.text("select cachekeeper.token()").await.unwrap().unwrap();
        let token: Token = token.parse().unwrap();
        assert_eq!(space.get_at(&9, &token).await.unwrap().unwrap().price, price);
        let read = space.read_at(&9, &token, Duration::from_secs(30)).await.unwrap();
        assert_eq!((read.value.unwrap().price, read.freshness), (price, Freshness::Fresh));
    }
    let of_another_life: Token = "another/100:100:".parse().unwrap();
    let read = space.read_at(&9, &of_another_life, Duration::ZERO).await.unwrap();
    assert_eq!((read.value.unwrap().price, read.freshness), (20, Freshness::Unknown));
    let mut later = read_token(&mut session).await;
    later.snapshot = "4000000000:4000000000:".parse().unwrap();
    let read = space.read_at(&9, &later, Duration::from_millis(50)).await.unwrap();
    assert!(
        matches!(read.freshness, Freshness::StaleAtMost(age) if age < Duration::from_secs(60)),
        "{read:?}"
    );
    // As long as may be is no moment that a clock cannot tell, and the policy's limit holds while the table is locked.
    let read = space.read_at(&9, &read_token(&mut session).await, Duration::MAX).await.unwrap();
    assert_eq!(read.freshness, Freshness::Fresh);
    let brief = space.with(Policy::ttl(HOUR).hard_timeout(Duration::from_millis(50)));
    session.execute("begin; lock table products in access exclusive mode").await.unwrap();
    let late = brief.get_at(&9, &later).await.unwrap_err();
    assert!(matches!(late, ClientError::Timeout(_)), "{late:?}");
    // A herd waits for one load after the one that is under way.
    let herd = (0..100).map(|_| {
        let (space, later) = (space.clone(), later.clone());
        tokio::spawn(async move { space.get_at(&9, &later).await.unwrap().unwrap().price })
    });
    let herd: Vec<_> = herd.collect();
    let mut other = rig.postgres.session().await.unwrap();
    let waiting = "select count(*)::text from pg_stat_activity where wait_event_type = 'Lock'";
    for _ in 0..50 {
        // The worker may wait for the table as well.
        let waiting: u32 = other.text(waiting).await.unwrap().unwrap().parse().unwrap();
        assert!(waiting <= 3, "{waiting} statements wait");
    }
    session.execute("rollback").await.unwrap();
    for one in herd {
        assert_eq!(one.await.unwrap(), 20);
    }
    // Its keys have no other loader than Postgres: what another one brings has no stamp.
    let own = || async { Ok::<_, std::io::Error>(Some(1)) };
    let policy = Policy::ttl(HOUR);
    let refused = cache.get_or_load("product:8", &policy, own).await.unwrap_err();
    assert!(
        matches!(&refused, ClientError::OfDataset { dataset, .. } if dataset == "product"),
        "{refused:?}"
    );
    let many = |ids: Vec<i32>| async move {
        Ok::<_, std::io::Error>(ids.into_iter().map(|id| (id, 1)).collect::<HashMap<_, _>>())
    };
    let refused = cache.get_or_load_many(&[8], |id| format!("product:{id}"), &policy, many).await;
    assert!(matches!(refused, Err(ClientError::OfDataset { .. })), "{refused:?}");
    // What is missing in Redis is loaded.
    let _: u64 = rig.client().await.del("product:8").await.unwrap();
    wait_until("what is missing is loaded", async || {
        let many = space.get_many(&[&8, &7, &1_000_000]).await.map_err(|error| error.to_string())?;
        if many[0].is_some() && many[1].is_some() && many[2].is_none() {
            Ok(())
        } else {
            Err(format!("{many:?}"))
        }
    })
    .await;
    let refused = space.set(&7, &Row { id: 7, name: String::new(), price: 0 }).await;
    assert!(matches!(refused, Err(ClientError::OfDataset { .. })), "{refused:?}");
    let mut policy = Policy::ttl(HOUR);
    policy = policy.hard_timeout(Duration::from_secs(5));
    assert_eq!(space.with(policy).get(&7).await.unwrap().unwrap().price, 424_242);
    assert!(worker.stop().await);
    // While Redis is down, a dataset comes from Postgres, near or not.
    let mut rig = rig;
    rig.redis.kill();
    wait_until("it comes from Postgres", async || {
        let read = space.get(&7).await.map_err(|error| error.to_string())?;
        if read.is_some_and(|row| row.price == 424_242) { Ok(()) } else { Err("another row".to_owned()) }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(space.get(&7).await.unwrap().unwrap().price, 424_242);
        assert_eq!(space.get_many(&[&7, &8]).await.unwrap().iter().flatten().count(), 2);
    }
}
