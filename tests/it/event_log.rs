//! Durable events: the stream instead of the channel.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::{Cache, Event};
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::{Rig, wait_until};
use crate::writes::{DATASETS, TABLES, prepared};

#[tokio::test]
async fn row_28_durable_events_are_applied_although_no_worker_ran_when_they_were_published() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASETS.replace("watch = [{ table = \"products\"", "# watch = [{ table = \"products\"");
    let toml = format!("[feed]\nmode = \"off\"\n{toml}");
    let (context, cache, products) = prepared(&rig, &toml).await;
    products.get::<Value>(&["7"]).await.unwrap();
    cache.set_with_tags("page:1", "x", Duration::from_secs(600), &["pages"]).await.unwrap();
    rig.postgres.execute("update products set price_cents = 5 where id = 7").await.unwrap();
    for fields in [
        &[("key", b"product:7".as_slice()), ("id", b"e1")][..],
        &[("tag", b"pages".as_slice())],
        &[("nonsense", b"x".as_slice())],
        &[("keys", b"[\"product:8\", \"product:9\"]".as_slice()), ("op", b"delete")],
    ] {
        context.redis.append("cache:invalidation:log", fields).await.unwrap();
    }
    let own = Cache::over(context.clone()).stream("cache:invalidation:log").prefixes(["page:"]).build();
    own.set("page:2", "x", Duration::from_secs(600)).await.unwrap();
    let event = Event { keys: vec!["page:2".to_owned()], id: Some("e2".to_owned()), ..Event::default() };
    own.publish_durable(&event).await.unwrap();
    let unknown = cache.publish_durable(&event).await.unwrap_err().to_string();
    assert!(unknown.contains("CacheBuilder::stream"), "{unknown}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    wait_until("they are applied and removed", async || {
        let state = context.redis.stream_state("cache:invalidation:log", "cachekeeper:test").await.unwrap();
        if state.length == 0 && state.pending == 0 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    assert_eq!(cache.get::<Value>("product:7").await.unwrap().unwrap()["price_cents"], 5);
    assert!(!cache.exists("page:1").await.unwrap());
    assert!(!cache.exists("page:2").await.unwrap(), "the library's own event (row 28)");
    worker.stop().await;
}

#[tokio::test]
async fn durable_events_are_applied_once_whichever_way_they_come_and_delete_at_once_while_postgres_is_down() {
    let mut rig = Rig::start(TABLES).await;
    let toml = format!("[feed]\nmode = \"off\"\n[invalidation]\nkeys = [\"page:*\"]\n{DATASETS}");
    let worker = Worker::start(rig.config(&toml)).await.unwrap();
    let (context, cache, products) = prepared(&rig, &toml).await;
    let counted = |way: &str| {
        let labels = cachekeeper_engine::metrics::BySourceKind::new(way, "key");
        worker.context.metrics.events.get_or_create(&labels).get()
    };
    let log = "cache:invalidation:log";
    let emptied = async || {
        wait_until("the stream is empty", async || {
            let state = context.redis.stream_state(log, "cachekeeper:test").await.unwrap();
            if state.length == 0 { Ok(()) } else { Err(format!("{state:?}")) }
        })
        .await;
    };
    let event = json!({ "key": "product:7", "id": "e1", "at": 1 }).to_string();
    let mut client = rig.client().await;
    // Published until somebody listens, so it is heard once.
    wait_until("the event is heard", async || {
        let heard: i64 = client.clone().publish("cache:invalidation", &event).await.unwrap();
        if 0 < heard { Ok(()) } else { Err("nobody listens".to_owned()) }
    })
    .await;
    wait_until("the event is applied", async || {
        // Its lag is noted when it was applied.
        let metrics = worker.context.metrics.render().unwrap();
        let is_applied = metrics.contains("event_lag_seconds_count{source=\"pubsub\"} 1");
        if is_applied { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    context.redis.append(log, &[("key", b"product:7"), ("id", b"e1")]).await.unwrap();
    emptied().await;
    assert_eq!((counted("pubsub"), counted("stream")), (1, 0));
    context.redis.append(log, &[("key", b"product:7"), ("id", b"e2")]).await.unwrap();
    emptied().await;
    assert_eq!(counted("stream"), 1);
    let _: i64 = client.publish("cache:invalidation", event.replace("e1", "e2")).await.unwrap();

    // What is overtaken by a revalidation is not stored.
    wait_until("it is stored", async || {
        products.get::<Value>(&["8"]).await.unwrap();
        if cache.exists("product:8").await.unwrap() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    rig.postgres.kill();
    context.redis.append(log, &[("key", b"product:8")]).await.unwrap();
    wait_until("its key is deleted", async || {
        if cache.exists("product:8").await.unwrap() { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    let state = context.redis.stream_state(log, "cachekeeper:test").await.unwrap();
    assert_eq!(state.length, 1, "it is kept until a stamp can be taken");
    // One that comes while others wait is deleted too, and counted when it is applied, under its own source.
    cache.set("page:1", "x", Duration::from_secs(600)).await.unwrap();
    context.redis.append(log, &[("key", b"page:1")]).await.unwrap();
    wait_until("its key is deleted", async || {
        if cache.exists("page:1").await.unwrap() { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    rig.postgres.start_again().await.unwrap();
    emptied().await;
    assert_eq!((counted("pubsub"), counted("stream")), (1, 3), "each once, however often it was tried");
    worker.stop().await;
}
