//! What tests share: servers, a configuration, waiting for a state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::stores::redis::{Answer, Declared, Epoch, Registered};
use cachekeeper_testkit::servers::{Clock, Postgres, Redis};
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
        Self::with_schema(sql, postgres.unwrap(), redis.unwrap()).await
    }

    /// The same with a clock of Postgres that can be set.
    pub async fn start_with_clock(sql: &str, postgres: &[&str]) -> (Self, Clock) {
        let clock = Clock::new().unwrap();
        let environment = clock.environment();
        let (postgres, redis) = tokio::join!(Postgres::start_with(postgres, &environment), Redis::start(&[]));
        (Self::with_schema(sql, postgres.unwrap(), redis.unwrap()).await, clock)
    }

    async fn with_schema(sql: &str, postgres: Postgres, redis: Redis) -> Self {
        let rig = Self { postgres, redis };
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
            Err(problems) => panic!("{}", cachekeeper_config::diagnostic::render(&problems)),
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
        Context::of_worker(&self.config(toml)).unwrap()
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
        let made = Command::new("localedef")
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

    pub fn store(&self) -> cachekeeper_engine::stores::redis::Redis {
        let settings = cachekeeper_config::Redis::new(cachekeeper_config::Secret::new(self.redis.url()));
        cachekeeper_engine::stores::redis::Redis::new(&settings, "test").unwrap()
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
    let deadline = Instant::now() + Duration::from_secs(90);
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

/// The command line, as a user types it, with a configuration file of its own.
pub struct Cli {
    pub file: PathBuf,
    pub environment: Vec<(String, String)>,
}

impl Cli {
    pub fn new(rig: &Rig, toml: &str) -> Self {
        let file = std::env::temp_dir().join(format!("cachekeeper-cli-{:016x}.toml", rand::random::<u64>()));
        std::fs::write(&file, toml).unwrap();
        Self { file, environment: rig.environment().into_iter().collect() }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeeper"));
        command.args(arguments).arg("-c").arg(&self.file);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// The exit code, and everything that was printed.
    pub fn run(&self, arguments: &[&str]) -> (i32, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        (status.code().unwrap(), text)
    }

    #[track_caller]
    pub fn says(&self, arguments: &[&str], code: i32, parts: &[&str]) -> String {
        let (found, text) = self.run(arguments);
        assert_eq!(found, code, "{arguments:?}\n{text}");
        for part in parts {
            assert!(text.contains(part), "{arguments:?} does not say {part:?}:\n{text}");
        }
        text
    }

    /// The same configuration with a setting of the environment.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let Output { stdout, stderr, .. } = self.command(arguments).arg("--json").output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"))
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}

/// Registers one definition (its hash and its number), as a worker of its own.
pub async fn register(
    redis: &cachekeeper_engine::stores::redis::Redis,
    at: (&Epoch, &str),
    dataset: &str,
    (definition, serial): (&str, u64),
) -> Registered {
    let declared = Declared {
        dataset,
        definition,
        order: (0, serial),
        longest_life: Duration::from_secs(600),
        text: r#"{"form":"d:{}"}"#,
        told: "{}",
    };
    match redis.register_worker(at, (definition, ""), "{}", &[declared]).await.unwrap() {
        Answer::Done(registered) => registered,
        Answer::Failed(failed) => panic!("{failed}"),
    }
}

/// What was logged while it is installed: `tracing::subscriber::set_default(captured.subscriber())`.
#[derive(Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// Writes each event and each span that ends, as a line of JSON.
    pub fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let page = self.clone();
        tracing_subscriber::fmt()
            .json()
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_writer(move || page.clone())
            .finish()
    }

    /// The events with this message.
    pub fn events(&self, message: &str) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["fields"]["message"] == message).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Redis counts its commands anew.
pub async fn count_anew(client: &mut redis::aio::MultiplexedConnection) {
    let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(client).await.unwrap();
}

/// How often Redis has carried out this command since; those of scripts count too.
pub async fn carried_out(client: &mut redis::aio::MultiplexedConnection, command: &str) -> u64 {
    let text: String = redis::cmd("INFO").arg("commandstats").query_async(client).await.unwrap();
    let begins = format!("cmdstat_{command}:calls=");
    let line = text.lines().find_map(|line| line.strip_prefix(&begins));
    line.and_then(|line| line.split(',').next()).map_or(0, |count| count.parse().unwrap())
}
