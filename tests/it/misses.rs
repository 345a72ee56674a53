//! Misses: what applications asked for and did not find is filled, and nothing else.

use cachekeeper::app::Worker;
use cachekeeper_engine::metrics::ByDataset;
use redis::AsyncCommands;

use crate::support::{Rig, wait_until};

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
