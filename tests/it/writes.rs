//! Write-through: by the library, and by commands on the stream.

use std::collections::BTreeMap;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper::supervisor::SupervisorMessage;
use cachekeeper_client::{Cache, CacheState, DatasetCache, Parameter, Parameters, WriteError};
use cachekeeper_engine::commands::{CommandConsumer, CommandError};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::{coverage, epoch};
use redis::AsyncCommands;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{Rig, wait_until};

pub const TABLES: &str = "
    create table categories (id int primary key, name text not null);
    create table products (id int primary key, name text not null, price_cents bigint not null check (0 <= price_cents),
        category_id int not null references categories, applied int not null default 0, history text not null default '');
    insert into categories select n, 'category ' || n from generate_series(1, 10) n;
    insert into products select n, 'product ' || n, n * 100, n % 10 + 1 from generate_series(1, 200) n";

pub const DATASETS: &str = r#"
[dataset.product]
query = "select p.id, p.name, p.price_cents, p.applied, p.history, c.name as category from products p join categories c on c.id = p.category_id"
key = "product:{id}"
tags = ["category:{category}"]
ttl = "1h"
format = "json"
watch = [{ table = "products", key = { id = "id" } }, { table = "categories", tag = "category:{name}" }]
[dataset.product.write]
statement = "update products set price_cents = :price_cents, applied = applied + 1, history = history || ',' || :price_cents::text where id = :id"

[dataset.category]
query = "select id, name from categories"
key = "category:{id}"
ttl = "1h"
format = "json"
watch = [{ table = "categories", key = { id = "id" } }]
[dataset.category.write]
statement = "update categories set name = :name where id = any(:ids)"
"#;

pub fn parameters(value: Value) -> Parameters {
    let Value::Object(fields) = value else { panic!("an object") };
    fields.into_iter().map(|(name, value)| (name, Parameter::Value(value))).collect()
}

pub async fn prepared(rig: &Rig, toml: &str) -> (Context, Cache, DatasetCache) {
    let context = rig.context(toml);
    epoch::ensure(&context, "").await.unwrap();
    context.set_coverage(coverage::look(&context, true).await.unwrap());
    let cache = Cache::over(context.clone()).build();
    let products = cache.dataset("product").unwrap();
    (context, cache, products)
}

#[tokio::test]
async fn row_9_a_write_reaches_postgres_first_and_redis_right_after() {
    let mut rig = Rig::start(TABLES).await;
    let (_context, cache, products) = prepared(&rig, DATASETS).await;
    let write = |price: i64| parameters(json!({ "id": 7, "price_cents": price }));
    let written = products.write(&write(1999)).await.unwrap();
    assert_eq!((written.rows, written.cache), (1, CacheState::Stored));
    let value: Value = products.written(&written, &["7"]).unwrap().unwrap();
    assert_eq!(value["price_cents"], 1999);
    let cached: Value = cache.get("product:7").await.unwrap().unwrap();
    assert_eq!(cached, value, "it is stored although nobody had read it");
    assert!(written.token.is_some());
    let fresh: Value = products.get_since(&["7"], &written.token.unwrap()).await.unwrap().unwrap();
    assert_eq!(fresh["price_cents"], 1999);

    // Refused: by a constraint, by a type, by the statement; Redis is as it was.
    for (wrong, part) in [
        (json!({ "id": 7, "price_cents": -1 }), "violates check constraint"),
        (json!({ "id": 7, "price_cents": "a lot" }), "invalid input syntax for type bigint"),
        (json!({ "id": 7 }), "price_cents: is missing; it is of type int8"),
        (json!({ "id": 7, "price_cents": 1, "colour": "red" }), "no such parameter; it has id, price_cents"),
        (json!({ "id": 7777, "price_cents": 1 }), "touched no row"),
        (json!({ "id": "7; drop table products", "price_cents": 1 }), "invalid input syntax"),
        (json!({ "id": [7], "price_cents": 1 }), "is a list"),
    ] {
        let refused = products.write(&parameters(wrong)).await.unwrap_err();
        assert!(refused.to_string().contains(part) && refused.is_final(), "{refused}");
        assert_eq!(cache.get::<Value>("product:7").await.unwrap().unwrap(), cached);
    }
    assert!(matches!(products.write(&write(1)).await, Ok(written) if written.rows == 1));

    // Redis down: durable all the same, and said so.
    rig.redis.kill();
    let written = products.write(&write(555)).await.unwrap();
    assert_eq!(written.cache, CacheState::Pending);
    let value: Value = products.written(&written, &["7"]).unwrap().unwrap();
    assert_eq!(value["price_cents"], 555);
    rig.postgres.kill();
    let down = products.write(&write(1)).await.unwrap_err();
    assert!(!down.is_final(), "{down}");
}

