//! Redis by its sentinels: failovers under load, passwords, and what is said where it cannot work.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cachekeeper::app::Worker;
use cachekeeper_client::Cache;
use cachekeeper_config::{Password, Secret};
use cachekeeper_testkit::servers::{Redis, Sentinels};
use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;

use crate::feed::{DATASETS, TABLES, agrees, caught_up, ready};
use crate::support::{Cli, Rig, wait_until};

/// A master, a replica and three sentinels.
struct Guarded {
    rig: Rig,
    replica: Redis,
    sentinels: Sentinels,
}

impl Guarded {
    async fn start(redis: &[&str], sentinels: &[&str]) -> Self {
        let rig = Rig::start_with(TABLES, &[], redis).await;
        let port = rig.redis.port();
        let mut arguments = vec!["--replicaof".to_owned(), format!("127.0.0.1 {port}")];
        arguments.extend(redis.iter().map(ToString::to_string));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let replica = Redis::start(&arguments).await.unwrap();
        let sentinels = Sentinels::start(port, sentinels).await.unwrap();
        Self { rig, replica, sentinels }
    }

    async fn worker(&self) -> Worker {
        let mut config = self.rig.config(DATASETS);
        config.redis.url = Secret::new(self.sentinels.url());
        let worker = Worker::start(config).await.unwrap();
        ready(&worker).await;
        worker
    }

    /// Waits until a sentinel names another master than this; answers its port.
    async fn elected(&self, before: u16) -> u16 {
        wait_until("another master is elected", async || {
            for position in 0..3 {
                match self.sentinels.master(position).await {
                    Ok(port) if port != before && port != 0 => return Ok(port),
                    Ok(_) | Err(_) => {}
                }
            }
            Err(format!("still {before}"))
        })
        .await
    }
}

async fn connect(port: u16) -> Result<MultiplexedConnection, String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    client.get_multiplexed_async_connection().await.map_err(|error| error.to_string())
}

/// Writes without end: each write of a row makes its price one higher.
async fn write(rig: &Rig, over: CancellationToken) {
    let mut number = 0_u32;
    while !over.is_cancelled() {
        number += 1;
        let id = 1 + number % 50;
        rig.postgres
            .execute(&format!("update products set price = price + 1 where id = {id}"))
            .await
            .unwrap();
    }
}

/// Epoch, entry and role, as one server has them at one moment.
type Told = redis::RedisResult<(Option<Vec<u8>>, Option<String>, redis::Value)>;

/// Reads entries at whoever is the master; of one server within one epoch no price may fall.
async fn read(guarded: &Guarded, meta: &str, over: CancellationToken) -> usize {
    let mut highest: HashMap<(u16, String, u32), i64> = HashMap::new();
    let (mut reads, mut number) = (0, 0_u32);
    while !over.is_cancelled() {
        let Ok(port) = guarded.sentinels.master(0).await else { continue };
        let Ok(mut client) = connect(port).await else { continue };
        for _ in 0..50 {
            number += 1;
            let id = 1 + number % 50;
            let mut pipeline = redis::pipe();
            pipeline.atomic().hget(meta, "epoch").get(format!("product:{id}"));
            pipeline.cmd("ROLE");
            let told: Told = pipeline.query_async(&mut client).await;
            let Ok((Some(epoch), Some(value), role)) = told else { break };
            if !format!("{role:?}").contains("master") {
                break;
            }
            let value: serde_json::Value = serde_json::from_str(&value).unwrap();
            let price = value["price"].as_i64().unwrap();
            let last = highest.entry((port, format!("{epoch:?}"), id)).or_insert(price);
            assert!(*last <= price, "product:{id} fell from {last} to {price} at {port} within {epoch:?}");
            *last = price;
            reads += 1;
        }
    }
    reads
}

