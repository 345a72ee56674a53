//! The packages for Python and Node (`clients/`), installed as anybody does, against real servers and workers.

use std::process::Command;

use cachekeeper::app::Worker;
use cachekeeper_engine::compress::decompress;
use cachekeeper_protocol::event::Event;
use cachekeeper_protocol::stamp::Snapshot;
use cachekeeper_protocol::template::{RenderError, Template};
use cachekeeper_protocol::token::Token;
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::client_programs::{CALLERS, Caller, filled, install, python};
use crate::support::{Rig, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub const TABLES: &str = "
    create table t (id int primary key, name text, price numeric(10, 2), data jsonb, at timestamptz, raw bytea, big bigint);
    insert into t select n, 'name ' || n || ' ünï', n + 0.5, jsonb_build_object('n', n, 'list', jsonb_build_array(1, null, 'x')),
        '2026-11-24 12:00:00+00', '\\x00ff', 9223372036854775807 - n from generate_series(1, 20) n;
    create table stock (id int, city text, count int, primary key (id, city));
    insert into stock values (1, 'berlin', 5), (1, 'köln', 7);";

pub const DATASETS: &str = r#"
    [dataset.packed]
    query = "select id, name, price, data, at, raw, big from t"
    key = "packed:{id}"
    watch = [{ table = "t", key = { id = "id" } }]
    warm = {}
    [dataset.packed.write]
    statement = "update t set name = :name where id = :id"
    [dataset.json]
    query = "select id, name, price, data, at, big from t"
    key = "json:{id}"
    format = "json"
    compression = { codec = "zstd", min_size = "1B" }
    watch = [{ table = "t", key = { id = "id" } }]
    warm = {}
    [dataset.lz4]
    query = "select id, name, price, data, at, big from t"
    key = "lz4:{id}"
    compression = { codec = "lz4", min_size = "1B" }
    watch = [{ table = "t", key = { id = "id" } }]
    warm = {}
    [dataset.raw]
    query = "select id, raw from t"
    key = "raw:{id}"
    format = "raw"
    value = "raw"
    watch = [{ table = "t", key = { id = "id" } }]
    warm = {}
    [dataset.fields]
    query = "select id, name, price, data, at, raw, null::text as nothing from t"
    key = "fields:{id}"
    format = "hash"
    watch = [{ table = "t", key = { id = "id" } }]
    warm = {}
    [dataset.list]
    query = "select id % 2 as half, id, name from t"
    key = "list:{half}"
    rows = "many"
    sort = "id desc"
    watch = [{ table = "t", dataset = true }]
    warm = {}
    [dataset.stock]
    query = "select id, city, count from stock"
    key = "stock:{id}:{city}"
    negative_ttl = "1h"
    watch = [{ table = "stock", key = { id = "id", city = "city" } }]
    warm = {}
    [dataset.loose]
    query = "select id, name from t"
    key = "loose:{id}"
    format = "json"
    warm = {}
"#;

#[test]
fn the_unit_tests_of_the_package_for_python_pass() {
    install();
    let mut pytest = python();
    pytest
        .args(["-m", "pytest", "-q", "-p", "no:cacheprovider"])
        .current_dir(format!("{ROOT}/clients/python"));
    passes(pytest);
}

#[test]
fn the_unit_tests_of_the_package_for_node_pass() {
    install();
    // A copy, beside which the libraries are found.
    let mut node = Command::new("node");
    node.arg("--test").current_dir(format!("{ROOT}/target/readers/node-package"));
    passes(node);
}

fn passes(mut tests: Command) {
    let output = tests.env("CACHEKEEPER_VECTORS", format!("{ROOT}/clients/vectors")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{tests:?}\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn vectors(name: &str) -> Value {
    let text = std::fs::read_to_string(format!("{ROOT}/clients/vectors/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().map(|all| all.iter().map(|one| one.as_str().unwrap()).collect()).unwrap_or_default()
}

/// What the packages are tested with is what the worker does.
#[test]
fn tokens_keys_and_events_mean_the_same_to_the_worker() {
    let tokens = vectors("tokens");
    for one in tokens["seen"].as_array().unwrap() {
        let text = |name: &str| one[name].as_str().unwrap();
        let (token, snapshot): (Token, Snapshot) =
            (text("token").parse().unwrap(), text("snapshot").parse().unwrap());
        assert_eq!(json!(token.is_seen_at(text("incarnation"), &snapshot)), one["seen"], "{one}");
    }
    for text in texts(&tokens["invalid"]) {
        assert!(text.parse::<Token>().is_err(), "{text}");
    }
    let keys = vectors("keys");
    for one in keys["keys"].as_array().unwrap() {
        let template = Template::parse(one["template"].as_str().unwrap()).unwrap();
        assert_eq!(template.columns().collect::<Vec<_>>(), texts(&one["columns"]));
        let found = match template.render(&texts(&one["values"])) {
            Ok(key) => {
                assert_eq!(template.read(&key).unwrap(), texts(&one["values"]), "{one}");
                json!({ "key": key })
            }
            Err(RenderError::Missing { .. }) => json!({ "error": "missing" }),
            Err(RenderError::Ambiguous { .. }) => json!({ "error": "ambiguous" }),
        };
        let (name, value) = found.as_object().unwrap().iter().next().unwrap();
        assert_eq!(one.get(name), Some(value), "{one}");
    }
    for one in keys["not_of"].as_array().unwrap() {
        let template = Template::parse(one["template"].as_str().unwrap()).unwrap();
        for key in texts(&one["keys"]) {
            assert_eq!(template.read(key), None, "{one} {key}");
        }
    }
    for text in texts(&keys["invalid"]) {
        assert!(Template::parse(text).is_err(), "{text}");
    }
    let events = vectors("events");
    for one in events["valid"].as_array().unwrap() {
        let event = Event::decode(one["event"].to_string().as_bytes()).unwrap();
        let ids: Vec<Vec<&str>> =
            one["ids"].as_array().map_or_else(Vec::new, |ids| ids.iter().map(texts).collect());
        assert_eq!((event.keys, event.tags), (own(&one["keys"]), own(&one["tags"])));
        assert_eq!(
            (event.dataset.as_deref(), event.id.as_deref()),
            (one["dataset"].as_str(), one["id"].as_str())
        );
        assert_eq!((event.op.map(|op| op.as_str()), event.at_ms), (one["op"].as_str(), one["at"].as_u64()));
        assert_eq!(event.ids, ids);
    }
    for event in events["invalid"].as_array().unwrap() {
        assert!(Event::decode(event.to_string().as_bytes()).is_err(), "{event}");
    }
}

fn own(value: &Value) -> Vec<String> {
    texts(value).into_iter().map(str::to_owned).collect()
}

#[test]
fn frames_of_other_languages_are_read_by_the_worker_too() {
    let bytes = |hex: &Value| -> Vec<u8> {
        let hex = hex.as_str().unwrap();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    for one in vectors("values")["frames"].as_array().unwrap() {
        let (plain, times) = match one.get("repeats") {
            Some(again) => {
                (bytes(&again["plain"]), usize::try_from(again["times"].as_u64().unwrap()).unwrap())
            }
            None => (bytes(&one["plain"]), 1),
        };
        let read = decompress(&bytes(&one["frame"]), 1 << 20).map(std::borrow::Cow::into_owned);
        assert_eq!(read.unwrap(), plain.repeat(times), "{}", one["name"]);
    }
}

async fn start() -> (Rig, Worker) {
    install();
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    filled(&worker).await;
    (rig, worker)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_every_format_are_read() {
    let (rig, worker) = start().await;
    let mut client = rig.client().await;
    let row = json!({
        "id": 7, "name": "name 7 ünï", "price": "7.50", "data": { "n": 7, "list": [1, null, "x"] },
        "at": "2026-11-24T12:00:00+00:00", "big": { "int": "9223372036854775800" },
    });
    let mut packed = row.clone();
    packed["raw"] = json!({ "hex": "00ff" });
    let no_options = || json!({});
    let _: () = client.set("stock:2:nowhere", b"\xc0").await.unwrap();
    let _: () = client.set("packed:8", b"\x81\xa2").await.unwrap();
    let _: () = client.set("fields:8", "a string").await.unwrap();
    for mut caller in Caller::start_all(&rig.redis.url(), "test") {
        assert_eq!(caller.call("get", json!(["packed", 7]), no_options()), packed);
        for dataset in ["json", "lz4"] {
            assert_eq!(
                caller.call("get", json!([dataset, "7"]), no_options()),
                row,
                "{} {dataset}",
                caller.name
            );
        }
        assert_eq!(caller.call("get_key", json!(["json:7"]), no_options()), row);
        assert_eq!(caller.call("get", json!(["raw", 7]), no_options()), json!({ "hex": "00ff" }));
        let fields = json!({
            "id": "7", "name": "name 7 ünï", "price": "7.50", "data": "{\"n\": 7, \"list\": [1, null, \"x\"]}",
            "at": "2026-11-24 12:00:00+00", "raw": { "hex": "00ff" },
        });
        assert_eq!(caller.call("get", json!(["fields", 7]), no_options()), fields, "{}", caller.name);
        assert_eq!(caller.call("get_key", json!(["fields:7"]), no_options()), fields);
        let many = caller.call("get_many", json!(["fields", [7, 999, 8]]), no_options());
        assert_eq!((&many[0], &many[1], &many[2]), (&fields, &Value::Null, &Value::Null), "a string is none");
        let token = rig.postgres.session().await.unwrap().text("select cachekeeper.token()").await.unwrap();
        let with_token = json!({ "token": token.unwrap(), "wait": 60 });
        assert_eq!(caller.call("get", json!(["fields", 7]), with_token.clone()), fields);
        let reading = caller.call("read", json!(["fields", 999]), with_token);
        assert_eq!(
            (&reading["state"], &reading["freshness"]),
            (&json!("missing"), &json!("fresh")),
            "{reading}"
        );
        let list = caller.call("get", json!(["list", 1]), no_options());
        assert_eq!(list.as_array().unwrap().len(), 10);
        assert_eq!(list[0], json!({ "half": 1, "id": 19, "name": "name 19 ünï" }));
        let many = caller.call("get_many", json!(["packed", [7, 999, 9]]), no_options());
        assert_eq!((&many[0], &many[1], &many[2]["id"]), (&packed, &Value::Null, &json!(9)));
        let köln = json!({ "id": 1, "city": "köln", "count": 7 });
        assert_eq!(caller.call("get", json!(["stock", [1, "köln"]]), no_options()), köln);
        assert_eq!(caller.call("get", json!(["stock", { "city": "köln", "id": 1 }]), no_options()), köln);
        // Known to be absent, and not known.
        for (id, state) in [(json!([2, "nowhere"]), "negative"), (json!([3, "nowhere"]), "missing")] {
            assert_eq!(caller.call("get", json!(["stock", id]), no_options()), Value::Null);
            let reading = caller.call("read", json!(["stock", id]), no_options());
            assert_eq!(reading["state"], state, "{}: {reading}", caller.name);
        }
        let many: Vec<u32> = (1..=2_500).collect();
        let found = caller.call("get_many", json!(["json", many]), no_options());
        assert_eq!(found.as_array().unwrap().iter().filter(|value| !value.is_null()).count(), 20);
        assert_eq!(caller.call("get_many", json!(["json", []]), no_options()), json!([]));

        let mut refused = |method: &str, arguments: Value, kind: &str, parts: &[&str]| {
            caller.fails_with((method, arguments, json!({})), kind, parts);
        };
        refused("get", json!(["packed", 8]), "Undecodable", &["the value of packed:8 cannot be read"]);
        refused(
            "get",
            json!(["pakced", 8]),
            "UnknownDataset",
            &["pakced", "it has: fields, json, list, loose, lz4, packed, raw, stock"],
        );
        refused(
            "get",
            json!(["stock", 1]),
            "InvalidKey",
            &["stock:{id}:{city} takes 2 values (id, city), not 1"],
        );
        refused("get", json!(["packed", null]), "InvalidKey", &["id is"]);
        refused("get_key", json!(["page:1"]), "InvalidKey", &["page:1", "no key of a dataset"]);
        refused("get_many", json!(["packed", "7"]), "InvalidInput", &["ids are"]);
        refused("write", json!(["json", {}]), "InvalidWrite", &["dataset json has no write statement"]);
        caller.fails_with(
            ("get", json!(["packed", 7]), json!({ "token": "x" })),
            "InvalidToken",
            &["x", "is no token"],
        );
        caller.fails_with(("get", json!(["packed", 7]), json!({ "wait": -1 })), "InvalidInput", &["wait"]);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_applied_and_wrong_ones_are_not_sent() {
    let (rig, worker) = start().await;
    for mut caller in Caller::start_all(&rig.redis.url(), "test") {
        for (at, event, durable) in [
            (1, json!({ "key": "loose:9" }), false),
            (
                2,
                json!({ "keys": ["loose:9"], "op": "delete", "id": format!("{} delete", caller.name), "at": 1 }),
                true,
            ),
            (3, json!({ "dataset": "loose", "ids": [9, 10] }), false),
            (4, json!({ "dataset": "loose", "ids": ["9"], "op": "refresh" }), true),
            (5, json!({ "dataset": "loose" }), true),
        ] {
            let name = format!("{} {at}", caller.name);
            rig.postgres.execute(&format!("update t set name = '{name}' where id = 9")).await.unwrap();
            let answer = caller.call("publish", json!([event]), json!({ "durable": durable }));
            assert!(if durable { answer.is_string() } else { answer == json!(1) }, "{answer}");
            wait_until(&format!("the event of {name} is applied"), async || {
                let found: Option<String> =
                    rig.client().await.get("loose:9").await.map_err(|error| error.to_string())?;
                let is_there = found.as_ref().is_some_and(|value| value.contains(&name));
                if is_there || (at == 2 && found.is_none()) { Ok(()) } else { Err(format!("{found:?}")) }
            })
            .await;
        }
        for (event, kind, part) in [
            (json!({ "key": "ck:{test:0}:meta" }), "InvalidEvent", "belong to Cachekeeper"),
            (json!({ "dataset": "lose" }), "UnknownDataset", "no dataset"),
            (json!({ "dataset": "stock", "ids": [1] }), "InvalidEvent", "2 parts (id, city)"),
            (json!({ "kye": "loose:9" }), "InvalidEvent", "no field kye"),
        ] {
            caller.fails_with(("publish", json!([event]), json!({})), kind, &[part]);
        }
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_are_carried_out_once_and_read_back() {
    let (rig, worker) = start().await;
    for mut caller in Caller::start_all(&rig.redis.url(), "test") {
        let (name, id) = (format!("by {}", caller.name), format!("{}-1", caller.name));
        let params = json!({ "id": 3, "name": name });
        let written = caller.call("write", json!(["packed", params]), json!({ "id": id, "timeout": 60 }));
        assert_eq!((&written["rows"], &written["id"]), (&json!(1), &json!(id)), "{written}");
        let token = written["token"].as_str().unwrap();
        let read = |token: &str| json!({ "token": token, "wait": 60 });
        assert_eq!(caller.call("get", json!(["packed", 3]), read(token))["name"], name);
        // Said again: it is not carried out again. Others under its id are refused, with the worker's words.
        rig.postgres.execute("update t set name = 'since' where id = 3").await.unwrap();
        let again = caller.call("write", json!(["packed", params]), json!({ "id": id, "timeout": 60 }));
        assert_eq!(again["rows"], 1);
        let now =
            rig.postgres.session().await.unwrap().text("select name from t where id = 3").await.unwrap();
        assert_eq!(now.as_deref(), Some("since"));
        let other = json!({ "id": 3, "name": "other" });
        caller.fails_with(
            ("write", json!(["packed", other]), json!({ "id": id, "timeout": 60 })),
            "WriteRejected",
            &["id"],
        );
        let none = json!(["packed", { "id": 999, "name": "x" }]);
        caller.fails_with(("write", none, json!({ "timeout": 60 })), "WriteRejected", &["no row"]);
        let wrong = json!(["packed", { "id": 3, "nmae": "x" }]);
        caller.fails_with(("write", wrong, json!({ "timeout": 60 })), "WriteRejected", &["nmae"]);
    }
    // Nobody carries it out: that is not known to whoever waits.
    worker.stop().await;
    for mut caller in Caller::start_all(&rig.redis.url(), "test") {
        let params = json!(["packed", { "id": 4, "name": "late" }]);
        let parts = ["no reply to the write late", "with the same id"];
        caller.fails_with(("write", params, json!({ "id": "late", "timeout": 0.5 })), "WriteUnknown", &parts);
    }
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let mut caller = Caller::start(CALLERS[2], &rig.redis.url(), "test");
    let params = json!(["packed", { "id": 4, "name": "late" }]);
    let written = caller.call("write", params, json!({ "id": "late", "timeout": 60 }));
    assert_eq!(written["rows"], 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_with_a_token_is_told_whether_the_value_is_fresh() {
    let (rig, worker) = start().await;
    worker.stop().await;
    rig.postgres.execute("update t set name = 'new' where id = 5").await.unwrap();
    let token =
        rig.postgres.session().await.unwrap().text("select cachekeeper.token()").await.unwrap().unwrap();
    let options = |wait: f64| json!({ "token": token, "wait": wait });
    let mut callers = Caller::start_all(&rig.redis.url(), "test");
    for caller in &mut callers {
        let reading = caller.call("read", json!(["packed", 5]), options(0.0));
        assert_eq!((&reading["freshness"], &reading["state"]), (&json!("stale"), &json!("hit")), "{reading}");
        assert_eq!(reading["value"]["name"], "name 5 ünï");
        assert!(reading["behind_ms"].is_u64(), "{reading}");
        let parts = ["packed:5 may be older than the token", "has not reached"];
        caller.fails_with(("get", json!(["packed", 5]), options(0.2)), "NotFresh", &parts);
        // Not covered, and of another incarnation.
        let reading = caller.call("read_key", json!(["loose:5"]), options(0.0));
        assert_eq!(
            (&reading["freshness"], &reading["state"]),
            (&json!("unknown"), &json!("hit")),
            "{reading}"
        );
        let other = json!({ "token": format!("other/{}", token.split_once('/').unwrap().1) });
        assert_eq!(caller.call("read", json!(["packed", 5]), other)["freshness"], "unknown");
    }
    // They wait, and then a worker runs.
    for caller in &mut callers {
        caller.ask("read_many", json!(["packed", [5, 6, 999]]), options(90.0));
    }
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    for caller in &mut callers {
        let readings = caller.answer()["value"].clone();
        let told: Vec<_> =
            readings.as_array().unwrap().iter().map(|one| (&one["freshness"], &one["state"])).collect();
        let states = ["hit", "hit", "missing"].map(|state| json!(state));
        assert_eq!(told, states.iter().map(|state| (&readings[0]["freshness"], state)).collect::<Vec<_>>());
        assert_eq!(
            (&readings[0]["freshness"], &readings[0]["value"]["name"]),
            (&json!("fresh"), &json!("new"))
        );
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_said_in_words() {
    let (mut rig, worker) = start().await;
    let read = || ("get", json!(["packed", 7]), json!({}));
    for mut caller in Caller::start_all(&rig.redis.url(), "tset") {
        caller.fails_with(
            read(),
            "NotRegistered",
            &["tset", "ck:{tset:0}:directory", "127.0.0.1", "database number"],
        );
    }
    let elsewhere = rig.redis.url().replace("/0", "/3");
    for mut caller in Caller::start_all(&elsewhere, "test") {
        caller.fails_with(read(), "NotRegistered", &["ck:{test:0}:directory"]);
    }
    let wrong = rig.redis.url().replace("redis://", "redis://nobody:secret@");
    for mut caller in Caller::start_all(&wrong, "test") {
        let (kind, text) = caller.fails("get", json!(["packed", 7]), json!({}));
        assert!(kind == "PermissionDenied" && !text.contains("secret"), "{}: {kind}: {text}", caller.name);
    }
    // The server goes away under them, and comes back.
    let mut callers = Caller::start_all(&rig.redis.url(), "test");
    for caller in &mut callers {
        caller.call("get", json!(["packed", 7]), json!({}));
    }
    rig.redis.kill();
    let write = || ("write", json!(["packed", { "id": 4, "name": "x" }]), json!({ "id": "x", "timeout": 1 }));
    for caller in &mut callers {
        caller.fails_with(read(), "Unreachable", &["cannot be reached", "127.0.0.1"]);
        caller.fails_with(write(), "Unreachable", &["failed to hand over a write"]);
    }
    rig.redis.start_again().await.unwrap();
    filled(&worker).await;
    for caller in &mut callers {
        assert_eq!(caller.call("get", json!(["packed", 7]), json!({}))["id"], 7);
    }
    worker.stop().await;
}
