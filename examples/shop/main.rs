//! A small shop on the library: `cargo run --example shop [-- POSTGRES_URL REDIS_URL]`.
//!
//! Without URLs it starts private servers, as `cachekeeper demo` does. A worker runs in the same process, so that a
//! change in Postgres shows at once; in production it is a service of its own.
//!
//! ```text
//! curl localhost:8080/products/7
//! curl -X PUT localhost:8080/products/7/price -H 'content-type: application/json' -d '{"price_cents": 1999}'
//! curl localhost:8080/pages/7
//! curl localhost:8080/stock/7
//! curl -X PUT localhost:8080/sessions/a -H 'content-type: application/json' -d '{"user": "ada", "basket": [7]}'
//! curl -X POST localhost:8080/transfers -H 'content-type: application/json' -d '{"from": 1, "to": 2, "amount": 100}'
//! ```
#![expect(clippy::print_stdout, reason = "an example talks to its user")]

mod app;

use std::collections::BTreeMap;
use std::path::Path;

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_config::Config;
use cachekeeper_testkit::servers::{Postgres, Redis};
use sqlx::postgres::PgPoolOptions;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut urls = std::env::args().skip(1);
    let private = match (urls.next(), urls.next()) {
        (Some(postgres), Some(redis)) => Servers { postgres, redis, _own: None },
        (None, _) => Servers::start().await?,
        _ => anyhow::bail!("give both URLs, POSTGRES_URL and REDIS_URL, or none"),
    };
    let environment = BTreeMap::from([
        ("CACHEKEEPER__POSTGRES__URL".to_owned(), private.postgres.clone()),
        ("CACHEKEEPER__REDIS__URL".to_owned(), private.redis.clone()),
        ("CACHEKEEPER__SERVICE__NAMESPACE".to_owned(), "shop".to_owned()),
        ("CACHEKEEPER__ADMIN__LISTEN".to_owned(), String::new()),
    ]);
    let loaded = Config::load(Path::new("shop.toml"), app::CONFIG.to_owned(), &environment);
    let (config, _warnings) =
        loaded.map_err(|problems| anyhow::anyhow!(cachekeeper_config::diagnostic::render(&problems)))?;
    let pool = PgPoolOptions::new().max_connections(8).connect(&private.postgres).await?;
    sqlx::raw_sql(app::SCHEMA).execute(&pool).await?;
    let cache = Cache::open(&config)?.build();
    cachekeeper_engine::context::Context::new(&config)?.postgres.migrate().await?;
    let worker = Worker::start(config).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("the shop listens on http://{}, Ctrl-C ends it", listener.local_addr()?);
    let stopped = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app::router(app::App::new(cache, pool)?)).with_graceful_shutdown(stopped).await?;
    worker.stop().await;
    Ok(())
}

struct Servers {
    postgres: String,
    redis: String,
    _own: Option<(Postgres, Redis)>,
}

impl Servers {
    async fn start() -> anyhow::Result<Self> {
        let (postgres, redis) = tokio::try_join!(Postgres::start(&[]), Redis::start(&[]))?;
        Ok(Self { postgres: postgres.url(), redis: redis.url(), _own: Some((postgres, redis)) })
    }
}
