//! The directory tells applications in any language where things are: it follows the definitions that count.

use cachekeeper::app::Worker;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::capture::{TABLES, plain};
use crate::feed::ready;
use crate::support::{Rig, wait_until};

const DIRECTORY: &str = "ck:{test:0}:directory";

async fn told(rig: &Rig, field: &str) -> Option<Value> {
    let text: Option<String> = rig.client().await.hget(DIRECTORY, field).await.unwrap();
    text.map(|text| serde_json::from_str(&text).unwrap())
}

/// `plain` as it is told, with its format.
fn product(format: &str, write: bool) -> Value {
    json!({ "key": "product:{id}", "format": format, "rows": "one", "compression": null, "negative": false, "write": write })
}

async fn is_told(rig: &Rig, expected: Value) {
    wait_until("the directory tells of the definition that counts", async || {
        let found = told(rig, "dataset:product").await;
        if found.as_ref() == Some(&expected) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test]
async fn the_directory_tells_of_the_service_and_of_each_definition_that_counts() {
    let rig = Rig::start(TABLES).await;
    let packed = plain().replace("format = \"json\"", "format = \"msgpack\"");
    assert_ne!(packed, plain());
    let older = Worker::start(rig.config(&packed)).await.unwrap();
    ready(&older).await;
    assert_eq!(told(&rig, "dataset:product").await, Some(product("msgpack", false)));
    let service = json!({
        "version": 1,
        "events": { "channels": ["cache:invalidation"], "stream": "cache:invalidation:log" },
        "writes": { "stream": "cache:writes", "reply_prefix": "cache:reply:" },
    });
    assert_eq!(told(&rig, "service").await, Some(service.clone()));
    // A definition that was registered before, by a worker that knew no directory.
    let _: () = rig.client().await.del(DIRECTORY).await.unwrap();
    is_told(&rig, product("msgpack", false)).await;
    assert_eq!(told(&rig, "service").await, Some(service));

    // The newer one counts, and the older one says nothing any more.
    let newer = Worker::start(rig.config(&plain())).await.unwrap();
    is_told(&rig, product("json", false)).await;
    ready(&newer).await;
    let superseded = || older.context.catalog.get("product").is_some_and(|dataset| dataset.is_superseded());
    wait_until(
        "the older one knows it",
        async || {
            if superseded() { Ok(()) } else { Err("it does not".to_owned()) }
        },
    )
    .await;
    assert_eq!(told(&rig, "dataset:product").await, Some(product("json", false)));
    // Taken back.
    newer.stop().await;
    is_told(&rig, product("msgpack", false)).await;
    older.stop().await;
}

/// What is no part of a definition (R16) changes neither its hash nor what is registered, and is told all the same.
#[tokio::test]
async fn what_is_no_part_of_a_definition_is_told_without_a_revalidation() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(&plain())).await.unwrap();
    ready(&worker).await;
    worker.stop().await;
    let before: String = rig.client().await.hget("ck:{test:0}:meta", "rev:product").await.unwrap();
    let more = format!(
        "{}\n[dataset.product.write]\nstatement = \"update products set name = :name where id = :id\"\n",
        plain()
    );
    let worker = Worker::start(rig.config(&more)).await.unwrap();
    is_told(&rig, product("json", true)).await;
    let after: String = rig.client().await.hget("ck:{test:0}:meta", "rev:product").await.unwrap();
    assert_eq!(before.split(' ').next(), after.split(' ').next());
    worker.stop().await;
}