#[tokio::test]
async fn a_write_that_touches_many_entries_of_several_datasets_stores_them_all() {
    let rig = Rig::start(TABLES).await;
    let (_context, cache, products) = prepared(&rig, DATASETS).await;
    let categories = cache.dataset("category").unwrap();
    for id in ["2", "3", "12"] {
        products.get::<Value>(&[id]).await.unwrap();
    }
    // Products of a renamed category change with it: their rows are touched by the tag.
    let rename = parameters(json!({ "ids": [3, 4], "name": "new \"name\", {odd}" }));
    let written = categories.write(&rename).await.unwrap();
    assert_eq!(written.rows, 2);
    assert_eq!(written.values.len(), 2);
    for (key, name) in [("category:3", "new \"name\", {odd}"), ("category:4", "new \"name\", {odd}")] {
        assert_eq!(cache.get::<Value>(key).await.unwrap().unwrap()["name"], name);
    }
    for (key, category) in [
        ("product:2", "new \"name\", {odd}"),
        ("product:3", "new \"name\", {odd}"),
        ("product:12", "new \"name\", {odd}"),
    ] {
        assert_eq!(cache.get::<Value>(key).await.unwrap().unwrap()["category"], category, "{key}");
    }
    // Two statements in the caller's own transaction; rolled back, nothing is seen.
    let pool = sqlx::PgPool::connect(&rig.postgres.url()).await.unwrap();
    for commits in [false, true] {
        let mut transaction = pool.begin().await.unwrap();
        let mut touched = products
            .write_in(&mut transaction, &parameters(json!({ "id": 2, "price_cents": 42 })))
            .await
            .unwrap();
        let rename = parameters(json!({ "ids": [5], "name": "five" }));
        touched.add(categories.write_in(&mut transaction, &rename).await.unwrap());
        assert_ne!(cache.get::<Value>("product:2").await.unwrap().unwrap()["price_cents"], 42);
        if commits {
            transaction.commit().await.unwrap();
            let written = cache.settle(touched).await.unwrap();
            assert_eq!((written.rows, written.values.len()), (2, 2));
        } else {
            transaction.rollback().await.unwrap();
            assert!(cache.get::<Value>("category:5").await.unwrap().is_none());
        }
    }
    assert_eq!(cache.get::<Value>("product:2").await.unwrap().unwrap()["price_cents"], 42);
    assert_eq!(cache.get::<Value>("category:5").await.unwrap().unwrap()["name"], "five");
}