/// Kills the master, or has it demoted, under load; everything goes on at the other one, and agrees in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn worker_and_library_follow_the_sentinels_under_load() {
    let mut guarded = Guarded::start(&[], &[]).await;
    let worker = guarded.worker().await;
    let cache = Cache::connect(&guarded.sentinels.url(), "test").unwrap().build();
    cache.set("page:1", &1, Duration::from_secs(600)).await.unwrap();
    let meta = worker.context.redis.keys().metadata().meta.clone();
    let (first, second) = (guarded.rig.redis.port(), guarded.replica.port());
    for (what, before, after) in [("killed", first, second), ("switched", second, first)] {
        let over = CancellationToken::new();
        let failover = async {
            let elected = guarded.elected(before).await;
            assert_eq!(elected, after);
            let since = Instant::now();
            // A write of now becomes visible there.
            let mark = format!("{what} {:?}", rand::random::<u32>());
            guarded
                .rig
                .postgres
                .execute(&format!("update products set name = '{mark}' where id = 999"))
                .await
                .unwrap();
            wait_until("a write is visible at the new master", async || {
                // Whoever is promoted is rid of its connections.
                let mut probe = connect(after).await?;
                let value: Result<Option<String>, _> =
                    redis::cmd("GET").arg("product:999").query_async(&mut probe).await;
                match value {
                    Ok(Some(value)) if value.contains(&mark) => Ok(()),
                    other => Err(format!("{other:?}; {:?}", worker.health.reasons())),
                }
            })
            .await;
            let visible = since.elapsed();
            ready(&worker).await;
            println!("{what}: visible {visible:?} and ready {:?} after the election", since.elapsed());
            wait_until("the library writes", async || {
                cache.set("page:1", &what, Duration::from_secs(600)).await.map_err(|error| error.to_string())
            })
            .await;
            let mut probe = connect(after).await.unwrap();
            let there: Option<Vec<u8>> =
                redis::cmd("GET").arg("page:1").query_async(&mut probe).await.unwrap();
            assert!(there.is_some());
            over.cancel();
        };
        let begin = async {
            match what {
                "killed" => guarded.rig.redis.crash(),
                _ => guarded.sentinels.fail_over().await.unwrap(),
            }
        };
        let ((), (), (), reads) = tokio::join!(
            begin,
            failover,
            write(&guarded.rig, over.clone()),
            read(&guarded, &meta, over.clone())
        );
        println!("{what}: {reads} reads");
        caught_up(&worker).await;
        agrees(&worker).await;
        if what == "killed" {
            // It comes back as a replica of the new one, and is the next master.
            guarded.rig.redis.kill();
            guarded.rig.redis.start_again().await.unwrap();
            wait_until("the killed one is a replica that has everything", async || {
                let mut client = connect(before).await?;
                let told: String = redis::cmd("INFO")
                    .arg("replication")
                    .query_async(&mut client)
                    .await
                    .map_err(|error| error.to_string())?;
                if told.contains("master_link_status:up") { Ok(()) } else { Err(told) }
            })
            .await;
            wait_until("the sentinels know it", async || {
                let mut known = Err("no replica".to_owned());
                for port in guarded.sentinels.ports() {
                    let mut client = connect(port).await?;
                    let mut command = redis::cmd("SENTINEL");
                    command.arg("REPLICAS").arg("shop");
                    let replicas: Vec<HashMap<String, String>> =
                        command.query_async(&mut client).await.map_err(|error| error.to_string())?;
                    let is_up = replicas.iter().any(|replica| {
                        replica["port"] == before.to_string()
                            && replica["flags"] == "slave"
                            && replica["master-link-status"] == "ok"
                    });
                    known = if is_up { Ok(()) } else { Err(format!("{port}: {replicas:?}")) };
                    if !is_up {
                        break;
                    }
                }
                known
            })
            .await;
        }
    }
    worker.stop().await;
}

/// A sentinel that does not answer is not waited for; one that hangs neither.
#[tokio::test]
async fn one_sentinel_of_three_is_enough() {
    let mut guarded = Guarded::start(&[], &[]).await;
    guarded.sentinels.kill(0);
    guarded.sentinels.pause(1);
    let cache = Cache::connect(&guarded.sentinels.url(), "test").unwrap().build();
    cache.set("page:1", &1, Duration::from_secs(600)).await.unwrap();
    guarded.sentinels.resume(1);
}

#[tokio::test]
async fn master_and_sentinels_have_passwords_of_their_own_which_change_without_a_restart() {
    let file = |name: &str, password: &str| {
        let file = std::env::temp_dir().join(format!("cachekeeper-{name}-{:016x}", rand::random::<u64>()));
        std::fs::write(&file, format!("{password}\n")).unwrap();
        file
    };
    let (of_master, of_sentinels) = (file("master", "one"), file("sentinels", "sesame"));
    let plain = Rig::start(TABLES).await;
    let (mut master, port) = (plain.client().await, plain.redis.port());
    let replica =
        Redis::start(&["--replicaof", &format!("127.0.0.1 {port}"), "--masterauth", "one"]).await.unwrap();
    for setting in ["requirepass", "masterauth"] {
        let mut command = redis::cmd("CONFIG");
        command.arg("SET").arg(setting).arg("one");
        let _: () = command.query_async(&mut master).await.unwrap();
    }
    let settings = ["requirepass sesame", "auth-pass one"];
    let sentinels = Sentinels::start(port, &settings).await.unwrap();
    let mut config = plain.config(DATASETS);
    config.redis.url = Secret::new(sentinels.url());
    config.redis.password = Some(Password::InFile(of_master.clone()));
    config.redis.sentinel_password = Some(Password::InFile(of_sentinels.clone()));
    let cache = Cache::connect_with(&config.redis, "test").unwrap().build();
    let worker = Worker::start(config).await.unwrap();
    ready(&worker).await;
    cache.set("page:1", &1, Duration::from_secs(600)).await.unwrap();

    // Another password, and every connection is broken.
    let mut command = redis::cmd("CONFIG");
    command.arg("SET").arg("requirepass").arg("two");
    let _: () = command.query_async(&mut master).await.unwrap();
    std::fs::write(&of_master, "two\n").unwrap();
    for kind in ["normal", "pubsub"] {
        let mut command = redis::cmd("CLIENT");
        command.arg("KILL").arg("TYPE").arg(kind).arg("SKIPME").arg("yes");
        let _: u64 = command.query_async(&mut master).await.unwrap();
    }
    plain.postgres.execute("update products set price = 4711 where id = 5").await.unwrap();
    caught_up(&worker).await;
    ready(&worker).await;
    wait_until("the library writes", async || {
        cache.set("page:1", &2, Duration::from_secs(600)).await.map_err(|error| error.to_string())
    })
    .await;
    worker.stop().await;
    for file in [of_master, of_sentinels] {
        std::fs::remove_file(file).unwrap();
    }
    drop(replica);
}

