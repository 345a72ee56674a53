//! Datasets whose entries are hashes (`format = "hash"`): what stands in Redis, and that nothing else about an entry is another.

use std::collections::BTreeMap;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::{Cache, ClientError, Near};
use cachekeeper_engine::audit::{self, Comparison, Extent, compare};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::refresh::fill_missed;
use cachekeeper_engine::stores::redis::{Answer, StoreMode};
use cachekeeper_engine::tokens;
use cachekeeper_engine::{epoch, invalidate};
use cachekeeper_protocol::entry::{EntryBatch, Shape};
use cachekeeper_protocol::event::Op;
use cachekeeper_protocol::fields;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::feed::ready;
use crate::support::{Cli, Rig, wait_until};
use crate::writes::parameters;

const TABLES: &str = "
    create table products (id int primary key, name text, price numeric(10, 2), is_new bool, category int);
    insert into products select n, 'name ' || n, n + 0.5, n % 2 = 0, n % 3 from generate_series(1, 20) n;";

const PRODUCT: &str = r#"
    [dataset.product]
    query = "select id, name, price, is_new, category from products"
    key = "product:{id}"
    tags = ["category:{category}"]
    format = "hash"
    ttl = "1000s"
    watch = [{ table = "products", key = { id = "id" } }]
    warm = {}
    on_miss = "load"
    [dataset.product.write]
    statement = "update products set name = :name where id = :id"
"#;

type Fields = BTreeMap<String, String>;

