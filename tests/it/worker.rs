//! The worker as a whole: it fills, applies events, refreshes, and heals.

use std::time::Duration;

use cachekeeper::actors::TASKS;
use cachekeeper::app::Worker;
use cachekeeper::supervisor::SupervisorMessage;
use cachekeeper_engine::audit::{Extent, compare};
use redis::AsyncCommands;

use crate::support::{Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text, price int, category_id int);
    insert into products select n, 'product ' || n, n * 10, n % 10 from generate_series(1, 1000) n;
    create table stock (product_id int, place text, quantity int, primary key (product_id, place));
    insert into stock select n, 'a', n from generate_series(1, 100) n;";

const DATASETS: &str = r#"
    [invalidation]
    keys = ["page:*"]
    [dataset.product]
    query = "select id, name, price, category_id from products"
    key = "product:{id}"
    tags = ["category:{category_id}"]
    format = "json"
    warm = {}
    [dataset.stock]
    query = "select product_id, place, quantity from stock"
    key = "stock:{product_id}:{place}"
    format = "json"
    on_miss = "load"
    negative_ttl = "1m"
"#;

async fn ready(worker: &Worker) {
    wait_until("the worker is ready", || async {
        let reasons = worker.health.reasons();
        let pending = worker.health.facts().pending;
        let metadata = worker.context.redis.metadata("").await.map_err(|error| error.to_string())?;
        if reasons.is_empty() && pending.is_empty() && metadata.pending.is_empty() && metadata.is_whole {
            Ok(())
        } else {
            Err(format!("{reasons:?}, pending {:?}", metadata.pending))
        }
    })
    .await;
}

async fn value_is(client: &mut redis::aio::MultiplexedConnection, key: &str, expected: Option<&str>) {
    let client = client.clone();
    wait_until(&format!("{key} holds {expected:?}"), || {
        let mut client = client.clone();
        async move {
            let value: Result<Option<String>, _> = client.get(key).await;
            match (value, expected) {
                (Ok(None), None) => Ok(()),
                (Ok(Some(value)), Some(part)) if value.contains(part) => Ok(()),
                (other, _) => Err(format!("{other:?}")),
            }
        }
    })
    .await;
}

async fn agrees(worker: &Worker) {
    for dataset in worker.context.catalog.iter() {
        let found = compare(&worker.context, dataset, &Extent::default()).await.unwrap();
        assert!(found.is_clean(), "{found:?}");
    }
}

