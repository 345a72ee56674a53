//! Entries of streams that nobody should have sent: as large as Redis allows. They cost what it takes to set them aside, one by one,
//! and what comes behind them is worked off (faults C8).

use cachekeeper::app::Worker;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::Value;

use crate::support::{Rig, wait_until};

const TABLES: &str = "create table products (id int primary key, price int);
    insert into products select n, n from generate_series(1, 100) n;";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, price from products"
    key = "product:{id}"
    format = "json"
    watch = [{ table = "products", key = { id = "id" } }]
    [dataset.product.write]
    statement = "update products set price = :price where id = :id"
"#;

const LARGE: usize = 8 << 20;
const COUNT: usize = 16;

/// A client that waits: what it adds is large.
async fn patient(rig: &Rig) -> MultiplexedConnection {
    let config =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(std::time::Duration::from_secs(30)));
    let client = redis::Client::open(rig.redis.url()).unwrap();
    client.get_multiplexed_async_connection_with_config(&config).await.unwrap()
}

async fn number_of(client: &mut MultiplexedConnection, section: &str, name: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg(section).query_async(client).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
    line.parse().unwrap()
}

async fn length(client: &MultiplexedConnection, stream: &str) -> u64 {
    redis::cmd("XLEN").arg(stream).query_async(&mut client.clone()).await.unwrap()
}

async fn add(client: &MultiplexedConnection, stream: &str, field: &str, value: &[u8]) {
    let mut command = redis::cmd("XADD");
    command.arg(stream).arg("*").arg(field).arg(value);
    let _: String = command.query_async(&mut client.clone()).await.unwrap();
}

#[tokio::test]
async fn large_commands_are_set_aside_one_by_one_and_unread() {
    let rig = Rig::start(TABLES).await;
    let mut client = patient(&rig).await;
    // One by one, so that what Redis takes at its highest is not what it takes for them all to arrive.
    for number in 0..COUNT {
        let mut command = redis::cmd("XADD");
        command.arg(&["cache:writes", "*", "dataset", "product", "id"]).arg(format!("large-{number}"));
        command.arg("params").arg(vec![b'x'; LARGE]).arg("reply").arg("cache:reply:large");
        let _: String = command.query_async(&mut client).await.unwrap();
    }
    let mut command = redis::cmd("XADD");
    command.arg(&["cache:writes", "*", "dataset", "product", "id", "small"]);
    command.arg(&["params", r#"{"id": 7, "price": 777}"#, "reply", "cache:reply:small"]);
    let _: String = command.query_async(&mut client).await.unwrap();
    let (used, sent) = (
        number_of(&mut client, "memory", "used_memory").await,
        number_of(&mut client, "stats", "total_net_output_bytes").await,
    );
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    wait_until("all are worked off", async || {
        let left = length(&client, "cache:writes").await;
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
    let value: String = client.get("product:7").await.unwrap();
    assert!(value.contains("777"), "{value}");
    assert_eq!(client.llen::<_, u64>("cache:reply:small").await.unwrap(), 1);
    // Whoever sent them is told why.
    let replies: Vec<String> = client.lrange("cache:reply:large", 0, -1).await.unwrap();
    assert_eq!(replies.len(), COUNT);
    let reply: Value = serde_json::from_str(&replies[0]).unwrap();
    assert!(reply["error"].as_str().unwrap().contains("bytes, at most"), "{reply}");
    let dead = worker.context.redis.dead_letters("cache:writes", 100).await.unwrap();
    assert_eq!(dead.len(), COUNT);
    let kept: usize = dead.iter().map(cachekeeper_engine::stores::redis::StreamEntry::size).sum();
    assert!(kept < 64 << 10, "{kept} bytes of rejected commands are kept");
    assert!(dead.iter().all(|letter| letter.field("id").is_some_and(|id| id.starts_with(b"large-"))));

    let large = LARGE as u64;
    let peak = number_of(&mut client, "memory", "used_memory_peak").await;
    assert!(
        peak < used + 6 * large,
        "Redis took {} MiB more, for entries of {} MiB",
        (peak - used) >> 20,
        large >> 20
    );
    let sent = number_of(&mut client, "stats", "total_net_output_bytes").await - sent;
    assert!(sent < 4 * large, "{} MiB were read", sent >> 20);
    worker.stop().await;
}

/// The same of durable events.
#[tokio::test]
async fn large_events_are_set_aside_too() {
    let rig = Rig::start(TABLES).await;
    let mut client = patient(&rig).await;
    for _ in 0..COUNT {
        add(&client, "cache:invalidation:log", "keys", &vec![b' '; LARGE]).await;
    }
    rig.postgres.execute("update products set price = 5 where id = 3").await.unwrap();
    let _: () = client.set("product:3", "stale").await.unwrap();
    add(&client, "cache:invalidation:log", "key", b"product:3").await;
    let sent = number_of(&mut client, "stats", "total_net_output_bytes").await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    wait_until("all are worked off", async || {
        let left = length(&client, "cache:invalidation:log").await;
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
    let metrics = worker.context.metrics.render().unwrap();
    assert!(metrics.contains("cachekeeper_events_invalid_total{reason=\"too_large\"} 16"), "{metrics}");
    let sent = number_of(&mut client, "stats", "total_net_output_bytes").await - sent;
    assert!(sent < 4 * LARGE as u64, "{} MiB were read", sent >> 20);
    worker.stop().await;
}