fn fields_of(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn product(id: u32, name: &str) -> Fields {
    let (price, is_new, category) =
        (format!("{id}.50"), id.is_multiple_of(2).to_string(), (id % 3).to_string());
    let id = id.to_string();
    fields_of(&[("id", &id), ("name", name), ("price", &price), ("is_new", &is_new), ("category", &category)])
}

/// As any client reads it.
async fn hash(client: &MultiplexedConnection, key: &str) -> Fields {
    client.clone().hgetall(key).await.unwrap()
}

async fn wait_for(client: &MultiplexedConnection, key: &str, wanted: Fields) {
    wait_until(&format!("{key} is {wanted:?}"), async || {
        let found: Fields = client.clone().hgetall(key).await.map_err(|error| error.to_string())?;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

fn options() -> BackfillOptions {
    BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: true }
}

async fn audited(context: &Context, name: &str) -> Comparison {
    compare(context, context.catalog.get(name).unwrap(), &Extent::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_stores_an_entry_stores_a_hash_of_the_row() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(PRODUCT)).await.unwrap();
    ready(&worker).await;
    let (client, context) = (rig.client().await, &worker.context);
    // A backfill.
    assert_eq!(hash(&client, "product:7").await, product(7, "name 7"));
    let price: String = client.clone().hget("product:7", "price").await.unwrap();
    assert_eq!(price, "7.50");
    let left: i64 = client.clone().pttl("product:7").await.unwrap();
    assert!((900_000..=1_000_000).contains(&left), "{left}");
    // A change; a column that becomes null has no field any more.
    rig.postgres.execute("update products set name = 'new', price = null where id = 7").await.unwrap();
    let mut changed = product(7, "new");
    changed.remove("price");
    wait_for(&client, "product:7", changed).await;
    rig.postgres.execute("delete from products where id = 8").await.unwrap();
    wait_for(&client, "product:8", Fields::new()).await;
    assert!(!client.clone().exists::<_, bool>("product:8").await.unwrap());
    rig.postgres.execute("insert into products values (21, 'name 21', 21.5, false, 0)").await.unwrap();
    wait_for(&client, "product:21", product(21, "name 21")).await;
    // A write.
    let cache = Cache::over(context.clone()).build();
    let products = cache.dataset("product").unwrap();
    let written = parameters(json!({ "id": 9, "name": "written" }));
    products.write(&written).await.unwrap();
    assert_eq!(hash(&client, "product:9").await, product(9, "written"));
    // What expires is loaded again ahead of that, by an event, for whoever misses it, and by the library.
    let renewed = async |what: &str| {
        let left: i64 = client.clone().pttl("product:10").await.unwrap();
        assert!((900_000..=1_000_000).contains(&left), "{what}: {left}");
        assert_eq!(hash(&client, "product:10").await, product(10, "name 10"), "{what}");
        let _: () = client.clone().del("product:10").await.unwrap();
    };
    renewed("a backfill").await;
    invalidate::keys(context, &["product:10".to_owned()], Some(Op::Refresh)).await.unwrap();
    renewed("an event").await;
    let _: () = client.clone().hset("product:10", "name", "mine").await.unwrap();
    invalidate::tags(context, &["category:1".to_owned()], Some(Op::Refresh)).await.unwrap();
    renewed("a tag's event").await;
    let missed = fill_missed(context, vec!["product:10".to_owned()]).await;
    assert_eq!(missed[0].filled.as_ref().ok(), Some(&1));
    renewed("a miss").await;
    assert_eq!(products.get::<Fields>(&["10"]).await.unwrap(), Some(product(10, "name 10")));
    renewed("the library").await;
    backfill(context, context.catalog.get("product").unwrap(), &options()).await.unwrap();
    renewed("a backfill of the same rows").await;
    // By tag.
    rig.postgres.execute("update products set category = 5 where id = 11").await.unwrap();
    let mut moved = product(11, "name 11");
    moved.insert("category".to_owned(), "5".to_owned());
    wait_for(&client, "product:11", moved).await;
    products.get::<Fields>(&["10"]).await.unwrap();
    let found = audited(context, "product").await;
    assert!(found.is_clean(), "{found}");
    assert!(worker.stop().await);
}

/// What was loaded before a change does not come back over it, nor does a part of it.
#[tokio::test]
async fn a_stalled_load_never_brings_an_old_hash_or_a_field_of_it_back() {
    let rig = Rig::start(TABLES).await;
    let context = rig.context(PRODUCT);
    let dataset = context.catalog.get("product").unwrap();
    backfill(&context, dataset, &options()).await.unwrap();
    let source = dataset.source(&context.postgres).await.unwrap();
    let stalled =
        context.postgres.load(&source, &[vec!["1".to_owned()], vec!["2".to_owned()]]).await.unwrap();
    rig.postgres
        .execute("update products set name = 'new' where id = 1; delete from products where id = 2")
        .await
        .unwrap();
    invalidate::keys(&context, &["product:1".to_owned(), "product:2".to_owned()], None).await.unwrap();
    let epoch = context.epoch().unwrap();
    let standing = dataset.precondition(&epoch, &stalled.poll.incarnation);
    let life = dataset.lifetimes.longest();
    let mut batch = EntryBatch::default();
    batch.store_as(Shape::Hash);
    let old = fields::encode([(&b"name"[..], &b"old"[..]), (b"other", b"x")].into_iter());
    batch.push("product:1", &old, 60_000);
    batch.push("product:2", &old, 60_000);
    let store = async |stamp, batch: &EntryBatch| {
        context.redis.store(&standing, stamp, batch, life, StoreMode::Slots).await
    };
    assert_eq!(store(stalled.poll.snapshot.stamp(), &batch).await.unwrap(), Answer::Done(vec![0, 1]));
    let client = rig.client().await;
    assert_eq!(hash(&client, "product:1").await, product(1, "new"));
    assert_eq!(hash(&client, "product:2").await, Fields::new());
    // The control: as new as it must be, it is stored, and nothing of the row before is left.
    let now = epoch::poll(&context).await.unwrap();
    assert_eq!(store(now.snapshot.stamp(), &batch).await.unwrap(), Answer::Done(Vec::new()));
    assert_eq!(hash(&client, "product:1").await, fields_of(&[("name", "old"), ("other", "x")]));

    // What cannot be read as fields is found before anything is written, also behind what can.
    let stamps = |slot_of: &'static str| {
        let client = client.clone();
        async move { client.clone().get::<_, Vec<u8>>(slot_of).await.unwrap() }
    };
    let newer = cachekeeper_protocol::stamp::Stamp::new(1 << 40, 0).unwrap();
    let before = (hash(&client, "product:3").await, stamps("ck:{test:0}:stamps").await);
    for broken in [&b"\x92\xa1a"[..], b"\x90", b"\x91\xa1a", b"\xc0", b"", b"text"] {
        let mut batch = EntryBatch::default();
        batch.store_as(Shape::Hash);
        batch.push("product:3", &old, 60_000);
        batch.push("product:4", broken, 60_000);
        assert!(store(newer, &batch).await.is_err(), "{broken:?}");
        assert_eq!(
            (hash(&client, "product:3").await, stamps("ck:{test:0}:stamps").await),
            before,
            "{broken:?}"
        );
    }
}

/// Whatever stands under a key is replaced as a whole; tags and stamps stay right.
#[tokio::test(flavor = "multi_thread")]
async fn a_dataset_changes_its_format_and_back_and_what_others_put_there_is_replaced() {
    let rig = Rig::start(TABLES).await;
    let strings = PRODUCT.replace("\"hash\"", "\"json\"");
    let mut client = rig.client().await;
    let kinds = async || {
        let mut kinds = BTreeMap::<String, usize>::new();
        for id in 1..=20 {
            let kind: String = redis::cmd("TYPE")
                .arg(format!("product:{id}"))
                .query_async(&mut client.clone())
                .await
                .unwrap();
            *kinds.entry(kind).or_default() += 1;
        }
        kinds
    };
    for (round, toml) in [&strings, PRODUCT, &strings, PRODUCT].into_iter().enumerate() {
        let kind = if toml.contains("\"hash\"") { "hash" } else { "string" };
        let worker = Worker::start(rig.config(toml)).await.unwrap();
        wait_until("all have the new form", async || {
            let found = kinds().await;
            if found == BTreeMap::from([(kind.to_owned(), 20)]) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        ready(&worker).await;
        let found = audited(&worker.context, "product").await;
        assert!(found.is_clean() && found.checked == 20, "{found}");
        // By its tag, which the other format has registered too.
        let name = format!("round {round}");
        rig.postgres.execute(&format!("update products set name = '{name}' where id = 4")).await.unwrap();
        let report =
            invalidate::tags(&worker.context, &["category:1".to_owned()], Some(Op::Refresh)).await.unwrap();
        assert_eq!(report.stored, 7, "{report:?}");
        let cache = Cache::over(worker.context.clone()).build();
        let read: BTreeMap<String, serde_json::Value> =
            cache.dataset("product").unwrap().get(&["4"]).await.unwrap().unwrap();
        assert_eq!(read["name"], name);
        assert!(worker.stop().await);
    }

    // Somebody's string and list: readers miss them, a store replaces them, an audit finds them.
    let worker = Worker::start(rig.config(PRODUCT)).await.unwrap();
    ready(&worker).await;
    let context = &worker.context;
    let dataset = context.catalog.get("product").unwrap();
    let cache = Cache::over(context.clone()).build();
    let _: () = client.set_ex("product:5", "a string", 1_000).await.unwrap();
    let _: () = client.del("product:6").await.unwrap();
    let _: () = client.rpush("product:6", "a list").await.unwrap();
    let _: () = client.del("product:7").await.unwrap();
    let many: Vec<(String, u32)> = (0..2_000).map(|n| (format!("f{n}"), n)).collect();
    let _: () = client.hset_multiple("product:7", &many).await.unwrap();
    assert_eq!(cache.get::<Fields>("product:5").await.unwrap(), None);
    let keys = ["product:4", "product:5", "product:6", "product:999"];
    let read = cache.get_many::<Fields>(&keys).await.unwrap();
    assert_eq!((read[0].is_some(), &read[1..]), (true, &[None, None, None][..]));
    let found = audited(context, "product").await;
    let mut wrong = [found.undecodable.clone(), found.stale.clone()].concat();
    wrong.sort();
    assert_eq!(wrong, ["product:5", "product:6", "product:7"], "{found}");
    let cli = Cli::new(&rig, PRODUCT);
    cli.says(&["explain", "product:6"], 1, &["list"]);
    cli.says(&["get", "product:5"], 1, &["a string is no entry"]);
    cli.says(&["get", "product:7"], 1, &["a hash of 2000 fields is no entry"]);
    assert_eq!(audit::fix(context, dataset, &found).await.unwrap(), 3);
    for id in 5..=7 {
        assert_eq!(hash(&client, &format!("product:{id}")).await, product(id, &format!("name {id}")));
    }
    assert!(audited(context, "product").await.is_clean());
    // A string that stands there when somebody asks for the row.
    let _: () = client.set("product:5", "a string").await.unwrap();
    let row: Option<Fields> = cache.dataset("product").unwrap().get(&["5"]).await.unwrap();
    assert_eq!(row, Some(product(5, "name 5")));
    assert_eq!(hash(&client, "product:5").await, product(5, "name 5"));
    assert!(worker.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_is_kept_as_it_is() {
    let columns: Vec<String> = (1..=1_598).map(|n| format!("c{n} text default 'x'")).collect();
    let rig = Rig::start(&format!(
        "create table wide (id int primary key, last text, {});
         insert into wide (id) values (1);
         create type size as (width int, price numeric);
         create type mood as enum ('happy', 'sad');
         create table odd (id int primary key, \"a \"\"b\"\" 'c'\" text, \"ü\" text, raw bytea, empty text, doc jsonb, list int[],
            prices numeric[], size size, mood mood, at timestamptz, span interval, range int4range, ranges int4range[], real real,
            big text, uid uuid, flag bool);
         insert into odd values (1, 'quotes', 'ünï ☃', (select string_agg(decode(lpad(to_hex(n), 2, '0'), 'hex'), '') from
            generate_series(0, 255) n), '', '{{\"a\": [1, null]}}', '{{1,null,2}}', '{{1.50}}', '(3,1.50)', 'sad',
            '2026-11-24 12:00:00+00', '1 day', '[1,5)', '{{\"[1,5)\"}}', 0.1, repeat('x', 3 << 20),
            '00000000-0000-0000-0000-000000000001', true);
         insert into odd (id, big) values (2, repeat('y', 5 << 20));
         insert into odd (id, empty) values (3, '')",
        columns.join(", ")
    ))
    .await;
    let toml = r#"
        [dataset.wide]
        query = "select * from wide"
        key = "wide:{id}"
        format = "hash"
        watch = [{ table = "wide", key = { id = "id" } }]
        warm = {}
        [dataset.odd]
        query = "select * from odd"
        key = "odd:{id}"
        format = "hash"
        max_value_size = "4MiB"
        watch = [{ table = "odd", key = { id = "id" } }]
        warm = {}
        [dataset.whole]
        query = "select 'x' as one, max(id) filter (where id < 0) as lowest, null::text as nothing from odd where id = 3"
        key = "whole:{one}"
        format = "hash"
        warm = {}
    "#;
    let worker = Worker::start(rig.config(toml)).await.unwrap();
    wait_until("all are stored", async || {
        let stored =
            rig.client().await.exists::<_, u32>(&["wide:1", "odd:1", "odd:3", "whole:x"]).await.unwrap();
        if stored == 4 { Ok(()) } else { Err(stored.to_string()) }
    })
    .await;
    let client = rig.client().await;
    let wide = hash(&client, "wide:1").await;
    assert_eq!((wide.len(), wide["c1598"].as_str(), wide.get("last")), (1_599, "x", None));
    assert_eq!(hash(&client, "whole:x").await, fields_of(&[("one", "x")]));
    let mut odd: BTreeMap<String, Vec<u8>> = client.clone().hgetall("odd:1").await.unwrap();
    assert_eq!(odd.remove("raw").unwrap(), (0..=255).collect::<Vec<u8>>());
    assert_eq!(odd.remove("big").unwrap().len(), 3 << 20);
    let odd: Fields =
        odd.into_iter().map(|(name, value)| (name, String::from_utf8(value).unwrap())).collect();
    let expected = fields_of(&[
        ("id", "1"),
        ("a \"b\" 'c'", "quotes"),
        ("ü", "ünï ☃"),
        ("empty", ""),
        ("doc", "{\"a\": [1, null]}"),
        ("list", "[1,null,2]"),
        ("prices", "[\"1.50\"]"),
        ("size", "{\"width\":3,\"price\":\"1.50\"}"),
        ("mood", "sad"),
        ("at", "2026-11-24 12:00:00+00"),
        ("span", "P1D"),
        ("range", "[1,5)"),
        ("ranges", "[\"[1,5)\"]"),
        ("real", "0.1"),
        ("uid", "00000000-0000-0000-0000-000000000001"),
        ("flag", "true"),
    ]);
    assert_eq!(odd, expected);
    assert_eq!(hash(&client, "odd:3").await, fields_of(&[("id", "3"), ("empty", "")]));
    assert!(!client.clone().exists::<_, bool>("odd:2").await.unwrap());
    let refused = worker.context.history.as_ref().unwrap().refused_rows("odd");
    assert!(refused.rows[0].reason.contains("max_value_size is 4194304"), "{:?}", refused.rows);
    for name in ["wide", "odd"] {
        let found = audited(&worker.context, name).await;
        assert!(found.stale.is_empty() && found.undecodable.is_empty() && 0 < found.right, "{found}");
    }
    assert!(worker.stop().await);
}

/// The text is the same as `raw` has it, type by type.
#[tokio::test]
async fn a_field_is_what_raw_would_store() {
    let columns = [
        "1::int2",
        "1::int8",
        "1.5::float4",
        "'NaN'::float8",
        "1.50::numeric",
        "'t'::text",
        "'c'::char(3)",
        "'x'::\"char\"",
        "'\\x00ff'::bytea",
        "'[1]'::json",
        "'[1]'::jsonb",
        "'2026-01-02'::date",
        "'01:02'::time",
        "'01:02+00'::timetz",
        "'2026-01-02 03:04'::timestamp",
        "'2026-01-02 03:04+00'::timestamptz",
        "'1 h'::interval",
        "'10.0.0.1/8'::inet",
        "'10.0.0.0/8'::cidr",
        "'08:00:2b:01:02:03'::macaddr",
        "b'101'",
        "false",
        "'(1,2)'::point",
        "'[1,2)'::int4range",
        "'a'::name",
        "5::oid",
    ];
    let rig = Rig::start("select 1").await;
    let toml = (0..columns.len()).map(|at| {
        let raw = format!("[dataset.raw{at}]\nkey = \"raw{at}:{{id}}\"\nformat = \"raw\"\nvalue = \"v\"\n");
        let of_hash = format!("[dataset.hash{at}]\nkey = \"hash{at}:{{id}}\"\nformat = \"hash\"\n");
        let query =
            format!("query = \"\"\"select 1 as id, {} as v\"\"\"\n", columns[at].replace('\\', "\\\\"));
        [raw, query.clone(), of_hash, query].concat()
    });
    let context = rig.context(&toml.collect::<String>());
    epoch::ensure(&context, "").await.unwrap();
    let mut client = rig.client().await;
    for (at, column) in columns.iter().enumerate() {
        for name in [format!("raw{at}"), format!("hash{at}")] {
            backfill(&context, context.catalog.get(&name).unwrap(), &options()).await.unwrap();
        }
        let raw: Option<Vec<u8>> = client.get(format!("raw{at}:1")).await.unwrap();
        let field: Option<Vec<u8>> = client.hget(format!("hash{at}:1"), "v").await.unwrap();
        assert!(raw.is_some() && raw == field, "{column}: {raw:?} {field:?}");
    }
}

/// Somebody changes a field.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_field_is_found_shown_and_mended() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(PRODUCT)).await.unwrap();
    ready(&worker).await;
    let (cli, mut client) = (Cli::new(&rig, PRODUCT), rig.client().await);
    let _: () = client.hset("product:5", "name", "mine").await.unwrap();
    let _: () = client.hset("product:6", "more", "mine").await.unwrap();
    let _: () = client.hdel("product:7", "price").await.unwrap();
    let shown = cli.json(&["get", "product:5"]);
    assert_eq!(shown["value"], serde_json::to_value(product(5, "mine")).unwrap(), "{shown}");
    assert_eq!(shown["dataset"], "product");
    let explained = cli.json(&["explain", "product:5"]);
    assert_eq!(explained["entry"]["kind"], "hash");
    assert_eq!(explained["entry"]["value"]["name"], "mine");
    assert_eq!(explained["row"]["value"]["name"], "name 5");
    let differences = json!([{ "column": "name", "redis": "mine", "postgres": "name 5" }]);
    assert_eq!(explained["differences"], differences, "{explained}");
    assert_eq!(explained["verdict"]["state"], "wrong", "{explained}");
    let explained = cli.json(&["explain", "product:9"]);
    assert_eq!(explained["verdict"]["state"], "right", "{explained}");
    let found = audited(&worker.context, "product").await;
    let mut stale = found.stale.clone();
    stale.sort();
    assert_eq!(stale, ["product:5", "product:6", "product:7"], "{found}");
    cli.run(&["audit", "product", "--fix"]);
    for id in 5..=7 {
        assert_eq!(hash(&client, &format!("product:{id}")).await, product(id, &format!("name {id}")));
    }
    assert!(audited(&worker.context, "product").await.is_clean());
    cli.says(&["plan", "product"], 0, &["HSET product:"]);
    assert!(worker.stop().await);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Product {
    id: u32,
    name: String,
    price: Option<f64>,
    is_new: bool,
}

fn typed(id: u32, name: &str) -> Product {
    Product { id, name: name.to_owned(), price: Some(f64::from(id) + 0.5), is_new: id.is_multiple_of(2) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_library_reads_typed_values_however_it_is_asked() {
    let rig = Rig::start(TABLES).await;
    let both = format!(
        "{PRODUCT}[dataset.name]\nquery = \"select id, name from products\"\nkey = \"name:{{id}}\"\nwarm = {{}}\n\
         watch = [{{ table = \"products\", key = {{ id = \"id\" }} }}]\n"
    );
    let worker = Worker::start(rig.config(&both)).await.unwrap();
    ready(&worker).await;
    let cache = Cache::over(worker.context.clone()).build();
    let products = cache.dataset("product").unwrap();
    assert_eq!(products.get(&["5"]).await.unwrap(), Some(typed(5, "name 5")));
    assert_eq!(products.get::<Product>(&["999"]).await.unwrap(), None);
    let many = products.get_many::<Product>(&[&["5"], &["999"], &["6"]]).await.unwrap();
    let many: Vec<Option<Product>> = many.into_iter().map(Result::unwrap).collect();
    assert_eq!(many, [Some(typed(5, "name 5")), None, Some(typed(6, "name 6"))]);
    // Of any datasets together, and of none.
    cache.set("own", &1, Duration::from_secs(60)).await.unwrap();
    let keys = ["name:1", "product:2", "product:999", "own:none", "product:3", "name:4"];
    let mixed = cache.get_many::<serde_json::Value>(&keys).await.unwrap();
    let name = |value: &Option<serde_json::Value>| value.as_ref().map(|value| value["name"].clone());
    let expected = [Some("name 1"), Some("name 2"), None, None, Some("name 3"), Some("name 4")];
    assert_eq!(mixed.iter().map(name).collect::<Vec<_>>(), expected.map(|name| name.map(Into::into)));
    let mut batch = cache.batch();
    let (one, two) = (batch.get::<Product>("product:5").unwrap(), batch.get::<u32>("own").unwrap());
    let none = batch.get::<Product>("product:999").unwrap();
    let results = batch.run().await.unwrap();
    assert_eq!(results.value(&one).unwrap(), Some(typed(5, "name 5")));
    assert_eq!((results.value(&two).unwrap(), results.value(&none).unwrap()), (Some(1), None));
    // Among writes, whose errors are told: here the counters, without which an older fill would not be refused.
    let mut client = rig.client().await;
    let _: () = client.rpush("product:2000", "a list").await.unwrap();
    let both = async |key: &str| {
        let mut batch = cache.batch();
        let read = batch.get::<Product>(key).unwrap();
        batch.set("own", &2, Duration::from_secs(60)).unwrap();
        batch.run().await.map(|results| results.value(&read).unwrap())
    };
    assert_eq!(both("product:5").await.unwrap(), Some(typed(5, "name 5")));
    assert_eq!(both("product:2000").await.unwrap(), None);
    let counters = "ck:{test:0}:counters";
    let _: () = client.rename(counters, "aside").await.unwrap();
    let _: () = client.rpush(counters, "nothing that counts").await.unwrap();
    both("product:5").await.unwrap_err();
    let _: () = client.rename("aside", counters).await.unwrap();
    let _: () = client.del("product:2000").await.unwrap();
    // Many at the same moment go together.
    let reads = (0..200).map(|n| {
        let id = 1 + n % 20;
        let cache = cache.clone();
        async move { (id, cache.get::<Product>(&format!("product:{id}")).await.unwrap()) }
    });
    for (id, read) in futures_util::future::join_all(reads).await {
        assert_eq!(read, Some(typed(id, &format!("name {id}"))));
    }
    let bytes = cache.get_bytes("product:5").await.unwrap().unwrap();
    assert_eq!(fields::decode(&bytes).unwrap().len(), 5);
    // With a token, through what is near, and with a type that it is not.
    let token = tokens::token(&worker.context).await.unwrap();
    assert_eq!(products.get_since(&["5"], &token).await.unwrap(), Some(typed(5, "name 5")));
    let space =
        products.space::<u32, Product>().near(Near::bytes("1MiB").staleness("300ms")).build().unwrap();
    rig.postgres.execute("update products set name = 'newer' where id = 5").await.unwrap();
    let token = tokens::token(&worker.context).await.unwrap();
    assert_eq!(space.get_at(&5, &token).await.unwrap(), Some(typed(5, "newer")));
    let read = space.read_at(&5, &token, Duration::from_secs(20)).await.unwrap();
    assert_eq!((read.value, read.freshness), (Some(typed(5, "newer")), cachekeeper_client::Freshness::Fresh));
    wait_until("a read is near", async || {
        let read = space.get_aged(&5).await.map_err(|error| error.to_string())?;
        assert_eq!(read.value, Some(typed(5, "newer")));
        if read.behind_redis.is_zero() { Err(format!("{read:?}")) } else { Ok(()) }
    })
    .await;
    rig.postgres.execute("update products set name = 'newest', price = null where id = 5").await.unwrap();
    wait_until("the change is seen", async || {
        let read = space.get(&5).await.unwrap().unwrap();
        if read == (Product { price: None, ..typed(5, "newest") }) {
            Ok(())
        } else {
            Err(format!("{read:?}"))
        }
    })
    .await;
    let wrong = products.get::<BTreeMap<String, u32>>(&["5"]).await.unwrap_err();
    assert!(
        matches!(&wrong, ClientError::Decode { reason, .. } if reason.contains("field is_new: ")),
        "{wrong}"
    );
    // Nobody stores a string there.
    let minute = Duration::from_secs(60);
    assert!(matches!(cache.set("product:5", &1, minute).await, Err(ClientError::OfDataset { .. })));
    let policy = cachekeeper_client::Policy::ttl(minute);
    let load = async || Ok::<_, std::io::Error>(Some(typed(5, "own")));
    let refused = cache.get_or_load::<Product, _, _, _, _>("product:5", &policy, load).await;
    assert!(matches!(refused, Err(ClientError::OfDataset { .. })), "{refused:?}");
    assert!(worker.stop().await);
}

/// A key of another type is a miss to what is near, and does not end it.
#[tokio::test(flavor = "multi_thread")]
async fn a_string_under_a_key_of_a_hash_is_a_miss_to_what_is_near() {
    let rig = Rig::start(TABLES).await;
    let worker = Worker::start(rig.config(PRODUCT)).await.unwrap();
    ready(&worker).await;
    let cache = Cache::over(worker.context.clone()).build();
    let near = Near::bytes("1MiB").staleness("300ms");
    let space = cache.dataset("product").unwrap().space::<u32, Product>().near(near).build().unwrap();
    let is_near = async |id: u32| {
        wait_until("a read is near", async || {
            let read = space.get_aged(&id).await.map_err(|error| error.to_string())?;
            if read.behind_redis.is_zero() { Err(format!("{read:?}")) } else { Ok(()) }
        })
        .await;
    };
    is_near(1).await;
    let _: () = rig.client().await.set("product:2", "a string").await.unwrap();
    is_near(2).await;
    assert_eq!(space.get(&1).await.unwrap(), Some(typed(1, "name 1")));
    assert!(worker.stop().await);
}

#[tokio::test]
async fn what_a_hash_cannot_be_is_refused() {
    let rig = Rig::start("create table t (id int primary key, name text)").await;
    let dataset = |query: &str, more: &str| {
        format!("[dataset.t]\nquery = \"{query}\"\nkey = \"t:{{id}}\"\nformat = \"hash\"\n{more}\n")
    };
    let query = "select id, name from t";
    for (query, more, parts) in [
        (query, "compression = { codec = \"zstd\" }", &["the fields of a hash are not compressed"][..]),
        (query, "negative_ttl = \"10s\"", &["a hash cannot be one", "msgpack or json"]),
        (query, "rows = \"many\"", &["a hash has the columns of one row", "rows = \"one\""]),
        (query, "value = \"name\"", &["`value` goes with format = \"raw\""]),
        ("select id, name, name from t", "", &["two columns are named name", "with `as`"]),
    ] {
        Cli::new(&rig, &dataset(query, more)).says(&["check"], 78, parts);
    }
    // What all datasets inherit does not mean them.
    let inherited = format!(
        "[defaults]\nnegative_ttl = \"10s\"\ncompression = {{ codec = \"zstd\" }}\n{}",
        dataset(query, "")
    );
    let config = rig.config(&inherited);
    let settings = config.datasets.first().unwrap();
    assert_eq!((settings.compression, settings.negative_ttl), (None, None));
    let (code, said) = Cli::new(&rig, &dataset(query, "")).run(&["check"]);
    assert_eq!(code, 0, "{said}");
}