#[tokio::test]
async fn events_in_every_form_are_applied_and_garbage_is_harmless() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    value_is(&mut client, "product:1000", Some("\"price\":10000")).await;
    let channel = "cache:invalidation";
    let packed = rmp_serde::to_vec_named(&serde_json::json!({ "key": "product:3" })).unwrap();
    let events: [(&str, Vec<u8>); 6] = [
        ("id = 1", b"product:1".to_vec()),
        ("id = 2", br#"{"key":"product:2"}"#.to_vec()),
        ("id = 3", packed),
        ("id in (4, 5)", br#"{"dataset":"product","ids":[4,"5"]}"#.to_vec()),
        ("category_id = 7", br#"{"tag":"category:7","at":1}"#.to_vec()),
        ("id = 8", br#"{"CacheKey":"product:8"}"#.to_vec()),
    ];
    for (number, (rows, event)) in events.into_iter().enumerate() {
        for garbage in
            [&b""[..], b"{", &[0x81, 0xa3], &[0xff, 0x00], br#"{"dataset":"unknown"}"#, b"ck:{test:0}:meta"]
        {
            let _: () = client.publish(channel, garbage).await.unwrap();
        }
        let _: () = client.publish(channel, vec![b'x'; 10 << 20]).await.unwrap();
        rig.postgres
            .execute(&format!("update products set name = 'event {number}' where {rows}"))
            .await
            .unwrap();
        let _: () = client.publish(channel, event).await.unwrap();
        let key = ["product:1", "product:2", "product:3", "product:5", "product:17", "product:8"][number];
        value_is(&mut client, key, Some(&format!("event {number}"))).await;
    }
    // A row that is gone, a delete that was asked for, keys of no dataset, a whole dataset.
    rig.postgres.execute("delete from products where id = 20").await.unwrap();
    for key in ["free", "page:1"] {
        let _: () = client.set(key, "x").await.unwrap();
    }
    let _: () = client.publish(channel, r#"{"keys":["product:20","free","page:1"]}"#).await.unwrap();
    let _: () = client.publish(channel, r#"{"key":"product:21","op":"delete"}"#).await.unwrap();
    for key in ["product:20", "page:1", "product:21"] {
        value_is(&mut client, key, None).await;
    }
    value_is(&mut client, "free", Some("x")).await;
    rig.postgres.execute("update products set name = 'all'; delete from products where id = 30; insert into products values (5000, 'all', 1, 1)").await.unwrap();
    let _: () = client.publish(channel, r#"{"dataset":"product"}"#).await.unwrap();
    value_is(&mut client, "product:30", None).await;
    value_is(&mut client, "product:5000", Some("all")).await;
    let metrics = worker.context.metrics.render().unwrap();
    for reason in [
        "empty",
        "malformed_json",
        "malformed_msgpack",
        "not_utf8",
        "unknown_dataset",
        "reserved_key",
        "too_large",
    ] {
        assert!(
            metrics.contains(&format!("cachekeeper_events_invalid_total{{reason=\"{reason}\"}} 6")),
            "{reason}\n{metrics}"
        );
    }
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn misses_are_filled_and_absence_is_remembered() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    value_is(&mut client, "stock:7:a", Some("\"quantity\":7")).await;
    value_is(&mut client, "stock:7:nowhere", Some("null")).await;
    rig.postgres.execute("insert into stock values (7, 'nowhere', 3)").await.unwrap();
    let _: () =
        client.publish("cache:invalidation", r#"{"dataset":"stock","ids":[[7,"nowhere"]]}"#).await.unwrap();
    value_is(&mut client, "stock:7:nowhere", Some("\"quantity\":3")).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_flushed_redis_is_filled_again() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let before = worker.health.facts().epoch;
    let mut client = rig.client().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
    value_is(&mut client, "product:1000", Some("10000")).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert_ne!(before, worker.health.facts().epoch);
    // One table alone, as an eviction would take it.
    let _: () = client.del("ck:{test:0}:stamps").await.unwrap();
    let _: () = client.set("product:1", "planted").await.unwrap();
    value_is(&mut client, "product:1", Some("\"price\":10,")).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_new_life_of_postgres_is_a_new_epoch() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    for is_clean in [true, false] {
        let before = worker.health.facts().epoch;
        if is_clean {
            rig.postgres.stop();
        } else {
            rig.postgres.kill();
        }
        rig.postgres.start_again().await.unwrap();
        // Whatever stands in Redis may come from commits that were lost.
        let _: () = client.set("product:1", "from a lost commit").await.unwrap();
        let _: () = client.set("product:77777", "from a lost commit").await.unwrap();
        value_is(&mut client, "product:1", Some("\"price\":10,")).await;
        value_is(&mut client, "product:77777", None).await;
        ready(&worker).await;
        assert_ne!(before, worker.health.facts().epoch);
    }
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_redis_that_died_comes_back_empty_and_is_filled() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    rig.redis.kill();
    wait_until("the worker is not ready", || async {
        let reasons = worker.health.reasons();
        if reasons.iter().any(|reason| reason.starts_with("redis")) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    rig.postgres.execute("update products set name = 'meanwhile' where id = 5").await.unwrap();
    rig.redis.start_again().await.unwrap();
    let mut client = rig.client().await;
    value_is(&mut client, "product:5", Some("meanwhile")).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_redis_that_went_back_is_noticed_and_repaired() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    let _: () = redis::cmd("SAVE").query_async(&mut client).await.unwrap();
    let saved: u64 = client.hget("ck:{test:0}:meta", "job:looks").await.unwrap();
    let before = worker.health.facts().epoch;
    rig.postgres.execute("update products set name = 'later' where id = 5").await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:5").await.unwrap();
    value_is(&mut client, "product:5", Some("later")).await;
    // Looks are counted once a second; the file must be older than the last of them.
    wait_until("another look was counted", || async {
        let now: u64 =
            client.clone().hget("ck:{test:0}:meta", "job:looks").await.map_err(|error| error.to_string())?;
        if saved + 1 < now { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    rig.redis.kill();
    rig.redis.start_again().await.unwrap();
    let mut client = rig.client().await;
    value_is(&mut client, "product:5", Some("later")).await;
    wait_until("the epoch is another one", || async {
        let now = worker.health.facts().epoch;
        if now == before { Err(format!("{now:?}")) } else { Ok(()) }
    })
    .await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn servers_that_are_down_at_the_start_are_waited_for() {
    let mut rig = Rig::start(TABLES).await;
    let config = rig.config(DATASETS);
    rig.postgres.stop();
    rig.redis.kill();
    let worker = Worker::start(config).await.unwrap();
    wait_until("both are said to be down", || async {
        let reasons = worker.health.reasons();
        if reasons.iter().any(|reason| reason.starts_with("redis: cannot connect to Redis")) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    rig.redis.start_again().await.unwrap();
    wait_until("only postgres is said to be down", || async {
        let reasons = worker.health.reasons();
        let says = |name: &str| reasons.iter().any(|reason| reason.starts_with(name));
        if says("postgres: ") && !says("postgres: not reached yet") && !says("redis: ") {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    rig.postgres.start_again().await.unwrap();
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn without_the_schema_it_waits_and_names_migrate() {
    let rig = Rig::start(TABLES).await;
    rig.postgres.execute("drop schema cachekeeper cascade").await.unwrap();
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    wait_until("it names migrate", || async {
        let reasons = worker.health.reasons();
        if reasons.iter().any(|reason| reason.contains("cachekeeper migrate")) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    worker.context.postgres.migrate().await.unwrap();
    ready(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn an_event_that_comes_while_postgres_is_down_is_kept() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set name = 'changed' where id in (5, 6)").await.unwrap();
    rig.postgres.stop();
    let mut client = rig.client().await;
    let _: () = client.publish("cache:invalidation", "product:5").await.unwrap();
    // The old value goes at once: absence is always right.
    value_is(&mut client, "product:5", None).await;
    rig.postgres.start_again().await.unwrap();
    value_is(&mut client, "product:5", Some("changed")).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn every_actor_that_is_killed_comes_back() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    for (number, task) in TASKS.into_iter().enumerate() {
        worker.supervisor().cast(SupervisorMessage::Kill(task.name)).unwrap();
        let line = format!("actor_restarts_total{{actor=\"{}\"}} 1", task.name);
        wait_until("it was started again", || async {
            let metrics = worker.context.metrics.render().unwrap();
            let is_up = metrics.contains(&format!("actor_up{{actor=\"{}\"}} 1", task.name));
            if metrics.contains(&line) && is_up { Ok(()) } else { Err(metrics) }
        })
        .await;
        rig.postgres
            .execute(&format!("update products set name = 'after {number}' where id = 5"))
            .await
            .unwrap();
        let _: () = client.publish("cache:invalidation", "product:5").await.unwrap();
        value_is(&mut client, "product:5", Some(&format!("after {number}"))).await;
    }
    assert!(worker.stop().await);
}

#[tokio::test]
async fn what_is_read_is_refreshed_and_what_is_not_expires() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(
        r#"
        [dataset.product]
        query = "select id, name, price, category_id from products"
        key = "product:{id}"
        ttl = "8s"
        ttl_jitter = "0%"
        refresh = { ahead = "50%" }
        warm = { limit = 100, order_by = "id" }"#,
    ))
    .await
    .unwrap();
    ready(&worker).await;
    rig.postgres.execute("update products set name = 'new'").await.unwrap();
    let client = rig.client().await;
    let reads = |key: &'static str| {
        let mut client = client.clone();
        async move {
            let value: Option<Vec<u8>> = client.get(key).await.unwrap();
            value.ok_or_else(|| "gone".to_owned())
        }
    };
    // Read all the time: never gone, and loaded again before its time.
    wait_until("the entry that is read was loaded again", || async {
        let value = reads("product:1").await.unwrap_or_else(|_| panic!("an entry that was read expired"));
        if value.windows(3).any(|part| part == b"new") { Ok(()) } else { Err("old".to_owned()) }
    })
    .await;
    wait_until("the entries that nobody reads expire", || async {
        reads("product:1").await.unwrap_or_else(|_| panic!("an entry that was read expired"));
        let mut client = client.clone();
        let left: u64 = redis::cmd("EXISTS").arg("product:2").query_async(&mut client).await.unwrap();
        if left == 0 { Ok(()) } else { Err("still there".to_owned()) }
    })
    .await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn while_postgres_is_down_entries_outlive_their_lifetime_but_not_for_ever() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(
        r#"
        [postgres]
        connect_timeout = "200ms"
        [dataset.product]
        query = "select id, name, price, category_id from products"
        key = "product:{id}"
        ttl = "4s"
        max_stale = "6s"
        warm = {}
        refresh = { ahead = "50%" }"#,
    ))
    .await
    .unwrap();
    ready(&worker).await;
    rig.postgres.stop();
    let stopped = tokio::time::Instant::now();
    let client = rig.client().await;
    wait_until("the entries are gone", || {
        let mut client = client.clone();
        async move {
            let value: Option<Vec<u8>> = client.get("product:1").await.unwrap();
            if value.is_none() { Ok(()) } else { Err("still there".to_owned()) }
        }
    })
    .await;
    let lived = stopped.elapsed();
    // Without an extension it could not have been there after four seconds. The upper end is a lifetime in Redis.
    assert!(Duration::from_secs(5) < lived, "{lived:?}");
    rig.postgres.start_again().await.unwrap();
    let _ = worker.stop().await;
}

#[tokio::test]
async fn two_workers_share_the_work_and_agree() {
    let rig = Rig::start(TABLES).await;
    let (first, second) =
        tokio::join!(Worker::start(rig.config(DATASETS)), Worker::start(rig.config(DATASETS)));
    let (first, second) = (first.unwrap(), second.unwrap());
    tokio::join!(ready(&first), ready(&second));
    let mut client = rig.client().await;
    for number in 0..20 {
        rig.postgres
            .execute(&format!("update products set name = 'both {number}' where id = 9"))
            .await
            .unwrap();
        let _: () = client.publish("cache:invalidation", "product:9").await.unwrap();
        value_is(&mut client, "product:9", Some(&format!("both {number}"))).await;
    }
    assert_eq!(first.health.facts().epoch, second.health.facts().epoch);
    agrees(&first).await;
    assert!(first.stop().await);
    rig.postgres.execute("update products set name = 'alone' where id = 9").await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:9").await.unwrap();
    value_is(&mut client, "product:9", Some("alone")).await;
    assert!(second.stop().await);
    let leases: Vec<String> = client.keys("ck:{test:0}:lock:*").await.unwrap();
    assert_eq!(leases, Vec::<String>::new(), "leases are released");
}

#[tokio::test]
async fn altered_tables_are_noticed_and_broken_queries_heal() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(
        r#"
        [dataset.product]
        query = "select * from products"
        key = "product:{id}"
        format = "json"
        warm = {}
        [dataset.late]
        query = "select id, name from comes_later"
        key = "late:{id}"
        format = "json"
        warm = {}"#,
    ))
    .await
    .unwrap();
    let mut client = rig.client().await;
    value_is(&mut client, "product:1", Some("\"price\":10")).await;
    let _: () = client.publish("cache:invalidation", "product:1").await.unwrap();
    rig.postgres.execute("alter table products add column colour text default 'red'").await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:1").await.unwrap();
    value_is(&mut client, "product:1", Some("\"colour\":\"red\"")).await;
    rig.postgres.execute("alter table products alter column price type numeric(10, 2)").await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:1").await.unwrap();
    value_is(&mut client, "product:1", Some("\"price\":\"10.00\"")).await;
    wait_until("readiness names the table that is missing", || async {
        let reasons = worker.health.reasons();
        if reasons.iter().any(|reason| reason.contains("comes_later")) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    rig.postgres.execute("create table comes_later as select 1 as id, 'here'::text as name").await.unwrap();
    value_is(&mut client, "late:1", Some("here")).await;
    ready(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_subscription_that_was_cut_is_a_gap_and_is_repaired() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    // As Redis does with a subscriber that is too slow; the event of this change is published to nobody.
    rig.postgres
        .execute("update products set name = 'unheard' where id = 5; delete from products where id = 6")
        .await
        .unwrap();
    let killed: u64 =
        redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").query_async(&mut client).await.unwrap();
    assert_eq!(killed, 1);
    value_is(&mut client, "product:5", Some("unheard")).await;
    value_is(&mut client, "product:6", None).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_full_redis_loses_what_it_cannot_hold_and_recovers() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    let limit = |bytes: u64| redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).to_owned();
    let _: () = limit(1).query_async(&mut client).await.unwrap();
    rig.postgres.execute("update products set name = 'changed' where id in (5, 6)").await.unwrap();
    let _: () = client.publish("cache:invalidation", r#"{"keys":["product:5","product:6"]}"#).await.unwrap();
    // The old value may not stay, and the new one has no room.
    value_is(&mut client, "product:5", None).await;
    let _: () = limit(0).query_async(&mut client).await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:6").await.unwrap();
    value_is(&mut client, "product:6", Some("changed")).await;
    // Read-only for a while, as a server that was demoted.
    let _: () = redis::cmd("REPLICAOF").arg("127.0.0.1").arg("1").query_async(&mut client).await.unwrap();
    rig.postgres.execute("update products set name = 'later' where id = 5").await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:5").await.unwrap();
    wait_until("readiness says so", || async {
        let reasons = worker.health.reasons();
        if reasons.iter().any(|reason| reason.contains("takes no writes")) {
            Ok(())
        } else {
            Err(format!("{reasons:?}"))
        }
    })
    .await;
    let _: () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async(&mut client).await.unwrap();
    value_is(&mut client, "product:5", Some("later")).await;
    ready(&worker).await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn an_actor_that_fails_again_and_again_ends_the_worker() {
    let rig = Rig::start(TABLES).await;
    let mut worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let root = worker.supervisor().clone();
    let killer = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        while root.cast(SupervisorMessage::Kill("refresher")).is_ok() {
            pace.tick().await;
        }
    });
    let outcome = worker.ended().await;
    killer.abort();
    assert_eq!(outcome, cachekeeper::supervisor::Outcome::GaveUp { task: "refresher" });
}

#[tokio::test]
async fn a_required_feed_that_misses_a_table_is_not_ready() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASETS.replacen("format = \"json\"", "format = \"json\"\nfeed = \"required\"", 1);
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    wait_until("readiness says what is missing", || async {
        let reasons = worker.health.reasons();
        reasons
            .iter()
            .any(|reason| reason.contains("no watch rule"))
            .then_some(())
            .ok_or(format!("{reasons:?}"))
    })
    .await;
    assert!(worker.stop().await);
}

#[tokio::test]
async fn an_event_with_an_id_is_applied_once() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(&format!("[feed]\nmode = \"off\"\n{DATASETS}"))).await.unwrap();
    ready(&worker).await;
    let mut client = rig.client().await;
    value_is(&mut client, "product:5", Some("product 5")).await;
    rig.postgres.execute("update products set name = 'once' where id = 5").await.unwrap();
    let event = r#"{"key":"product:5","id":"e1"}"#;
    let _: () = client.publish("cache:invalidation", event).await.unwrap();
    value_is(&mut client, "product:5", Some("once")).await;
    rig.postgres.execute("update products set name = 'twice' where id in (5, 6)").await.unwrap();
    let _: () = client.publish("cache:invalidation", event).await.unwrap();
    let _: () = client.publish("cache:invalidation", "product:6").await.unwrap();
    value_is(&mut client, "product:6", Some("twice")).await;
    // Events of one channel are applied in order, so the repeated one was passed over by now.
    value_is(&mut client, "product:5", Some("once")).await;
    // The same id with other contents is another event.
    let _: () = client
        .publish("cache:invalidation", r#"{"keys":["product:5"],"op":"refresh","id":"e1"}"#)
        .await
        .unwrap();
    value_is(&mut client, "product:5", Some("twice")).await;
    assert!(worker.stop().await);
}
