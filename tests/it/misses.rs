//! Misses: what applications asked for and did not find is filled, and nothing else.

use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_engine::audit::{Extent, compare};
use cachekeeper_engine::epoch;
use cachekeeper_engine::metrics::ByDataset;
use cachekeeper_engine::stores::redis::Answer;
use futures_util::StreamExt;
use redis::AsyncCommands;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table stock (id int primary key, quantity int);
    insert into stock select n, n from generate_series(1, 500) n;";

const DATASETS: &str = r#"
    [dataset.stock]
    query = "select id, quantity from stock"
    key = "stock:{id}"
    format = "json"
    on_miss = "load"
    watch = [{ table = "stock", key = { id = "id" } }]
"#;

/// Faults F: the worker's own look whether a changed key is cached was a miss to Redis, and filled it.
#[tokio::test]
async fn a_change_of_what_is_not_cached_is_no_miss() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let mut client = rig.client().await;
    let filled = || worker.context.metrics.misses.get_or_create(&ByDataset::new("stock")).get();
    wait_until("the worker is ready", async || {
        let reasons = worker.health.reasons();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    })
    .await;
    rig.postgres.execute("update stock set quantity = quantity + 1 where id <= 400").await.unwrap();
    let changed = || worker.context.metrics.changed_keys.get_or_create(&ByDataset::new("stock")).get();
    wait_until("the changes are applied", async || {
        if changed() == 400 { Ok(()) } else { Err(format!("{} keys", changed())) }
    })
    .await;
    // Misses come one behind the other: when this one is filled, all before it were seen.
    let asked = std::cell::Cell::new(0);
    wait_until("what an application missed is filled", async || {
        let value: Option<String> =
            client.clone().get("stock:500").await.map_err(|error| error.to_string())?;
        asked.set(asked.get() + u64::from(value.is_none()));
        value.map(drop).ok_or_else(|| "nothing".to_owned())
    })
    .await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("stock:*").query_async(&mut client).await.unwrap();
    assert_eq!(keys, ["stock:500"]);
    // It may have been asked for again before it was there.
    assert!((1..=asked.get()).contains(&filled()), "{} of {} misses", filled(), asked.get());
    worker.stop().await;
}

/// Whoever only looks makes no misses: an audit, `get`, and what extends entries while Postgres is down.
#[tokio::test]
async fn looking_at_what_is_not_there_is_no_miss() {
    let rig = Rig::start(TABLES).await;
    let toml = DATASETS.replace("on_miss = \"load\"", "on_miss = \"load\"\n    warm = { on_start = true }");
    let context = rig.context(&toml);
    context.redis.enable_miss_events().await.unwrap();
    let dataset = context.catalog.get("stock").unwrap();
    let mut client = rig.client().await;
    let mut events = redis::Client::open(rig.redis.url()).unwrap().get_async_pubsub().await.unwrap();
    events.psubscribe("__keyevent@*__:keymiss").await.unwrap();

    let found = compare(&context, dataset, &Extent::default()).await.unwrap();
    assert_eq!(found.missing.len(), 500);
    Cli::new(&rig, &toml).says(&["get", "stock:7"], 1, &["stock:7 is not in Redis"]);
    let state = epoch::ensure(&context, "").await.unwrap();
    let precondition = dataset.precondition(&state.epoch, &state.poll.incarnation);
    let seen = [("stock:8".to_owned(), Duration::from_secs(1))];
    let extended = context.redis.extend(&precondition, &seen, Duration::from_secs(9)).await.unwrap();
    assert!(matches!(extended, Answer::Done(0)), "{extended:?}");

    assert_eq!(client.get::<_, Option<String>>("stock:500").await.unwrap(), None);
    let mut missed = Vec::new();
    while missed.last().is_none_or(|key| key != "stock:500") {
        let event = events.on_message().next().await.unwrap();
        missed.push(event.get_payload::<String>().unwrap());
    }
    missed.retain(|key| key.starts_with("stock:"));
    assert_eq!(missed, ["stock:500"]);
}
