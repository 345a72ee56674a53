//! Namespaces share nothing but what is captured: not the records of commands, not streams, not keys.

use std::collections::BTreeMap;
use std::path::Path;

use cachekeeper::app::Worker;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_testkit::servers::Redis;
use serde_json::json;

use crate::support::{Cli, Rig, wait_until};

const TABLES: &str = "
    create table products (id int primary key, price int);
    insert into products select n, n * 10 from generate_series(1, 20) n;";

const DATASETS: &str = r#"
    [dataset.product]
    query = "select id, price from products"
    key = "product:{id}"
    format = "json"
    watch = [{ table = "products", key = { id = "id" } }]
    warm = {}
    [dataset.product.write]
    statement = "update products set price = :price where id = :id"
"#;

/// The same datasets under keys and names of their own.
fn others(namespace: &str) -> String {
    let section = format!(
        "[invalidation]\nstream = \"{namespace}:events\"\n[writes]\nstream = \"{namespace}:writes\"\nreply_prefix = \"{namespace}:reply:\"\n"
    );
    format!("{section}{}", DATASETS.replace("product:{id}", &format!("{namespace}-product:{{id}}")))
}

fn environment(rig: &Rig, namespace: &str) -> BTreeMap<String, String> {
    let mut environment = rig.environment();
    environment.insert("CACHEKEEPER__SERVICE__NAMESPACE".to_owned(), namespace.to_owned());
    environment
}

fn config(rig: &Rig, namespace: &str, toml: &str) -> Config {
    Config::load(Path::new("test.toml"), toml.to_owned(), &environment(rig, namespace)).unwrap().0
}

fn cli(rig: &Rig, namespace: &str, toml: &str) -> Cli {
    let mut cli = Cli::new(rig, toml);
    cli.environment = environment(rig, namespace).into_iter().collect();
    cli
}

async fn write(context: &Context, stream: &str, id: &str, product: i32, price: i32) {
    let parameters = json!({ "id": product, "price": price }).to_string();
    let fields: [(&str, &[u8]); 3] =
        [("dataset", b"product"), ("id", id.as_bytes()), ("params", parameters.as_bytes())];
    context.redis.append(stream, &fields).await.unwrap();
}

