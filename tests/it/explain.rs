//! Why a key has its value, by the verb and by the API of a running worker; what happens to entries, as it comes; actions.

use cachekeeper::app::Worker;
use cachekeeper_testkit::servers::free_port;
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, name text, price numeric, category int);
    insert into products select n, 'product ' || n, n, n % 3 from generate_series(1, 20) n;
    create table notes (id int primary key, text text);
    insert into notes values (1, 'a note');";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, name, price, 100 / price as share, category from products"
    key = "product:{id}"
    tags = ["category:{category}"]
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]

    [dataset.note]
    query = "select id, text from notes"
    key = "note:{id}"
    scope = "cached"
    negative_ttl = "30s"
    watch = [{ table = "notes", key = { id = "id" } }]
"#;

pub struct Shop {
    pub rig: Rig,
    pub worker: Option<Worker>,
    pub cli: Cli,
    pub port: u16,
}

impl Shop {
    async fn start() -> Self {
        Self::with(TABLES, DATASETS).await
    }

    pub async fn with(tables: &str, datasets: &str) -> Self {
        let rig = Rig::start(tables).await;
        let port = free_port().unwrap();
        let mut config = rig.config(datasets);
        config.admin.listen = Some(format!("127.0.0.1:{port}"));
        let worker = Worker::start(config).await.unwrap();
        let cli = Cli::new(&rig, datasets).with("CACHEKEEPER__ADMIN__LISTEN", &format!("127.0.0.1:{port}"));
        let shop = Self { rig, worker: Some(worker), cli, port };
        wait_until("the watermark covers everything", async || {
            let (code, body) = shop.ask("GET", "/api/v1/now", "").await;
            let is_whole = body["sentence"].as_str().is_some_and(|sentence| {
                sentence.starts_with("All ") || sentence.starts_with("The dataset is")
            });
            if code == 200 && body["ready"] == true && is_whole { Ok(()) } else { Err(body.to_string()) }
        })
        .await;
        shop
    }