#[tokio::test]
async fn trouble_with_sentinels_is_told_by_name() {
    let rig = Rig::start(TABLES).await;
    let port = rig.redis.port();
    let replica = Redis::start(&["--replicaof", &format!("127.0.0.1 {port}")]).await.unwrap();
    let sentinels = Sentinels::launch(replica.port(), &[]).unwrap();
    let with = |url: &str| {
        let mut cli = Cli::new(&rig, &format!("{DATASETS}\n[redis]\nurl = \"{url}\"\n"));
        cli.environment.retain(|(name, _)| !name.ends_with("REDIS__URL"));
        cli
    };
    let nobody = with("redis+sentinel://127.0.0.1:1,localhost:2/shop");
    for verb in ["check", "status"] {
        let said =
            ["no sentinel answers", "127.0.0.1:1: ", "localhost:2: ", "refused", "name sentinels that run"];
        // The dataset is required, and Postgres says that nothing is captured yet.
        let text = nobody.says(&[verb], if verb == "check" { 78 } else { 69 }, &said);
        assert_eq!(text.matches("127.0.0.1:1:").count(), 1, "{text}");
    }
    let named = sentinels.ports()[0];
    let unknown = with(&format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{named}/shops/0"));
    let said = format!("the sentinels know no master named shops (asked: 127.0.0.1:{named})");
    wait_until("the sentinel answers", async || {
        let (code, text) = unknown.run(&["check"]);
        if code == 78 && text.contains(&said) { Ok(()) } else { Err(text) }
    })
    .await;
    let stale = with(&sentinels.url());
    let said = format!("the sentinels name 127.0.0.1:{} as master, which is a replica", replica.port());
    stale.says(&["check"], 78, &[&said]);
    // A sentinel is no server.
    let as_server = with(&format!("redis://127.0.0.1:{named}/0"));
    let said = format!("127.0.0.1:{named} is a sentinel");
    as_server.says(&["check"], 78, &[&said, "redis+sentinel://"]);
    as_server.says(&["status"], 78, &[&said]);
    // Nor does it speak TLS at that port.
    let by_tls = with(&format!("rediss+sentinel://127.0.0.1:{named}/shop/0"));
    by_tls.says(&["check"], 78, &["no sentinel answers", "is this the port for TLS?"]);
}

/// What is wrong with the configuration is not told as sentinels that do not run.
#[tokio::test]
async fn a_login_that_sentinels_refuse_is_told_at_its_setting() {
    let rig = Rig::start(TABLES).await;
    let sentinels = Sentinels::launch(rig.redis.port(), &["requirepass sesame"]).unwrap();
    let nodes: Vec<String> = sentinels.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let file = std::env::temp_dir().join(format!("cachekeeper-sentinels-{:016x}", rand::random::<u64>()));
    let with = |line: &str| {
        let url = format!("redis+sentinel://{}/shop/0", nodes.join(","));
        let datasets = DATASETS.replace("feed = \"required\"", "");
        let mut cli = Cli::new(&rig, &format!("{datasets}\n[redis]\nurl = \"{url}\"\n{line}\n"));
        cli.environment.retain(|(name, _)| !name.ends_with("REDIS__URL"));
        cli
    };
    let by_file = format!("sentinel_password_file = \"{}\"", file.display());
    std::fs::write(&file, "sesame\n").unwrap();
    wait_until("the sentinels answer", async || {
        let (code, text) = with(&by_file).run(&["check"]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    for verb in ["check", "status"] {
        let text = with("").says(&[verb], 78, &["no sentinel answers", "`sentinel_password_file`"]);
        assert!(!text.contains("name sentinels that run"), "{text}");
    }
    std::fs::write(&file, "wrong\n").unwrap();
    let said = format!("does not accept the password in {}", file.display());
    let text = with(&by_file).says(&["check"], 78, &[&said, "sentinel_password_file ="]);
    assert!(!text.contains("name sentinels that run"), "{text}");
    assert_eq!(text.matches(&nodes[0]).count(), 1, "{text}");
    std::fs::remove_file(file).unwrap();
}
