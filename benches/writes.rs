//! What write-through costs: a write of the library beside what one does without it, and commands of the stream.
//!
//! `make bench`. Timings are of this machine and this moment: look at the ratios. `COMMANDS=5000` makes it shorter.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::{Cache, CacheState, Parameter, Parameters};
use cachekeeper_config::Config;
use cachekeeper_testkit::servers::{Postgres, Redis};
use redis::AsyncCommands;
use sqlx::Connection;
use tokio::time::Instant;

const PRODUCTS: i64 = 10_000;
const LATENCIES: i64 = 1_000;
const UPDATE: &str = "update products set price_cents = $1 where id = $2";

#[tokio::main]
async fn main() {
    let commands: i64 =
        std::env::var("COMMANDS").ok().and_then(|commands| commands.parse().ok()).unwrap_or(30_000);
    for fsync in ["on", "off"] {
        let setting = format!("fsync={fsync}");
        let postgres = Postgres::start(&[setting.as_str()]).await.unwrap();
        let redis = Redis::start(&[]).await.unwrap();
        let sql = format!(
            "create table products (id int primary key, name text, price_cents bigint, updates int default 0);
             insert into products select n, 'product ' || n, n, 0 from generate_series(1, {PRODUCTS}) n; analyze products"
        );
        postgres.execute(&sql).await.unwrap();
        let worker = Worker::start(config(&postgres, &redis)).await.unwrap();
        worker.context.postgres.migrate().await.unwrap();
        while !worker.health.reasons().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("fsync {fsync}");
        latency(&postgres, &redis).await;
        stream(&postgres, &redis, commands).await;
        worker.stop().await;
    }
}

fn config(postgres: &Postgres, redis: &Redis) -> Config {
    let text = r#"
        [service]
        namespace = "bench"
        [log]
        level = "error"
        [admin]
        listen = ""
        [dataset.product]
        query = "select id, name, price_cents from products"
        key = "product:{id}"
        format = "json"
        watch = [{ table = "products", key = { id = "id" } }]
        [dataset.product.write]
        statement = "update products set price_cents = :price_cents where id = :id"
    "#;
    let environment: BTreeMap<String, String> = [
        ("CACHEKEEPER__POSTGRES__URL".to_owned(), postgres.url()),
        ("CACHEKEEPER__REDIS__URL".to_owned(), redis.url()),
    ]
    .into();
    Config::load(Path::new("bench.toml"), text.to_owned(), &environment).unwrap().0
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// One write after the other: the library's, and the bare statement with a bare SET behind it, in turns.
async fn latency(postgres: &Postgres, redis: &Redis) {
    let cache = Cache::open(&config(postgres, redis)).unwrap().build();
    let products = cache.dataset("product").unwrap();
    let mut connection = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
    let client = redis::Client::open(redis.url()).unwrap();
    let mut client = client.get_multiplexed_async_connection().await.unwrap();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for n in 0..LATENCIES {
        let id = n % PRODUCTS + 1;
        let parameters: Parameters = [("id", id), ("price_cents", n)]
            .map(|(name, value)| (name.to_owned(), Parameter::from(value)))
            .into();
        let began = Instant::now();
        let written = products.write(&parameters).await.unwrap();
        ours.push(began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(written.cache, CacheState::Stored);
        let began = Instant::now();
        sqlx::query(UPDATE).bind(n).bind(id).execute(&mut connection).await.unwrap();
        let value = format!("{{\"id\":{id},\"name\":\"product {id}\",\"price_cents\":{n}}}");
        let _: () = client.set_ex(format!("bare:{id}"), value, 3600).await.unwrap();
        bare.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let (ours, bare) = (median(ours), median(bare));
    println!(
        "  a write of the library              {ours:8.3} ms   {:.2} of the statement and a SET ({bare:.3} ms)",
        ours / bare
    );
}

/// Commands handed over at once, against one client that awaits one statement after the other.
async fn stream(postgres: &Postgres, redis: &Redis, commands: i64) {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut client = client.get_multiplexed_async_connection().await.unwrap();
    let mut connection = sqlx::PgConnection::connect(&postgres.url()).await.unwrap();
    let awaited = commands / 10;
    let began = Instant::now();
    for n in 0..awaited {
        let id = i32::try_from(n % PRODUCTS + 1).unwrap();
        sqlx::query(UPDATE).bind(n).bind(id).execute(&mut connection).await.unwrap();
    }
    let one_by_one = awaited as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let all: Vec<i64> = (0..commands).collect();
    for part in all.chunks(500) {
        let mut pipeline = redis::pipe();
        for n in part {
            let parameters = format!("{{\"id\":{},\"price_cents\":{n}}}", (n * 7) % PRODUCTS + 1);
            pipeline.cmd("XADD").arg("cache:writes").arg("*").arg("dataset").arg("product");
            pipeline.arg("id").arg(format!("{commands}-{n}")).arg("params").arg(parameters).ignore();
        }
        pipeline.query_async::<()>(&mut client).await.unwrap();
    }
    loop {
        let left: u64 = redis::cmd("XLEN").arg("cache:writes").query_async(&mut client).await.unwrap();
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let through = commands as f64 / began.elapsed().as_secs_f64();
    println!(
        "  commands of the stream              {through:8.0} /s   {:.1} of awaited statements ({one_by_one:.0} /s)",
        through / one_by_one
    );
}