async fn is_worked_off(worker: &Worker, stream: &str) {
    let group = cachekeeper_engine::commands::group_of(worker.context.redis.keys().namespace());
    wait_until(&format!("{stream} is empty"), async || {
        let state =
            worker.context.redis.stream_state(stream, &group).await.map_err(|error| error.to_string())?;
        if state.length == 0 { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
}

async fn text_of(rig: &Rig, sql: &str) -> Option<String> {
    rig.postgres.session().await.unwrap().text(sql).await.unwrap()
}

/// C6: the same id in two namespaces of one database was refused as used.
#[tokio::test]
async fn the_same_command_id_in_two_namespaces_is_two_commands() {
    let rig = Rig::start(TABLES).await;
    let elsewhere = Redis::start(&[]).await.unwrap();
    let first = Worker::start(config(&rig, "test", DATASETS)).await.unwrap();
    let mut second = environment(&rig, "other");
    second.insert("CACHEKEEPER__REDIS__URL".to_owned(), elsewhere.url());
    let second = Config::load(Path::new("test.toml"), DATASETS.to_owned(), &second).unwrap().0;
    let second = Worker::start(second).await.unwrap();
    write(&first.context, "cache:writes", "order-1", 1, 111).await;
    is_worked_off(&first, "cache:writes").await;
    write(&second.context, "cache:writes", "order-1", 2, 222).await;
    is_worked_off(&second, "cache:writes").await;
    // And both still apply commands: neither has taken the right from the other.
    write(&first.context, "cache:writes", "order-2", 3, 333).await;
    is_worked_off(&first, "cache:writes").await;
    for context in [&first.context, &second.context] {
        assert_eq!(context.redis.dead_letters("cache:writes", 10).await.unwrap(), []);
    }
    let prices = "select string_agg(price::text, ' ' order by id) from products where id <= 3";
    assert_eq!(text_of(&rig, prices).await.as_deref(), Some("111 222 333"));
    first.stop().await;
    second.stop().await;
}

/// The keys of two namespaces of one Redis database may not coincide; where they do not, both work side by side.
#[tokio::test]
async fn two_namespaces_of_one_redis_database_work_where_their_names_differ() {
    let rig = Rig::start(TABLES).await;
    let first = Worker::start(config(&rig, "test", DATASETS)).await.unwrap();
    let stored = async |key: &str, price: i32| {
        let client = rig.client().await;
        wait_until(&format!("{key} has the price {price}"), async || {
            let value: Option<String> = redis::AsyncCommands::get(&mut client.clone(), key)
                .await
                .map_err(|error| error.to_string())?;
            let wanted = format!("\"price\":{price}}}");
            if value.as_ref().is_some_and(|value| value.ends_with(&wanted)) {
                Ok(())
            } else {
                Err(format!("{value:?}"))
            }
        })
        .await;
    };
    stored("product:1", 10).await;
    let same = cli(&rig, "other", DATASETS);
    let text = same.says(
        &["check"],
        78,
        &[
            "the stream cache:invalidation:log: the namespace \"test\" of this Redis database uses it too",
            "the stream cache:writes",
            "the prefix cache:reply: of lists for replies",
            "keys product:{id} could be those (product:{id}) of dataset product",
        ],
    );
    assert!(text.contains("4 errors"), "{text}");
    same.says(&["run"], 78, &["the namespace \"test\" of this Redis database uses it too"]);

    let toml = others("other");
    cli(&rig, "other", &toml).says(&["check"], 0, &["configuration is right"]);
    let second = Worker::start(config(&rig, "other", &toml)).await.unwrap();
    stored("other-product:1", 10).await;
    write(&second.context, "other:writes", "order-1", 1, 11).await;
    write(&first.context, "cache:writes", "order-1", 2, 22).await;
    for (worker, stream) in [(&first, "cache:writes"), (&second, "other:writes")] {
        is_worked_off(worker, stream).await;
    }
    for key in ["product", "other-product"] {
        stored(&format!("{key}:1"), 11).await;
        stored(&format!("{key}:2"), 22).await;
    }
    second.stop().await;

    // The removal of one leaves what the other uses, in both stores.
    let leaving = cli(&rig, "other", &toml);
    leaving.says(
        &["migrate", "--uninstall"],
        2,
        &["say --yes", "the namespace \"test\" uses the schema too"],
    );
    leaving.says(&["migrate", "--uninstall", "--yes"], 0, &["the namespace \"other\" is removed"]);
    let records = "select string_agg(distinct namespace, ' ') from cachekeeper.applied";
    assert_eq!(text_of(&rig, records).await.as_deref(), Some("test"));
    leaving.says(&["purge"], 2, &["say --yes", "ck:{other:0}:"]);
    leaving.says(&["purge", "--yes"], 0, &["keys deleted"]);
    let mut client = rig.client().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("ck:{other*").query_async(&mut client).await.unwrap();
    assert_eq!(keys, [] as [&str; 0]);
    cli(&rig, "test", DATASETS).says(&["purge", "--yes"], 1, &["stop it first"]);
    rig.postgres.execute("update products set price = 33 where id = 3").await.unwrap();
    stored("product:3", 33).await;
    assert!(first.health.reasons().is_empty(), "{:?}", first.health.reasons());
    first.stop().await;

    // The last one takes the schema along.
    let last = cli(&rig, "test", DATASETS);
    last.says(&["migrate", "--uninstall", "--yes"], 0, &["the schema cachekeeper is removed"]);
    assert_eq!(text_of(&rig, "select to_regnamespace('cachekeeper')::text").await, None);
    rig.postgres.execute("update products set price = 44 where id = 4").await.unwrap();
    last.says(&["migrate", "--uninstall", "--yes"], 0, &["is not there"]);
}

/// Subscribers of a publication for all tables would stop at tables that they do not have (faults B5).
#[tokio::test]
async fn a_publication_for_all_tables_is_told_of_before_anything_is_created() {
    let rig = Rig::start("create table products (id int primary key)").await;
    rig.postgres
        .execute("drop schema cachekeeper cascade; create publication everything for all tables")
        .await
        .unwrap();
    let cli = Cli::new(
        &rig,
        "[dataset.p]\nquery = \"select id from products\"\nkey = \"p:{id}\"\nwatch = [{ table = \"products\", key = { id = \"id\" } }]\n",
    );
    cli.says(&["migrate"], 2, &["the publication everything is for all tables", "say --yes"]);
    let there = "select count(*)::text from pg_namespace where nspname = 'cachekeeper'";
    let mut session = rig.postgres.session().await.unwrap();
    assert_eq!(session.text(there).await.unwrap().as_deref(), Some("0"));
    cli.says(&["migrate", "--yes"], 0, &["dataset p: changes are captured"]);
    // It is there now: nothing more to be told.
    cli.says(&["migrate"], 0, &["dataset p: changes are captured"]);
}