#[tokio::test]
async fn parameters_of_every_common_type_arrive_as_they_were() {
    let rig = Rig::start(
        "create type mood as enum ('good', 'bad'); create domain small as int check (value < 100);
         create table things (id int primary key, n numeric, t text, b bool, u uuid, at timestamptz, j jsonb, list int[], words text[], raw bytea, m mood, s small, f float8)",
    )
    .await;
    let toml = r#"
[dataset.product]
query = "select * from things"
key = "thing:{id}"
format = "json"
ttl = "1h"
[dataset.product.write]
statement = """insert into things values (:id, :n, :t, :b, :u, :at, :j, :list, :words, :raw, :m, :s, :f) -- not :this
  on conflict (id) do update set t = ':no' || excluded.t"""
"#;
    // Nothing watches the table: the key comes from the parameters.
    let (_context, cache, things) = prepared(&rig, toml).await;
    let uuid = "6fa459ea-ee8a-3ca4-894e-db77e160355e";
    let mut given = parameters(json!({
        "id": 1, "n": 12.50, "t": "it's; drop", "b": true, "u": uuid, "at": "2026-11-24T10:00:00+02:00",
        "j": { "a": ["x", null] }, "list": [1, null, 3], "words": ["a,b", "c\"d", "\\e", "NULL"], "m": "bad", "s": 99, "f": 0.1
    }));
    given.insert("raw".to_owned(), Parameter::Bytes(vec![0, 255]));
    let written = things.write(&given).await.unwrap();
    let value: Value = things.written(&written, &["1"]).unwrap().unwrap();
    let expected = json!({
        "id": 1, "n": "12.5", "t": "it's; drop", "b": true, "u": uuid, "at": "2026-11-24T08:00:00+00:00",
        "j": { "a": ["x", null] }, "list": [1, null, 3], "words": ["a,b", "c\"d", "\\e", "NULL"], "raw": "\\x00ff", "m": "bad", "s": 99, "f": 0.1
    });
    for (name, value) in value.as_object().unwrap() {
        let is_time =
            name == "at" && value.as_str().is_some_and(|text| text.starts_with("2026-11-24T08:00:00"));
        assert!(is_time || *value == expected[name], "{name}: {value}");
    }
    let nulls: Parameters = given.keys().map(|name| (name.clone(), Parameter::Value(Value::Null))).collect();
    let mut again = nulls;
    again.insert("id".to_owned(), Parameter::Text("1".to_owned()));
    again.insert("t".to_owned(), "b".into());
    things.write(&again).await.unwrap();
    assert_eq!(cache.get::<Value>("thing:1").await.unwrap().unwrap()["t"], ":nob");
    given.insert("s".to_owned(), 100.into());
    assert!(matches!(things.write(&given).await, Err(WriteError::Refused(_))));
}

#[tokio::test]
async fn a_caller_dropped_at_any_point_leaves_both_stores_in_agreement() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    let (_context, cache, products) = prepared(&rig, DATASETS).await;
    let mut completed = false;
    for polls in 0..200 {
        let given = parameters(json!({ "id": 5, "price_cents": polls }));
        let mut writing = Box::pin(products.write(&given));
        for _ in 0..polls {
            if futures_util::poll!(writing.as_mut()).is_ready() {
                completed = true;
                break;
            }
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        drop(writing);
        if completed {
            break;
        }
    }
    assert!(completed);
    wait_until("redis agrees with postgres", async || {
        let mut session = rig.postgres.session().await.unwrap();
        let source = session.text("select price_cents::text from products where id = 5").await.unwrap();
        let cached: Option<Value> = cache.get("product:5").await.unwrap();
        let cached = cached.map(|value| value["price_cents"].to_string());
        if cached == source { Ok(()) } else { Err(format!("{cached:?}, {source:?}")) }
    })
    .await;
    worker.stop().await;
}

fn command(id: &str, product: i64, price: i64) -> Vec<(&'static str, String)> {
    let params = json!({ "id": product, "price_cents": price }).to_string();
    vec![
        ("dataset", "product".to_owned()),
        ("id", id.to_owned()),
        ("params", params),
        ("reply", "cache:reply:t".to_owned()),
    ]
}

async fn send(rig: &Rig, fields: &[(&str, String)]) -> String {
    let fields: Vec<(&str, &[u8])> = fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    rig.context("").redis.append("cache:writes", &fields).await.unwrap()
}

/// Leads, as the actor does.
fn lead(context: &Context) -> JoinHandle<Box<CommandError>> {
    let context = context.clone();
    tokio::spawn(async move { CommandConsumer::lead(&context, "cache:writes", || ()).await })
}

