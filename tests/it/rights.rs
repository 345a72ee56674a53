//! Programs under exactly the rules of `cachekeeper acl`, and servers that hide what they are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use cachekeeper::app::Worker;
use cachekeeper_client::{Cache, Heard, Loaded, LockOptions, Near, Policy, Sliding};
use cachekeeper_protocol::event::Event;
use cachekeeper_testkit::servers::Redis;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use serde_json::Value;

use crate::support::{Cli, Rig, wait_until};
use crate::writes::{DATASETS, TABLES, parameters};

const INVALIDATION: &str = "[invalidation]\nkeys = [\"page:*\"]\n";
const URL: &str = "CACHEKEEPER__REDIS__URL";

fn command(words: &[&str]) -> redis::Cmd {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    command
}

/// The users of all kinds of programs, made as `acl` says.
pub async fn make_users(rig: &Rig, cli: &Cli) {
    let mut client = rig.client().await;
    let (code, text) = cli.run(&["acl"]);
    assert_eq!(code, 0, "{text}");
    for line in text.lines().filter(|line| line.starts_with("ACL SETUSER")) {
        let words: Vec<&str> = line.split(' ').chain([">secret"]).collect();
        let made: Result<(), _> = command(&words).query_async(&mut client).await;
        made.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

pub fn url(rig: &Rig, kind: &str) -> String {
    rig.redis.url().replace("redis://", &format!("redis://cachekeeper-{kind}:secret@"))
}

pub async fn client(rig: &Rig, kind: &str) -> MultiplexedConnection {
    redis::Client::open(url(rig, kind)).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// The configuration of a worker whose user has the rules.
pub fn config(rig: &Rig, toml: &str, kind: &str) -> cachekeeper_config::Config {
    let mut config = rig.config(toml);
    config.redis.url = cachekeeper_config::Secret::new(url(rig, kind));
    config
}

/// The command line under the rules.
fn cli_as(rig: &Rig, toml: &str, kind: &str) -> Cli {
    let mut cli = Cli::new(rig, toml);
    cli.environment.iter_mut().find(|(name, _)| name == URL).unwrap().1 = url(rig, kind);
    cli
}

async fn is_ready(worker: &Worker) {
    wait_until("the worker is ready", async || {
        let reasons = worker.health.reasons();
        if reasons.is_empty() { Ok(()) } else { Err(reasons.join("; ")) }
    })
    .await;
}

async fn has_price(client: &MultiplexedConnection, id: u32, price: i64) {
    wait_until("the entry is as it should be", async || {
        let found: Option<String> = client.clone().get(format!("product:{id}")).await.unwrap();
        let text = found.unwrap_or_default();
        if text.contains(&format!("\"price_cents\":{price},")) { Ok(()) } else { Err(text) }
    })
    .await;
}

/// What was refused to anybody.
pub async fn refused(rig: &Rig) -> Vec<String> {
    let log: Vec<redis::Value> =
        redis::cmd("ACL").arg("LOG").query_async(&mut rig.client().await).await.unwrap();
    let shown = log.iter().map(|entry| format!("{entry:?}"));
    // Drivers introduce themselves, and take no offence.
    shown.filter(|entry| !entry.contains("client|setinfo")).collect()
}

#[tokio::test]
async fn every_program_lives_with_exactly_the_rights_of_its_rule() {
    let rig = Rig::start(TABLES).await;
    let warm = "ttl = \"1h\"\nformat = \"json\"\nwarm = { on_start = true }\nrefresh = { ahead = \"50%\" }\nwatch = [{ table = \"products\"";
    let datasets =
        DATASETS.replacen("ttl = \"1h\"\nformat = \"json\"\nwatch = [{ table = \"products\"", warm, 1);
    assert_ne!(datasets, DATASETS);
    let toml = format!("{INVALIDATION}[feed]\naudit_rate = 1000\n{datasets}");
    make_users(&rig, &Cli::new(&rig, &toml)).await;
    let by_worker = cli_as(&rig, &toml, "worker");
    by_worker.says(&["check"], 0, &[]);
    let worker = Worker::start(config(&rig, &toml, "worker")).await.unwrap();
    is_ready(&worker).await;
    let reader = client(&rig, "reader").await;
    // The feed.
    has_price(&reader, 7, 700).await;
    rig.postgres.execute("update products set price_cents = 701 where id = 7").await.unwrap();
    has_price(&reader, 7, 701).await;
    // Events, by channel and by stream. The entry is wrong behind our back.
    let publisher = client(&rig, "publisher").await;
    let entry = "product:8";
    let is_mended = async |how: &str| {
        wait_until(how, async || {
            let found: Option<String> = reader.clone().get(entry).await.unwrap();
            if found.as_deref() == Some("wrong") { Err("not yet".to_owned()) } else { Ok(()) }
        })
        .await;
    };
    let _: () = rig.client().await.set(entry, "wrong").await.unwrap();
    let _: i64 = publisher.clone().publish("cache:invalidation", "{\"key\":\"product:8\"}").await.unwrap();
    is_mended("the event of the channel is applied").await;
    let _: () = rig.client().await.set(entry, "wrong").await.unwrap();
    let added = redis::cmd("XADD").arg("cache:invalidation:log").arg("*").arg("key").arg(entry).clone();
    let _: String = added.query_async(&mut publisher.clone()).await.unwrap();
    is_mended("the event of the stream is applied").await;
    // Write commands.
    let mut writer = client(&rig, "writer").await;
    let parameters = "{\"id\":9,\"price_cents\":901}";
    let words = ["XADD", "cache:writes", "*", "dataset", "product", "id", "w1", "params", parameters];
    let words = [&words[..], &["reply", "cache:reply:me"]].concat();
    let _: String = command(&words).query_async(&mut writer).await.unwrap();
    let (_, reply): (String, String) = writer.blpop("cache:reply:me", 20.0).await.unwrap();
    assert!(reply.contains("\"ok\":true"), "{reply}");
    has_price(&reader, 9, 901).await;
    library(&rig, &toml).await;
    // The verbs.
    let verbs: [&[&str]; 8] = [
        &["warm"],
        &["audit"],
        &["get", "product:7"],
        &["refresh", "product:7"],
        &["invalidate", "-t", "category:category 3"],
        &["write", "product", "id=10", "price_cents=1001"],
        &["writes", "status"],
        &["writes", "dead-letters"],
    ];
    verbs.iter().for_each(|verb| drop(by_worker.says(verb, 0, &[])));
    wait_until("status is content", async || {
        let (code, text) = by_worker.run(&["status"]);
        if code == 0 { Ok(()) } else { Err(text) }
    })
    .await;
    // A new epoch.
    let before = worker.health.facts().epoch;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut rig.client().await).await.unwrap();
    wait_until("a new epoch has begun", async || {
        let now = worker.health.facts();
        if now.epoch != before && now.pending.is_empty() { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    is_ready(&worker).await;
    has_price(&reader, 7, 701).await;
    worker.stop().await;
    by_worker.says(&["purge", "--yes"], 0, &[]);
    assert_eq!(refused(&rig).await, Vec::<String>::new());

    // And no more than that.
    let refuses = async |kind: &str, words: &[&str]| {
        let done: Result<redis::Value, _> = command(words).query_async(&mut client(&rig, kind).await).await;
        assert_eq!(done.unwrap_err().code(), Some("NOPERM"), "{kind} {words:?}");
    };
    for kind in ["worker", "library", "reader", "publisher", "writer"] {
        refuses(kind, &["flushall"]).await;
        refuses(kind, &["config", "get", "*"]).await;
        refuses(kind, &["get", "other:1"]).await;
        refuses(kind, &["publish", "other", "x"]).await;
    }
    refuses("reader", &["set", "product:7", "x"]).await;
    refuses("publisher", &["get", "product:7"]).await;
    refuses("writer", &["get", "product:7"]).await;
    refuses("library", &["xadd", "cache:writes", "*", "a", "b"]).await;
}

/// What applications do with the library.
async fn library(rig: &Rig, toml: &str) {
    let cache = Cache::open(&config(rig, toml, "library")).unwrap().prefixes(["page:"]).build();
    let products = cache.dataset("product").unwrap();
    products.get::<Value>(&["11"]).await.unwrap().unwrap();
    let hour = Duration::from_secs(3600);
    cache.set_with_tags("page:1", "x", hour, &["pages"]).await.unwrap();
    cache.set("page:2", "x", hour).await.unwrap();
    assert!(cache.exists("page:2").await.unwrap());
    assert_eq!(cache.invalidate_tags(&["pages"]).await.unwrap(), 1);
    let policy = Policy::ttl(hour).tags(["pages"]);
    let load = || async { Ok::<_, std::io::Error>(Loaded::found("y".to_owned())) };
    let loaded: Option<String> = cache.get_or_load("page:3", &policy, load).await.unwrap();
    assert_eq!(loaded.as_deref(), Some("y"));
    cache.delete("page:3").await.unwrap();
    let mut batch = cache.batch();
    batch.get::<String>("page:2").unwrap();
    batch.delete("page:2").unwrap();
    batch.run().await.unwrap();
    let guard = cache.locks().acquire("report", LockOptions::default()).await.unwrap();
    assert!(guard.release().await.unwrap());
    let mut events = cache.events().await.unwrap();
    let event = Event { keys: vec!["product:11".to_owned()], ..Event::default() };
    cache.publish(&event).await.unwrap();
    cache.publish_durable(&event).await.unwrap();
    assert!(matches!(events.next().await, Heard::Event(heard) if heard == event));
    cache.get_sliding::<String>("page:4", Sliding::idle(hour)).await.unwrap();
    cache.get_many::<String>(&["page:4", "product:11"]).await.unwrap();
    products.write(&parameters(serde_json::json!({ "id": 11, "price_cents": 1101 }))).await.unwrap();
    let near = products.space::<i32, Value>().near(Near::bytes("1MiB")).build().unwrap();
    wait_until("reads are near", async || {
        let read = near.get_aged(&11).await.map_err(|error| error.to_string())?;
        if read.behind_redis.is_zero() { Err(format!("{read:?}")) } else { Ok(()) }
    })
    .await;
}

/// Makes one entry wrong and everything pending; it is mended by a revalidation.
async fn is_revalidated(rig: &Rig) {
    let mut client = rig.client().await;
    let _: () = client.set("product:8", "wrong").await.unwrap();
    let _: i64 = client.publish("cache:invalidation", "{\"dataset\":\"product\"}").await.unwrap();
    wait_until("the entry is revalidated", async || {
        let found: Option<String> = client.clone().get("product:8").await.unwrap();
        if found.as_deref() == Some("wrong") { Err("not yet".to_owned()) } else { Ok(()) }
    })
    .await;
}

async fn set_user(rig: &Rig, words: &[&str]) {
    let _: () =
        command(&[&["ACL", "SETUSER"], words].concat()).query_async(&mut rig.client().await).await.unwrap();
}

#[tokio::test]
async fn a_worker_revalidates_and_says_what_is_weaker_where_the_server_hides_what_it_is() {
    let rig = Rig::start(TABLES).await;
    let toml = format!("{INVALIDATION}{DATASETS}");
    make_users(&rig, &Cli::new(&rig, &toml)).await;
    for hidden in ["-info", "-config", "-client"] {
        set_user(&rig, &["cachekeeper-worker", hidden]).await;
    }
    let worker = Worker::start(config(&rig, &toml, "worker")).await.unwrap();
    is_ready(&worker).await;
    is_revalidated(&rig).await;
    is_ready(&worker).await;
    let cli = cli_as(&rig, &toml, "worker");
    cli.says(
        &["check"],
        0,
        &["warning: the user in Redis lacks the command info (+info)", "less than a second may be missed"],
    );
    cli.says(&["audit"], 0, &[]);
    wait_until("status is content", async || {
        let (code, text) = cli.run(&["status"]);
        let is_said =
            text.contains("lacking in redis: the command info") && text.contains("the rest is hidden");
        if code == 0 && is_said { Ok(()) } else { Err(text) }
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_revalidates_where_the_server_has_other_names_for_its_commands() {
    let renamed =
        ["--rename-command", "INFO", "", "--rename-command", "CONFIG", "", "--rename-command", "CLIENT", ""];
    let rig = Rig::start_with(TABLES, &[], &renamed).await;
    let worker = Worker::start(rig.config(DATASETS)).await.unwrap();
    is_ready(&worker).await;
    is_revalidated(&rig).await;
    is_ready(&worker).await;
    let cli = Cli::new(&rig, DATASETS);
    cli.says(&["check"], 0, &["the command info, which this server does not know or has renamed"]);
    cli.says(&["audit"], 0, &[]);
    worker.stop().await;
    // A replica and a node of a cluster are known all the same.
    let port = rig.redis.url().trim_end_matches("/0").rsplit(':').next().unwrap().to_owned();
    let of_master = format!("127.0.0.1 {port}");
    for (arguments, said) in [
        (&["--cluster-enabled", "yes"], "is a node of a cluster"),
        (&["--replicaof", &of_master], "is a replica"),
    ] {
        let other = Redis::start(&[&renamed[..], &arguments[..]].concat()).await.unwrap();
        let mut cli = Cli::new(&rig, DATASETS);
        cli.environment.iter_mut().find(|(name, _)| name == URL).unwrap().1 = other.url();
        cli.says(&["check"], 78, &[said]);
    }
}

#[tokio::test]
async fn rights_that_are_missing_are_told_by_name_until_they_are_given() {
    let rig = Rig::start(TABLES).await;
    let toml = format!("{INVALIDATION}{DATASETS}");
    make_users(&rig, &Cli::new(&rig, &toml)).await;
    let worker = Worker::start(config(&rig, &toml, "worker")).await.unwrap();
    is_ready(&worker).await;
    let cli = cli_as(&rig, &toml, "worker");
    let own = "~ck:{test:0}:*";
    let rest = [
        "~page:*",
        "~category:*",
        "~cache:reply:*",
        "~cache:writes",
        "~cache:writes:dead",
        "%R~ck:{*}:uses",
        "~cache:invalidation:log",
        "~cache:invalidation:log:dead",
        "%R~ck:{test}:lock:feed",
    ];
    let without_products = [&["cachekeeper-worker", "resetkeys", own][..], &rest].concat();
    let cases: [(&[&str], &[&str], &[&str]); 3] = [
        (&["cachekeeper-worker", "-hset"], &["cachekeeper-worker", "+hset"], &["the command hset (+hset)"]),
        (
            &["cachekeeper-worker", "-xgroup"],
            &["cachekeeper-worker", "+xgroup|create", "+xgroup|delconsumer", "+xgroup|destroy"],
            &["the command xgroup|create (+xgroup|create)"],
        ),
        (&without_products, &["cachekeeper-worker", "~product:*"], &["keys ~product:*, for unlink"]),
    ];
    for (take, give, said) in cases {
        set_user(&rig, take).await;
        wait_until("readiness names it", async || {
            let reasons = worker.health.reasons().join("; ");
            if said.iter().all(|part| reasons.contains(part)) { Ok(()) } else { Err(reasons) }
        })
        .await;
        cli.says(&["check"], 78, said);
        cli.says(&["status"], 78, said);
        set_user(&rig, give).await;
        is_ready(&worker).await;
        cli.says(&["check"], 0, &[]);
    }
    worker.stop().await;
}

/// A user of whom everything is wrong is told of at a glance.
#[tokio::test]
async fn of_many_missing_rights_a_few_are_told() {
    let rig = Rig::start(TABLES).await;
    let user = [
        "SETUSER", "poor", "on", ">secret", "~*", "&*", "+multi", "+exec", "+discard", "+info", "+hello",
        "+client",
    ];
    let _: () = redis::cmd("ACL").arg(&user).query_async(&mut rig.client().await).await.unwrap();
    let cli =
        Cli::new(&rig, DATASETS).with(URL, &rig.redis.url().replace("redis://", "redis://poor:secret@"));
    let text = cli.says(
        &["check"],
        78,
        &["the user in Redis lacks the command", " more\n", "cachekeeper acl --for worker"],
    );
    let line = text.lines().find(|line| line.contains("the user in Redis lacks")).unwrap();
    assert!(line.len() < 300 && line.matches("the command ").count() == 6, "{line}");
}

/// Channels, and what cannot be asked for within a transaction.
#[tokio::test]
async fn missing_channels_and_commands_of_transactions_are_told_too() {
    let rig = Rig::start(TABLES).await;
    let toml = format!("{INVALIDATION}{DATASETS}");
    make_users(&rig, &Cli::new(&rig, &toml)).await;
    let worker = Worker::start(config(&rig, &toml, "worker")).await.unwrap();
    is_ready(&worker).await;
    let cli = cli_as(&rig, &toml, "worker");
    let unlock = format!("&{}", worker.context.redis.keys().unlock_channel());
    let cases: [(&[&str], &[&str], &str); 7] = [
        (
            &["resetchannels", &unlock],
            &["&cache:invalidation"],
            "the channel &cache:invalidation, for subscribe",
        ),
        (
            &["resetchannels", "&cache:invalidation"],
            &[&unlock],
            "the channel &ck:{test:0}:unlock, for subscribe",
        ),
        (&["-subscribe"], &["+subscribe"], "the command subscribe (+subscribe)"),
        (&["-unsubscribe"], &["+unsubscribe"], "the command unsubscribe (+unsubscribe)"),
        (&["-exec"], &["+exec"], "the command exec (+exec)"),
        (&["-discard"], &["+discard"], "the command discard (+discard)"),
        (&["-multi"], &["+multi"], "the command multi (+multi)"),
    ];
    for (take, give, said) in cases {
        set_user(&rig, &[&["cachekeeper-worker"], take].concat()).await;
        wait_until("readiness names it", async || {
            let reasons = worker.health.reasons().join("; ");
            if reasons.contains(said) { Ok(()) } else { Err(reasons) }
        })
        .await;
        cli.says(&["check"], 78, &[said, "cachekeeper acl --for worker"]);
        cli.says(&["status"], 78, &[said]);
        set_user(&rig, &[&["cachekeeper-worker"], give].concat()).await;
        is_ready(&worker).await;
        cli.says(&["check"], 0, &[]);
    }
    worker.stop().await;
}

/// A worker that is to fill misses, under the rights of its rule.
async fn filling_misses(rig: &Rig) -> (String, Worker) {
    let filled = DATASETS.replacen("ttl = \"1h\"", "ttl = \"1h\"\non_miss = \"load\"", 1);
    let toml = format!("{INVALIDATION}{filled}");
    make_users(rig, &Cli::new(rig, &toml)).await;
    let worker = Worker::start(config(rig, &toml, "worker")).await.unwrap();
    (toml, worker)
}

#[tokio::test]
async fn misses_are_filled_without_config_where_the_server_tells_of_them() {
    let rig = Rig::start(TABLES).await;
    let (toml, worker) = filling_misses(&rig).await;
    wait_until("readiness says that misses do not come", async || {
        let reasons = worker.health.reasons().join("; ");
        let is_said =
            reasons.contains("set notify-keyspace-events to include") && reasons.contains("config|get");
        if is_said { Ok(()) } else { Err(reasons) }
    })
    .await;
    let cli = cli_as(&rig, &toml, "worker");
    let says = ["misses are not filled: set notify-keyspace-events to include \"Em\"", "on_miss = \"load\""];
    cli.says(&["check"], 78, &[says[0], says[1], "config|get"]);
    set_user(&rig, &["cachekeeper-worker", "+config|get"]).await;
    cli.says(&["check"], 78, &[says[0], says[1], "the user in Redis lacks the command config|set"]);
    set_user(&rig, &["cachekeeper-worker", "-config|get"]).await;
    let set = redis::cmd("CONFIG").arg("SET").arg("notify-keyspace-events").arg("Em").clone();
    let _: () = set.query_async(&mut rig.client().await).await.unwrap();
    is_ready(&worker).await;
    cli.says(&["check"], 0, &["configuration is right"]);
    let reader = client(&rig, "reader").await;
    has_price(&reader, 7, 700).await;
    assert!(refused(&rig).await.iter().all(|entry| entry.contains("config|")));
    worker.stop().await;
}

#[tokio::test]
async fn misses_are_filled_as_soon_as_config_is_permitted() {
    let rig = Rig::start(TABLES).await;
    let (toml, worker) = filling_misses(&rig).await;
    wait_until("readiness says that misses do not come", async || {
        let reasons = worker.health.reasons().join("; ");
        if reasons.contains("set notify-keyspace-events to include") { Ok(()) } else { Err(reasons) }
    })
    .await;
    let cli = cli_as(&rig, &toml, "worker");
    cli.says(&["check"], 78, &["misses are not filled"]);
    set_user(&rig, &["cachekeeper-worker", "+config|get", "+config|set"]).await;
    cli.says(&["check"], 0, &["configuration is right"]);
    is_ready(&worker).await;
    has_price(&client(&rig, "reader").await, 7, 700).await;
    worker.stop().await;
}

/// A command that the code sends and no rule names would be refused to whoever has exactly the printed rights, perhaps only on a bad day.
#[test]
fn every_command_that_is_sent_is_in_the_rules() {
    // What everybody may say, and what is asked for elsewhere or only where the user may. No worker runs on a cluster yet.
    const OTHERS: [&str; 7] = ["hello", "ping", "sentinel", "config", "memory", "client", "cluster"];
    let source = |path: &str| std::fs::read_to_string(path).unwrap();
    let rules = source("crates/engine/src/rights.rs") + &source("crates/engine/src/rights/commands.rs");
    let mut sent = BTreeSet::new();
    let mut folders = vec![PathBuf::from("crates/engine/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for begins in ["cmd(\"", "call('", "call(\""] {
                let names = text.split(begins).skip(1).filter_map(|rest| rest.split(['"', '\'']).next());
                sent.extend(
                    names
                        .filter(|name| {
                            name.len() > 1 && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
                        })
                        .map(str::to_lowercase),
                );
            }
        }
    }
    assert!(40 < sent.len(), "{sent:?}");
    let is_named =
        |name: &str| rules.contains(&format!("\"{name} ")) || rules.contains(&format!("\"{name}\""));
    let missing: Vec<&String> =
        sent.iter().filter(|name| !OTHERS.contains(&name.as_str()) && !is_named(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
