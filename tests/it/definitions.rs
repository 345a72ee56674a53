//! Whose definition of a dataset counts (R16): workers register theirs, verbs and libraries go by what is registered.

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch;
use redis::AsyncCommands;
use serde_json::Value;

use crate::capture::{TABLES, follower, plain, watermark};
use crate::feed::{agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

/// The same dataset by another query.
fn other() -> String {
    plain().replace("select id, name, price", "select id, upper(name) as name, price")
}

async fn registered(rig: &Rig) -> Option<String> {
    rig.client().await.hget("ck:{test:0}:meta", "rev:product").await.unwrap()
}

/// Faults D2: a verb with another file took the dataset from the worker.
#[tokio::test]
async fn verbs_register_nothing() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    ready(&worker).await;
    let before = registered(&rig).await.unwrap();
    let cli = Cli::new(&rig, &other());
    let says = "dataset product is registered with another definition";
    cli.says(&["audit"], 78, &[says]);
    cli.says(&["audit", "--fix"], 78, &[says]);
    cli.says(&["warm"], 78, &[says]);
    cli.says(&["get", "product:1"], 0, &["product 1"]);
    cli.says(&["status"], 0, &["product"]);
    // What it invalidates is invalidated, whatever it was made by; loading it again is left to the workers.
    cli.says(&["invalidate", "product:1"], 0, &[]);
    cli.says(&["refresh", "product:2"], 0, &[]);
    assert_eq!(registered(&rig).await.unwrap(), before);
    assert!(worker.context.catalog.iter().all(|dataset| !dataset.is_superseded()));
    rig.postgres.execute("update products set name = 'new' where id in (1, 2, 3)").await.unwrap();
    caught_up(&worker).await;
    agrees(&worker).await;
    let mut client = rig.client().await;
    let value: String = client.get("product:3").await.unwrap();
    assert!(value.contains("\"new\""), "{value}");
    assert!(worker.stop().await);
}

#[tokio::test]
async fn a_library_with_another_definition_reads_and_stores_nothing() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    ready(&worker).await;
    let cache = Cache::over(Context::new(&rig.config(&other())).unwrap()).build();
    let products = cache.dataset("product").unwrap();
    let mut client = rig.client().await;
    let _: () = client.del("product:7").await.unwrap();
    let loaded: Value = products.get(&["7"]).await.unwrap().unwrap();
    assert_eq!(loaded["name"], "PRODUCT 7", "it is answered by its own definition");
    assert!(
        !client.exists::<_, bool>("product:7").await.unwrap(),
        "the next reader has the workers' definition"
    );
    assert!(worker.context.catalog.iter().all(|dataset| !dataset.is_superseded()));
    assert!(worker.stop().await);
    // The workers are replaced: now its definition is the registered one, and it stores.
    let worker = Worker::start(rig.config(&other())).await.unwrap();
    ready(&worker).await;
    wait_until("it stores what it loads", async || {
        let mut client = rig.client().await;
        let _: () = client.del("product:8").await.map_err(|error| error.to_string())?;
        let _loaded: Option<Value> = products.get(&["8"]).await.map_err(|error| error.to_string())?;
        let value: Option<String> = client.get("product:8").await.map_err(|error| error.to_string())?;
        value.map(drop).ok_or_else(|| "it does not".to_owned())
    })
    .await;
    agrees(&worker).await;
    assert!(worker.stop().await);
}

/// Where no worker has registered the dataset yet, a library stores what it loads; the first worker sees to it.
#[tokio::test]
async fn what_was_stored_before_the_first_worker_is_revalidated_by_it() {
    let rig = Rig::start(TABLES).await;
    let cache = Cache::over(Context::new(&rig.config(&other())).unwrap()).build();
    let products = cache.dataset("product").unwrap();
    let _loaded: Option<Value> = products.get(&["7"]).await.unwrap();
    let mut client = rig.client().await;
    let value: String = client.get("product:7").await.unwrap();
    assert!(value.contains("PRODUCT 7"), "{value}");
    assert_eq!(registered(&rig).await, None);
    let cli = Cli::new(&rig, &plain().replace("warm = {}", "warm = { limit = 3, order_by = \"id\" }"));
    cli.says(&["warm"], 0, &["3 entries stored"]);
    cli.says(&["audit"], 1, &["stale"]);
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    ready(&worker).await;
    agrees(&worker).await;
    let value: String = client.get("product:7").await.unwrap();
    assert!(value.contains("product 7"), "{value}");
    // The library, which knew of no registered definition, learns of it.
    let _: () = client.del("product:9").await.unwrap();
    let _loaded: Option<Value> = products.get(&["9"]).await.unwrap();
    let stored: Option<String> = client.get("product:9").await.unwrap();
    assert!(stored.is_none_or(|value| value.contains("product 9")), "stored under the old definition");
    assert!(worker.stop().await);
}

/// A worker that has not heard yet of a newer definition follows by its own, and may not know of every table that the newer one reads.
#[tokio::test]
async fn who_follows_by_an_older_definition_claims_nothing_of_the_dataset() {
    let rig = Rig::start(TABLES).await;
    let (older, newer) = (rig.context(&plain()), rig.context(&other()));
    let mut feed = follower(&older).await;
    let mut client = rig.client().await;
    // As if it had been filled.
    let _: () = client.hdel("ck:{test:0}:meta", "pending:product").await.unwrap();
    feed.step(true).await.unwrap();
    assert_eq!(watermark(&older).await.not_covered, Vec::<String>::new());
    epoch::ensure(&newer, "").await.unwrap();
    let registered = registered(&rig).await.unwrap();
    assert!(registered.starts_with(&newer.catalog.get("product").unwrap().definition), "{registered}");
    // The newer one has seen to what was pending.
    let _: () = client.hdel("ck:{test:0}:meta", "pending:product").await.unwrap();
    assert!(older.catalog.iter().all(|dataset| !dataset.is_superseded()), "it has not looked");
    feed.step(true).await.unwrap();
    assert_eq!(watermark(&older).await.not_covered, ["product"]);
    let pending = older.redis.metadata("").await.unwrap().pending;
    assert!(pending.contains_key("product"), "{pending:?}");
}
