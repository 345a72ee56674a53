//! Applications in other languages, with their usual clients: they read every value, and their events are applied.

use std::process::Command;

use cachekeeper::app::Worker;
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::entry::Shape;
use serde_json::{Value, json};

use crate::client_cluster::World;
use crate::support::{Rig, wait_until};

const TABLES: &str = "
    create table t (id int primary key, name text, price numeric(10, 2), data jsonb, at timestamptz, raw bytea, tags text[]);
    insert into t select n, 'name ' || n || ' ünï', n + 0.5, jsonb_build_object('n', n, 'list', jsonb_build_array(1, null, 'x')),
        '2026-11-24 12:00:00+00', '\\x00ff', array['a', 'b'] from generate_series(1, 20) n;";

const DATASETS: &str = r#"
    [dataset.packed]
    query = "select id, name, price, data, at, tags from t"
    key = "packed:{id}"
    warm = {}
    [dataset.json]
    query = "select id, name, price, data, at, tags from t"
    key = "json:{id}"
    format = "json"
    warm = {}
    [dataset.zstd]
    query = "select id, name, price, data, at, tags from t"
    key = "zstd:{id}"
    compression = { codec = "zstd", min_size = "1B" }
    warm = {}
    [dataset.list]
    query = "select id % 2 as half, id, name from t"
    key = "list:{half}"
    rows = "many"
    sort = "id desc"
    compression = { codec = "zstd", min_size = "1B" }
    warm = {}
    [dataset.lz4]
    query = "select id, name, price, data, at, tags from t"
    key = "lz4:{id}"
    format = "json"
    compression = { codec = "lz4", min_size = "1B" }
    warm = {}
"#;

/// The programs that read entries.
fn readers() -> Vec<(&'static str, Vec<String>)> {
    programs("reader")
}

/// The programs that hand writes over.
pub fn writers() -> Vec<(&'static str, Vec<String>)> {
    programs("writer")
}

/// Programs, each with what it needs.
fn programs(name: &str) -> Vec<(&'static str, Vec<String>)> {
    let base = format!("{}/target/readers", env!("CARGO_MANIFEST_DIR"));
    let here = format!("{}/tests/readers", env!("CARGO_MANIFEST_DIR"));
    let python = format!("{base}/python/bin/python");
    assert!(
        std::path::Path::new(&python).exists() && std::path::Path::new(&base).join("node.done").exists(),
        "the clients of Python and Node are missing: run tests/readers/install (make test does)"
    );
    vec![
        ("python", vec![python, format!("{here}/{name}.py")]),
        ("node", vec!["node".to_owned(), format!("{here}/{name}.mjs")]),
    ]
}

fn call(command: &[String], arguments: &[&str]) -> String {
    let output = Command::new(&command[0])
        .args(&command[1..])
        .args(arguments)
        .env("READERS", format!("{}/target/readers", env!("CARGO_MANIFEST_DIR")))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command:?} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn python_and_node_read_every_value_and_their_events_are_applied() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    wait_until("everything is warm", || async {
        let reasons = worker.health.reasons();
        if reasons.is_empty() { Ok(()) } else { Err(format!("{reasons:?}")) }
    })
    .await;
    let url = rig.redis.url();
    let row = json!({
        "id": 7, "name": "name 7 ünï", "price": "7.50", "data": { "n": 7, "list": [1, null, "x"] },
        "at": "2026-11-24T12:00:00+00:00", "tags": ["a", "b"],
    });
    for (language, command) in readers() {
        let mut keys = vec!["packed:7", "json:7", "zstd:7"];
        // Node's usual libraries have no LZ4 frames.
        if language == "python" {
            keys.push("lz4:7");
        }
        let mut arguments = vec![url.as_str(), "get"];
        arguments.extend(&keys);
        for (line, key) in call(&command, &arguments).lines().zip(keys) {
            assert_eq!(serde_json::from_str::<Value>(line).unwrap(), row, "{language} {key}");
        }
        let list: Value = serde_json::from_str(call(&command, &[&url, "get", "list:1"]).trim()).unwrap();
        assert_eq!(list.as_array().unwrap().len(), 10);
        assert_eq!(list[0], json!({ "half": 1, "id": 19, "name": "name 19 ünï" }));
        for kind in ["bare", "json", "msgpack"] {
            let name = format!("{language} {kind}");
            rig.postgres.execute(&format!("update t set name = '{name}' where id = 9")).await.unwrap();
            call(&command, &[&url, "publish", kind, "json:9"]);
            wait_until(&format!("the event of {name} is applied"), || async {
                let read = worker.context.redis.read(&["json:9"], Shape::String).await.unwrap();
                let value = String::from_utf8(read[0].0.clone().unwrap_or_default()).unwrap();
                if value.contains(&name) { Ok(()) } else { Err(value) }
            })
            .await;
        }
    }
    // redis-cli, as a person types it.
    rig.postgres.execute("update t set name = 'typed' where id = 9").await.unwrap();
    let port = rig.redis.port().to_string();
    let published = Command::new("redis-cli")
        .args(["-p", &port, "publish", "cache:invalidation", "json:9"])
        .output()
        .unwrap();
    assert!(published.status.success());
    wait_until("redis-cli shows the new value", || async {
        let shown = Command::new("redis-cli").args(["-p", &port, "get", "json:9"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        if shown.contains("\"name\":\"typed\"") { Ok(()) } else { Err(shown) }
    })
    .await;
    assert!(worker.stop().await);
}

/// Whatever client of Redis Cluster they have: a value is under its key, at the node that serves that.
#[tokio::test]
async fn python_and_node_read_a_cluster_with_their_usual_clients() {
    let config = format!("[invalidation]\nstream = \"\"\n{DATASETS}");
    let world = World::start(TABLES, &config, 0).await;
    let value = async |key: &str| -> String {
        let at = ClusterSlot::of(key.as_bytes());
        let owner = world.servers.owner(at, 0).await.unwrap();
        let get = redis::cmd("GET").arg(key).to_owned();
        let bytes: Option<Vec<u8>> = world.servers.ask(owner, &get).await.unwrap();
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    };
    let keys = ["packed:7", "json:7", "zstd:7"];
    wait_until("everything is warm", async || {
        for key in keys.into_iter().chain(["json:9"]) {
            if value(key).await.is_empty() {
                return Err(format!("{key} is not there"));
            }
        }
        Ok(())
    })
    .await;
    let url = world.servers.url();
    for (language, command) in readers() {
        let mut arguments = vec![url.as_str(), "get"];
        arguments.extend(keys);
        let read = call(&command, &arguments);
        let names: Vec<Value> =
            read.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].clone()).collect();
        assert_eq!(names, vec![json!("name 7 ünï"); 3], "{language}");
        let name = format!("{language} on a cluster");
        world.rig.postgres.execute(&format!("update t set name = '{name}' where id = 9")).await.unwrap();
        call(&command, &[&url, "publish", "json", "json:9"]);
        wait_until(&format!("the event of {name} is applied"), async || {
            let value = value("json:9").await;
            if value.contains(&name) { Ok(()) } else { Err(value) }
        })
        .await;
    }
}