    pub async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)).await else {
            return (0, Value::Null);
        };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let code = reply.split_whitespace().nth(1).unwrap().parse().unwrap();
        let body = reply.split_once("\r\n\r\n").unwrap().1;
        (code, serde_json::from_str(body).unwrap_or_else(|_text| json!(body)))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (code, body) = self.ask("GET", path, "").await;
        assert_eq!(code, 200, "{path}: {body}");
        body
    }

    /// By both ways, which must agree; answers what the API says.
    pub async fn explained(&self, key: &str, state: &str, part: &str) -> Value {
        let by_api = self.get(&format!("/api/v1/explain?key={key}")).await;
        assert_eq!(by_api["verdict"]["state"], state, "{by_api:#}");
        let sentence = by_api["verdict"]["sentence"].as_str().unwrap();
        assert!(sentence.contains(part), "{sentence}");
        let code = i32::from(state == "wrong");
        let text = self.cli.says(&["explain", key], code, &[sentence]);
        let by_verb: Value =
            serde_json::from_str(&self.cli.says(&["explain", key, "--json"], code, &[])).unwrap();
        // The stamp of its slot moves with any change of a neighbour.
        for part in [
            "verdict",
            "entry",
            "row",
            "differences",
            "dataset",
            "placeholders",
            "touches",
            "touches_since_ms",
        ] {
            let (mut one, mut other) = (by_api[part].clone(), by_verb[part].clone());
            // Time passes between the two.
            for facts in [&mut one, &mut other] {
                if let Some(left) = facts.get_mut("left_ms") {
                    *left = Value::Null;
                }
            }
            assert_eq!(one, other, "{part}\n{text}");
        }
        by_api
    }

    pub async fn value_contains(&self, key: &str, part: &str) {
        let client = self.rig.client().await;
        wait_until("the entry is there", async || {
            let value: Option<Vec<u8>> = client.clone().get(key).await.unwrap();
            let text = String::from_utf8_lossy(&value.unwrap_or_default()).into_owned();
            if text.contains(part) { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_explained_in_every_state() {
    let mut shop = Shop::start().await;
    let right = shop.explained("product:7", "right", "is what Postgres says now").await;
    assert_eq!((&right["dataset"], &right["placeholders"]["id"]), (&json!("product"), &json!("7")));
    assert_eq!(right["row"]["tags"], json!(["category:1"]));
    assert_eq!(right["entry"]["value"]["name"], "product 7");
    assert!(right["watermark"]["age_ms"].is_u64() && right["not_covered"].is_null(), "{right:#}");
    let touches = right["touches"].as_array().unwrap();
    let filled = touches.iter().find(|touch| touch["what"] == "filled").unwrap();
    assert_eq!((&filled["cause"], &filled["key"]), (&json!("backfill"), &json!("")));
    assert!(filled["reason"].as_str().unwrap().starts_with("20 entries in "), "{right:#}");
    shop.explained("product:99", "absent", "no row, and no entry").await;
    shop.explained("note:1", "absent", "nobody has asked for it").await;
    shop.explained("product:007", "foreign", "is not how a value of their columns' types is written").await;
    shop.explained("page:1", "foreign", "belongs to no dataset").await;
    // What happened to it is told, by the running worker.
    shop.rig.postgres.execute("update products set name = 'renamed' where id = 7").await.unwrap();
    shop.value_contains("product:7", "renamed").await;
    let changed = shop.explained("product:7", "right", "").await;
    assert_eq!(
        (&changed["touches"][0]["what"], &changed["touches"][0]["cause"]),
        (&json!("stored"), &json!("change"))
    );
    shop.cli.says(
        &["explain", "product:7"],
        0,
        &["stored (change)", "category = ", "postgres   the same"][..1],
    );
    let event = r#"{"key": "product:8", "op": "refresh"}"#;
    let _: i64 = shop.rig.client().await.publish("cache:invalidation", event).await.unwrap();
    wait_until("what an event has done is told as that", async || {
        let touches = shop.get("/api/v1/explain?key=product:8").await["touches"].clone();
        if touches[0]["cause"] == "event" { Ok(()) } else { Err(touches.to_string()) }
    })
    .await;
    // Somebody else writes the key.
    let mut client = shop.rig.client().await;
    let _: () = client.set("product:8", "\u{81}").await.unwrap();
    shop.explained("product:8", "wrong", "Somebody else wrote the key").await;
    let _: () = client.del("product:9").await.unwrap();
    shop.explained("product:9", "absent", "is to hold every row").await;
    // A row that has no entry is listed until it has one again.
    shop.rig.postgres.execute("update products set price = 0 where id = 10").await.unwrap();
    wait_until("the row is refused", async || {
        let dataset = shop.get("/api/v1/datasets/product").await;
        if dataset["without_entry"]["rows"][0]["key"] == "product:10" {
            Ok(())
        } else {
            Err(dataset.to_string())
        }
    })
    .await;
    shop.explained("product:10", "absent", "division by zero").await;
    assert_eq!(shop.get("/api/v1/datasets").await["datasets"][1]["rows_without_entry"], 1);
    shop.rig.postgres.execute("update products set price = 1, name = 'short' where id = 10").await.unwrap();
    shop.value_contains("product:10", "short").await;
    assert_eq!(shop.get("/api/v1/datasets/product").await["without_entry"]["rows"], json!([]));
    // Nobody follows the changes.
    shop.worker.take().unwrap().stop().await;
    shop.rig.postgres.execute("update products set name = 'unseen' where id = 11").await.unwrap();
    let behind = shop.cli.says(
        &["explain", "product:11"],
        0,
        &[
            "nobody follows the changes",
            "start one (`cachekeeper run`)",
            "name: \"product 11\" in Redis, \"unseen\" in Postgres",
        ],
    );
    assert!(behind.contains("what touched it is not told: no worker answers on"), "{behind}");
    shop.rig.postgres.kill();
    shop.cli.says(&["explain", "product:7"], 69, &["Postgres cannot be asked", "renamed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_as_it_comes_and_actions_are_carried_out() {
    let shop = Shop::start().await;
    let mut live = TcpStream::connect(("127.0.0.1", shop.port)).await.unwrap();
    live.write_all(b"GET /api/v1/live?key=product:* HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut lines = BufReader::new(live).lines();
    while !lines.next_line().await.unwrap().unwrap().is_empty() {}
    let (code, answer) =
        shop.ask("POST", "/api/v1/keys/refresh", r#"{"keys": ["product:3", "elsewhere:1"]}"#).await;
    assert_eq!(
        (code, &answer["stored"], &answer["left_out"]),
        (200, &json!(1), &json!(["elsewhere:1"])),
        "{answer}"
    );
    let heard = loop {
        let line = lines.next_line().await.unwrap().unwrap();
        if let Some(data) = line.strip_prefix("data: ") {
            break serde_json::from_str::<Value>(data).unwrap();
        }
    };
    assert_eq!(
        (&heard["touches"][0]["key"], &heard["touches"][0]["what"]),
        (&json!("product:3"), &json!("stored"))
    );
    let last = heard["last"].as_u64().unwrap();
    let (code, answer) =
        shop.ask("POST", "/api/v1/keys/delete", r#"{"keys": ["product:3", "product:4"]}"#).await;
    assert_eq!((code, &answer["deleted"]), (200, &json!(2)), "{answer}");
    let touches = shop.get(&format!("/api/v1/touches?after={last}&what=deleted&dataset=product")).await;
    assert_eq!(touches["touches"].as_array().unwrap().len(), 2, "{touches}");
    let limited = shop.get(&format!("/api/v1/touches?after={last}&limit=1")).await;
    assert_eq!((&limited["is_sampled"], &limited["touches"][0]["key"]), (&json!(true), &json!("product:4")));
    let (code, answer) = shop.ask("POST", "/api/v1/datasets/product/warm", "{}").await;
    assert_eq!(code, 202, "{answer}");
    shop.value_contains("product:3", "product 3").await;
    for (method, path, body, code) in [
        ("GET", "/api/v1/explain", "", 400),
        ("GET", "/api/v1/explain?key=", "", 400),
        ("GET", "/api/v1/touches?key=%5b", "", 400),
        ("GET", "/api/v1/datasets/produkt", "", 404),
        ("POST", "/api/v1/datasets/produkt/warm", "{}", 404),
        ("POST", "/api/v1/keys/delete", r#"{"keys": []}"#, 400),
        ("POST", "/api/v1/keys/delete", "not json", 400),
        ("POST", "/api/v1/log-level", "{}", 422),
        ("GET", "/api/v1/explain?key=%ff", "", 400),
        ("GET", "/api/v1/touches?limit=-1", "", 400),
    ] {
        let (found, answer) = shop.ask(method, path, body).await;
        assert_eq!(found, code, "{method} {path}: {answer}");
        assert!(answer["error"].is_string(), "{method} {path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sentence_says_how_fresh_it_is_and_what_needs_somebody() {
    let mut shop = Shop::start().await;
    let now = shop.get("/api/v1/now").await;
    let sentence = now["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("All 2 datasets are at least as fresh as "), "{sentence}");
    assert_eq!((&now["ready"], &now["attention"]), (&json!(true), &json!([])), "{now:#}");
    shop.rig.postgres.execute("update products set price = price + 1 where id <= 5").await.unwrap();
    wait_until("the changes are counted", async || {
        let now = shop.get("/api/v1/now").await;
        if now["totals"]["changed_keys"] == 5 { Ok(()) } else { Err(now["totals"].to_string()) }
    })
    .await;
    let machine = shop.get("/api/v1/machine").await;
    let tasks = machine["tasks"].as_array().unwrap();
    assert!(8 < tasks.len() && tasks.iter().all(|task| task["is_up"] == true), "{machine:#}");
    assert!(machine["servers"].as_array().unwrap().iter().all(|server| server["is_up"] == true));
    shop.rig.postgres.kill();
    wait_until("it is told that Postgres is down", async || {
        let now = shop.get("/api/v1/now").await;
        let told = now["attention"].as_array().unwrap().iter().find(|one| {
            one["what"].as_str().unwrap().starts_with("postgres")
                && one["next"].as_str().unwrap().contains("database")
        });
        if told.is_some() && now["ready"] == false { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}

/// A page that shows one sentence of each part must know which part it is of.
#[tokio::test]
async fn a_look_that_fails_says_at_what() {
    let mut shop = Shop::start().await;
    // What no entry can have is said, and entries of applications may have it.
    let says = ["0 stored again", "no dataset has the tag kind:1; there are category:{category}"];
    shop.cli.says(&["refresh", "-t", "kind:1"], 0, &says);
    let text = shop.cli.says(&["invalidate", "-t", "category:999"], 0, &["0 stored again"]);
    assert!(!text.contains("no dataset has"), "{text}");
    let unknown = shop.cli.json(&["invalidate", "-t", "kind:1", "-t", "category:1"]);
    assert_eq!(unknown["unknown_tags"], json!(["kind:1"]), "{unknown}");
    // What stands under a key may be of another type: the row is shown as the dataset has it all the same.
    let mut client = shop.rig.client().await;
    let _: () = client.del("note:1").await.unwrap();
    let _: () = client.hset("note:1", "a", "b").await.unwrap();
    let explained = shop.cli.json(&["explain", "note:1"]);
    assert_eq!(explained["row"]["value"], json!({ "id": 1, "text": "a note" }), "{explained:#}");
    assert_eq!(explained["entry"]["undecodable"], "a hash is no entry", "{explained:#}");
    shop.rig.redis.kill();
    for (part, says) in [("size", "what its entries take"), ("lifetimes", "how long its entries live")] {
        let (code, body) = shop.ask("GET", &format!("/api/v1/datasets/product/{part}"), "").await;
        let error = body["error"].as_str().unwrap_or_default();
        assert!(code == 503 && error.starts_with(&format!("{says} cannot be told now: ")), "{body}");
        assert!(error.contains("Redis"), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_told_until_a_backfill_meets_none() {
    let tables = "
        create table labels (id int primary key, name text);
        insert into labels values (1, 'one'), (2, null), (3, null);";
    let datasets = r#"
        [dataset.label]
        query = "select name, id from labels"
        key = "label:{name}"
        warm = {}
        watch = [{ table = "labels", key = { name = "name" } }]
    "#;
    let shop = Shop::with(tables, datasets).await;
    let told = shop.get("/api/v1/datasets/label").await;
    let without_key = &told["without_entry"]["without_key"];
    assert_eq!((&without_key["rows"], &told["without_entry"]["rows"]), (&json!(2), &json!([])), "{told:#}");
    assert_eq!(shop.get("/api/v1/datasets").await["datasets"][0]["rows_without_entry"], 2);
    let attention = shop.get("/api/v1/now").await["attention"].clone();
    let begins = "dataset label: 2 rows have no entry; no key: ";
    let is_told = |item: &Value| item["what"].as_str().is_some_and(|what| what.starts_with(begins));
    assert!(attention.as_array().unwrap().iter().any(is_told), "{attention:#}");
    shop.cli.says(&["status"], 0, &["no entry   dataset label: 2 rows have no entry"]);
    shop.rig.postgres.execute("delete from labels where name is null").await.unwrap();
    assert_eq!(shop.ask("POST", "/api/v1/datasets/label/warm", "{}").await.0, 202);
    wait_until("a backfill has met none", async || {
        let told = shop.get("/api/v1/datasets/label").await;
        if told["without_entry"]["without_key"].is_null() { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_spelling_of_a_key_is_told_from_a_row_that_is_not_there() {
    let tables = "
        create table devices (id uuid primary key);
        insert into devices values ('aaaaaaaa-0000-0000-0000-00000000000a');";
    let datasets = r#"
        [dataset.device]
        query = "select id from devices"
        key = "device:{id}"
        watch = [{ table = "devices", key = { id = "id" } }]
    "#;
    let shop = Shop::with(tables, datasets).await;
    let (right, other) = ("aaaaaaaa-0000-0000-0000-00000000000a", "AAAAAAAA-0000-0000-0000-00000000000A");
    let sentence = format!("has its entry under `device:{right}`");
    let spelled = shop.explained(&format!("device:{other}"), "absent", &sentence).await;
    assert_eq!(spelled["row"]["spelled"], format!("device:{right}"));
    let unknown = shop.explained(&format!("device:{}", right.replace('a', "b")), "absent", "no row").await;
    assert!(unknown["row"]["spelled"].is_null(), "{unknown:#}");
}
