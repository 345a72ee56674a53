//! What tests share: servers, a configuration, waiting for a state.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cachekeeper::config::Config;
use cachekeeper::demo::servers::{Postgres, Redis};
use cachekeeper::flows::context::Context;
use tokio::time::Instant;

/// Servers of one test, and how to reach them.
pub struct Rig {
    pub postgres: Postgres,
    pub redis: Redis,
}

impl Rig {
    /// Servers with the schema installed and `sql` run.
    pub async fn start(sql: &str) -> Self {
        Self::start_with(sql, &[], &[]).await
    }

    pub async fn start_with(sql: &str, postgres: &[&str], redis: &[&str]) -> Self {
        let (postgres, redis) = tokio::join!(Postgres::start(postgres), Redis::start(redis));
        let rig = Self { postgres: postgres.unwrap(), redis: redis.unwrap() };
        rig.postgres.execute(sql).await.unwrap();
        let context = rig.context("");
        context.postgres.migrate().await.unwrap();
        rig
    }

    /// A configuration for these servers: `[dataset.*]` sections and more.
    pub fn config(&self, toml: &str) -> Config {
        let environment = self.environment();
        match Config::load(Path::new("test.toml"), toml.to_owned(), &environment) {
            Ok((config, _warnings)) => config,
            Err(problems) => panic!("{}", cachekeeper::config::diagnostic::render(&problems)),
        }
    }

    pub fn environment(&self) -> BTreeMap<String, String> {
        [
            ("CACHEKEEPER__POSTGRES__URL", self.postgres.url()),
            ("CACHEKEEPER__REDIS__URL", self.redis.url()),
            ("CACHEKEEPER__SERVICE__NAMESPACE", "test".to_owned()),
            ("CACHEKEEPER__ADMIN__LISTEN", String::new()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }

    pub fn context(&self, toml: &str) -> Context {
        Context::new(&self.config(toml)).unwrap()
    }

    /// A plain client, as an application has one.
    pub async fn client(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }
}

/// A Redis alone, for tests of scripts.
pub struct RedisRig {
    pub redis: Redis,
}

impl RedisRig {
    pub async fn start(arguments: &[&str]) -> Self {
        Self { redis: Redis::start(arguments).await.unwrap() }
    }

    /// A server that sorts text as English does, if that locale can be made.
    pub async fn start_in_english() -> Self {
        let directory = std::env::temp_dir().join("cachekeeper-locale");
        std::fs::create_dir_all(&directory).unwrap();
        let made = std::process::Command::new("localedef")
            .args(["-i", "en_US", "-f", "UTF-8"])
            .arg(directory.join("en_US.UTF-8"))
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            println!("localedef could not make en_US.UTF-8");
        }
        let environment =
            [("LOCPATH", directory.display().to_string()), ("LC_ALL", "en_US.UTF-8".to_owned())];
        Self { redis: Redis::start_with(&[], &environment).await.unwrap() }
    }

    pub fn store(&self) -> cachekeeper::stores::redis::Redis {
        let settings = cachekeeper::config::Redis {
            url: cachekeeper::config::Secret::new(self.redis.url()),
            password: None,
            connect_timeout: Duration::from_secs(2),
            response_timeout: Duration::from_secs(5),
        };
        cachekeeper::stores::redis::Redis::new(&settings, "test").unwrap()
    }

    pub async fn client(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }
}

/// Waits until `look` answers `Ok`; fails with the last state seen.
pub async fn wait_until<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match look().await {
            Ok(value) => return value,
            Err(state) if deadline < Instant::now() => {
                panic!("waited too long until {what}; last seen: {state}")
            }
            // The pause between two looks at a state, not a wait for time to pass.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