async fn all_done(context: &Context) {
    wait_until("the stream is empty", async || {
        let state = context.redis.stream_state("cache:writes", "cachekeeper:test").await.unwrap();
        if state.length == 0 && state.pending == 0 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
}

async fn replies(rig: &Rig) -> BTreeMap<String, Value> {
    let mut client = rig.client().await;
    let list: Vec<String> = client.lrange("cache:reply:t", 0, -1).await.unwrap();
    let parsed = list.iter().map(|text| serde_json::from_str::<Value>(text).unwrap());
    parsed.map(|reply| (reply["id"].as_str().unwrap_or("").to_owned(), reply)).collect()
}

#[tokio::test]
async fn commands_of_the_stream_are_carried_out_once_and_rejected_ones_do_not_block_others() {
    let rig = Rig::start(TABLES).await;
    let (context, cache, _) = prepared(&rig, DATASETS).await;
    for n in 0..100 {
        send(&rig, &command(&format!("c{n}"), n + 1, n * 10)).await;
    }
    // Poison among them.
    send(&rig, &command("refused", 3, -5)).await;
    send(&rig, &command("nobody", 9999, 5)).await;
    send(
        &rig,
        &[
            ("dataset", "nothing".into()),
            ("id", "unknown".into()),
            ("params", "{}".into()),
            ("reply", "cache:reply:t".into()),
        ],
    )
    .await;
    send(&rig, &[("id", "empty".into()), ("reply", "cache:reply:t".into())]).await;
    send(
        &rig,
        &[
            ("dataset", "product".into()),
            ("id", "broken".into()),
            ("params", "{".into()),
            ("reply", "cache:reply:t".into()),
        ],
    )
    .await;
    send(&rig, &command("c5", 6, 50)).await; // again, the same
    send(&rig, &command("c6", 6, 51)).await; // the same id, other contents
    send(&rig, &command("last", 6, 77)).await;
    let packed = rmp_serde::to_vec_named(&json!({ "id": 150, "price_cents": 15 })).unwrap();
    context.redis.append("cache:writes", &[("dataset", b"product"), ("params", &packed)]).await.unwrap();
    let leader = lead(&context);
    all_done(&context).await;
    leader.abort();
    let replies = replies(&rig).await;
    assert_eq!(replies["c7"]["ok"], true);
    assert_eq!((&replies["c7"]["rows"], &replies["c7"]["cache"]), (&json!(1), &json!("stored")));
    assert!(replies["c7"]["token"].is_string());
    for (id, part) in [
        ("refused", "check constraint"),
        ("nobody", "no row"),
        ("unknown", "no dataset"),
        ("empty", "`dataset` is missing"),
        ("broken", "not a JSON object"),
        ("c6", "used before"),
    ] {
        let error = replies[id]["error"].as_str().unwrap_or_else(|| panic!("{id}: {}", replies[id]));
        assert!(error.contains(part), "{id}: {error}");
    }
    let mut session = rig.postgres.session().await.unwrap();
    let once =
        session.text("select count(*)::text from products where id <= 100 and id <> 6 and applied = 1").await;
    assert_eq!(once.unwrap().as_deref(), Some("99"));
    let six = session.text("select history from products where id = 6").await.unwrap();
    assert_eq!(six.as_deref(), Some(",50,77"), "in order, and the repeated one not again");
    assert_eq!(cache.get::<Value>("product:6").await.unwrap().unwrap()["price_cents"], 77);
    assert_eq!(cache.get::<Value>("product:150").await.unwrap().unwrap()["price_cents"], 15);
    let dead = context.redis.dead_letters("cache:writes", 100).await.unwrap();
    assert_eq!(dead.len(), 6);
    let mut client = rig.client().await;
    assert!(0 < client.ttl::<_, i64>("cache:reply:t").await.unwrap());
}

#[tokio::test]
async fn a_leader_that_was_replaced_commits_nothing_and_takes_nothing() {
    let rig = Rig::start(TABLES).await;
    let (context, _, _) = prepared(&rig, DATASETS).await;
    let older = lead(&context);
    send(&rig, &command("zero", 1, 10)).await;
    all_done(&context).await;
    let newer = lead(&context);
    wait_until("the newer one leads", async || {
        let token =
            rig.postgres.session().await.unwrap().text("select token::text from cachekeeper.writer").await;
        if token.unwrap().as_deref() == Some("2") { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    send(&rig, &command("one", 1, 11)).await;
    let replaced = older.await.unwrap();
    assert!(matches!(*replaced, CommandError::NotLeader), "{replaced}");
    all_done(&context).await;
    assert_eq!(replies(&rig).await["one"]["ok"], true);
    newer.abort();
}

#[tokio::test]
async fn two_workers_with_their_writers_killed_apply_every_command_once_and_in_order() {
    const ROUNDS: i64 = 40;
    let rig = Rig::start(TABLES).await;
    let workers = [
        Worker::start(rig.config(DATASETS)).await.unwrap(),
        Worker::start(rig.config(DATASETS)).await.unwrap(),
    ];
    for round in 1..=ROUNDS {
        for product in 1..=20 {
            send(&rig, &command(&format!("{product}/{round}"), product, round)).await;
        }
        if round % 5 == 0 {
            let worker = &workers[usize::try_from(round / 5 % 2).unwrap()];
            worker.supervisor().cast(SupervisorMessage::Kill("command_processor")).unwrap();
        }
    }
    let history: String = (1..=ROUNDS).map(|round| format!(",{round}")).collect();
    let mut session = rig.postgres.session().await.unwrap();
    let sql = format!(
        "select count(*)::text from products where id <= 20 and history = '{history}' and applied = {ROUNDS}"
    );
    wait_until("all is applied", async || {
        let mut session = rig.postgres.session().await.unwrap();
        let done = session.text(&sql).await.unwrap();
        let state = rig.context("").redis.stream_state("cache:writes", "cachekeeper:test").await.unwrap();
        if done.as_deref() == Some("20") && state.length == 0 {
            Ok(())
        } else {
            Err(format!("{done:?} {state:?}"))
        }
    })
    .await;
    let records =
        session.text("select count(*)::text from cachekeeper.applied where error is null").await.unwrap();
    assert_eq!(records, Some((ROUNDS * 20).to_string()));
    let cache = Cache::open(&rig.config(DATASETS)).unwrap().build();
    for product in 1..=20 {
        let cached: Value = cache.get(&format!("product:{product}")).await.unwrap().unwrap();
        assert_eq!(cached["price_cents"], ROUNDS);
    }
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn commands_wait_for_postgres_and_a_flushed_redis_begins_anew() {
    let mut rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    send(&rig, &command("before", 1, 1)).await;
    wait_until("the first is done", async || {
        replies(&rig).await.contains_key("before").then_some(()).ok_or_else(|| "waiting".to_owned())
    })
    .await;
    rig.postgres.kill();
    send(&rig, &command("meanwhile", 1, 2)).await;
    rig.postgres.start_again().await.unwrap();
    wait_until("the second is done", async || {
        replies(&rig).await.contains_key("meanwhile").then_some(()).ok_or_else(|| "waiting".to_owned())
    })
    .await;
    let mut client = rig.client().await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut client).await.unwrap();
    send(&rig, &command("after", 1, 3)).await;
    wait_until("the third is done", async || {
        replies(&rig).await.contains_key("after").then_some(()).ok_or_else(|| "waiting".to_owned())
    })
    .await;
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 1").await.unwrap();
    assert_eq!(history.as_deref(), Some(",1,2,3"));
    worker.stop().await;
}

/// The outbox is used by a role that may both read and fill it. Another one writes without it.
#[tokio::test]
async fn a_role_with_a_part_of_the_rights_on_the_outbox_writes_all_the_same() {
    let rig = Rig::start(TABLES).await;
    let looks = "grant usage on schema cachekeeper to looks;
        grant select on all tables in schema cachekeeper to looks";
    let counts_not = "grant usage on schema cachekeeper to counts_not;
        grant select, insert on all tables in schema cachekeeper to counts_not";
    for (role, rights) in [("looks", looks), ("counts_not", counts_not), ("stranger", "select 1")] {
        let sql = format!("create role {role} login; grant select, update on products to {role}; {rights}");
        rig.postgres.execute(&sql).await.unwrap();
        let mut config = rig.config(DATASETS);
        let url = rig.postgres.url().replace("postgres@", &format!("{role}@"));
        config.postgres.url = cachekeeper_config::Secret::new(url);
        let cache = Cache::over(Context::new(&config).unwrap()).build();
        let products = cache.dataset("product").unwrap();
        let given = parameters(json!({ "id": 7, "price_cents": 1999 }));
        let written = products.write(&given).await.unwrap_or_else(|error| panic!("{role}: {error}"));
        assert_eq!(written.rows, 1, "{role}");
    }
    let mut session = rig.postgres.session().await.unwrap();
    let history = session.text("select history from products where id = 7").await.unwrap();
    assert_eq!(history.as_deref(), Some(",1999,1999,1999"));
}
