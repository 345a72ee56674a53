//! The packages for Python and Node on a real cluster with a real worker: what they call fresh is at least what was committed
//! before its token was taken, while cluster slots move and masters fail over.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::guard::Guard;
use cachekeeper_protocol::keyspace::Keyspace;
use cachekeeper_protocol::stamp::Snapshot;
use cachekeeper_protocol::token::Token;
use cachekeeper_testkit::servers::{Cluster, Session};
use serde_json::{Value, json};

use crate::client_programs::{Caller, install};
use crate::support::{Cli, Rig, wait_until};

const ROWS: usize = 100;

const TABLES: &str = "
    create table items (id int primary key, version bigint not null);
    insert into items select n, 1 from generate_series(0, 99) n;";

const CONFIG: &str = r#"
    [invalidation]
    stream = ""
    [dataset.item]
    query = "select id, version from items"
    key = "item:{id}"
    warm = {}
    watch = [{ table = "items", key = { id = "id" } }]
    [dataset.fields]
    query = "select id, version from items"
    key = "fields:{id}"
    format = "hash"
    warm = {}
    watch = [{ table = "items", key = { id = "id" } }]
    [dataset.loose]
    query = "select id, version from items"
    key = "loose:{id}"
    format = "json"
    warm = {}
"#;

/// A cluster with three masters, and a worker that follows it.
pub struct World {
    pub rig: Rig,
    pub servers: Cluster,
    cli: Cli,
    worker: Child,
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.worker.kill());
        drop(self.worker.wait());
    }
}

fn slot(id: usize) -> ClusterSlot {
    ClusterSlot::of(format!("item:{id}").as_bytes())
}

impl World {
    /// The worker has just been started.
    pub async fn start(tables: &str, config: &str, replicas: usize) -> Self {
        install();
        let rig = Rig::start(tables).await;
        let servers = Cluster::start(3, replicas).await.unwrap();
        let cli = Cli::new(&rig, config).with("CACHEKEEPER__REDIS__URL", &servers.url());
        let mut command = cli.command(&["run"]);
        let worker = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { rig, servers, cli, worker }
    }

    /// Waits until all cluster slots are covered, and all datasets that somebody watches.
    async fn is_covered(&self) {
        wait_until("all is covered", async || {
            let status = self.cli.json(&["status"]);
            let watermark = status.get("watermark").cloned().unwrap_or_default();
            let watermark: Watermark =
                serde_json::from_value(watermark).map_err(|_none| format!("{status:#}"))?;
            let is_whole = watermark.covers == Some(ClusterSlotSet::all());
            let is_pending = watermark.not_covered.iter().any(|name| name != "loose");
            if is_whole && !is_pending { Ok(()) } else { Err(format!("{watermark:?}")) }
        })
        .await;
    }

    async fn token(&self) -> String {
        let mut session = self.rig.postgres.session().await.unwrap();
        session.text("select cachekeeper.token()").await.unwrap().unwrap()
    }
}

/// What was committed before a token was taken.
struct Told {
    token: String,
    versions: Vec<i64>,
}

/// What writers and readers share.
struct Run {
    told: Mutex<Option<Arc<Told>>>,
    /// The row whose cluster slot moves: half of the writes are to it.
    moving: AtomicUsize,
    is_over: AtomicBool,
}

impl Run {
    async fn write(&self, url: &str) -> Vec<i64> {
        let mut session = Session::open(url).await.unwrap();
        let mut versions = vec![1; ROWS];
        while !self.is_over.load(Ordering::Relaxed) {
            let id = match rand::random_range(0..2) {
                0 => self.moving.load(Ordering::Relaxed),
                _ => rand::random_range(0..ROWS),
            };
            let sql = format!(
                "with changed as (update items set version = version + 1 where id = {id} returning version)
                 select version::text from changed"
            );
            versions[id] = session.text(&sql).await.unwrap().unwrap().parse().unwrap();
            let token = session.text("select cachekeeper.token()").await.unwrap();
            if let Some(token) = token {
                *self.told.lock().unwrap() = Some(Arc::new(Told { token, versions: versions.clone() }));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        versions
    }
}

/// What one program saw.
#[derive(Default)]
struct Seen {
    fresh: usize,
    not_fresh: usize,
    unreachable: usize,
    violations: Vec<String>,
}

/// Reads until it is told to stop, each time with the newest token.
fn read(run: Arc<Run>, mut caller: Caller) -> JoinHandle<(Caller, Seen)> {
    std::thread::spawn(move || {
        let mut seen = Seen::default();
        while !run.is_over.load(Ordering::Relaxed) {
            let Some(told) = run.told.lock().unwrap().clone() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            let others = (0..rand::random_range(0..10)).map(|_| rand::random_range(0..ROWS));
            let ids: Vec<usize> = std::iter::once(run.moving.load(Ordering::Relaxed)).chain(others).collect();
            let dataset = if rand::random_range(0..2) == 0 { "item" } else { "fields" };
            let wait = if rand::random_range(0..3) == 0 { 0.3 } else { 0.0 };
            let options = json!({ "token": told.token, "wait": wait });
            caller.ask("read_many", json!([dataset, ids]), options);
            let answer = caller.answer();
            let Some(readings) = answer["value"].as_array() else {
                assert_eq!(answer["error"], "Unreachable", "{}: {answer}", caller.name);
                seen.unreachable += 1;
                continue;
            };
            for (id, reading) in ids.iter().zip(readings) {
                seen.note(&told, *id, reading, caller.name);
            }
        }
        (caller, seen)
    })
}

impl Seen {
    fn note(&mut self, told: &Told, id: usize, reading: &Value, name: &str) {
        // What is not there claims nothing.
        if reading["freshness"] != "fresh" || reading["state"] != "hit" {
            self.not_fresh += 1;
            return;
        }
        self.fresh += 1;
        // Of a hash it is text.
        let version = &reading["value"]["version"];
        let version = version.as_i64().or_else(|| version.as_str()?.parse().ok());
        if version.is_none_or(|version| version < told.versions[id]) {
            let expected = told.versions[id];
            self.violations
                .push(format!("{name}: {reading} is said to be fresh at {}: {expected}", told.token));
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// A cluster slot moves to the next master, and waits half way.
    Moves(usize),
    /// The migration is turned back half way, and done later.
    TurnsBack(usize),
    /// The master at this position ends, and its replica takes over.
    FailsOver(usize),
}

async fn strike(world: &World, run: &Run, trouble: Trouble) {
    let servers = &world.servers;
    let asked = if servers.ask::<String>(0, &redis::cmd("PING")).await.is_ok() { 0 } else { 1 };
    match trouble {
        Trouble::Moves(id) | Trouble::TurnsBack(id) => {
            run.moving.store(id, Ordering::Relaxed);
            let from = servers.owner(slot(id), asked).await.unwrap();
            let mut to = from;
            for other in 0..ROWS {
                let owner = servers.owner(slot(other), asked).await.unwrap();
                if owner != from {
                    to = owner;
                    break;
                }
            }
            servers.begin_move(slot(id), from, to).await.unwrap();
            servers.move_keys(slot(id), from, to, 1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
            if let Trouble::TurnsBack(_) = trouble {
                servers.turn_back(slot(id), from, to).await.unwrap();
                tokio::time::sleep(Duration::from_millis(rand::random_range(0..200))).await;
            }
            servers.move_slot(slot(id), from, to).await.unwrap();
        }
        Trouble::FailsOver(master) => {
            // It answers nothing any more, not even this.
            let end = redis::cmd("SHUTDOWN").arg("NOSAVE").arg("NOW").to_owned();
            drop(servers.ask::<()>(master, &end).await);
            servers.take_over(master + 3).await.unwrap();
        }
    }
}

/// Strikes while rows are written and the packages read; in the end all of them read what the table has.
async fn run(world: &World, troubles: &[Trouble]) {
    let run = Arc::new(Run {
        told: Mutex::new(None),
        moving: AtomicUsize::new(0),
        is_over: AtomicBool::new(false),
    });
    let callers = Caller::start_all(&world.servers.url(), "test");
    let readers: Vec<_> = callers.into_iter().map(|caller| read(Arc::clone(&run), caller)).collect();
    let url = world.rig.postgres.url();
    let strikes = async {
        for trouble in troubles {
            strike(world, &run, *trouble).await;
            world.is_covered().await;
        }
        run.is_over.store(true, Ordering::Relaxed);
    };
    let (versions, ()) = tokio::join!(run.write(&url), strikes);
    let mut callers = Vec::new();
    for reader in readers {
        let (caller, seen) = tokio::task::spawn_blocking(move || reader.join()).await.unwrap().unwrap();
        let Seen { fresh, not_fresh, unreachable, violations } = seen;
        println!("{}: {fresh} fresh, {not_fresh} not, {unreachable} unreachable", caller.name);
        assert!(violations.is_empty(), "{} violations, such as {}", violations.len(), violations[0]);
        assert!(20 < fresh, "{}: {fresh} fresh, {not_fresh} not, {unreachable} unreachable", caller.name);
        callers.push(caller);
    }
    let (token, ids) = (world.token().await, (0..ROWS).collect::<Vec<_>>());
    for caller in &mut callers {
        let found = caller.call("get_many", json!(["item", ids]), json!({ "token": token, "wait": 90 }));
        for (id, value) in found.as_array().unwrap().iter().enumerate() {
            let is_so = value.is_null() || value["version"] == json!(versions[id]);
            assert!(is_so, "{}: item {id} is {value}, not version {}", caller.name, versions[id]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_packages_read_a_cluster_and_their_events_are_applied() {
    let world = World::start(TABLES, CONFIG, 0).await;
    world.is_covered().await;
    let token = world.token().await;
    let fresh = || json!({ "token": token, "wait": 90 });
    for mut caller in Caller::start_all(&world.servers.url(), "test") {
        let name = caller.name;
        let item = |id: usize| json!({ "id": id, "version": 1 });
        assert_eq!(caller.call("get", json!(["item", 7]), fresh()), item(7), "{name}");
        assert_eq!(caller.call("get_key", json!(["item:7"]), json!({})), item(7));
        let many = caller.call("get_many", json!(["item", [1, 999, 2, 3, 4]]), fresh());
        assert_eq!(many, json!([item(1), null, item(2), item(3), item(4)]), "{name}");
        let fields = json!([{ "id": "5", "version": "1" }, null]);
        assert_eq!(caller.call("get_many", json!(["fields", [5, 999]]), fresh()), fields);
        let loose = caller.call("read", json!(["loose", 5]), json!({ "token": token }));
        assert_eq!(loose["freshness"], "unknown", "{name}: {loose}");
        for (id, event) in [(8, json!({ "key": "loose:8" })), (9, json!({ "dataset": "loose", "ids": [9] }))]
        {
            let stale = redis::cmd("SET").arg(format!("loose:{id}")).arg("{\"old\":1}").to_owned();
            let at = ClusterSlot::of(format!("loose:{id}").as_bytes());
            let owner = world.servers.owner(at, 0).await.unwrap();
            world.servers.ask::<()>(owner, &stale).await.unwrap();
            let heard = caller.call("publish", json!([event]), json!({}));
            assert!(heard.as_u64().is_some_and(|heard| 0 < heard), "{name}: {heard}");
            wait_until(&format!("the event of {name} is applied"), async || {
                let get = redis::cmd("GET").arg(format!("loose:{id}")).to_owned();
                let value: Option<String> = world.servers.ask(owner, &get).await.unwrap();
                let is_new = value.as_ref().is_some_and(|value| value.contains("version"));
                if is_new { Ok(()) } else { Err(format!("{value:?}")) }
            })
            .await;
        }
        let write = ("write", json!(["item", { "id": 1 }]), json!({ "timeout": 5 }));
        caller.fails_with(write, "InvalidWrite", &["on a cluster yet: write to Postgres"]);
        let durable = ("publish", json!([{ "key": "loose:8" }]), json!({ "durable": true }));
        caller.fails_with(durable, "InvalidInput", &["no stream for events: publish without `durable`"]);
    }
    for mut caller in Caller::start_all(&world.servers.url(), "tset") {
        let parts = ["tset", "redis cluster at 127.0.0.1", "no shard has a directory"];
        caller.fails_with(("get", json!(["item", 7]), json!({})), "NotRegistered", &parts);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_packages_call_fresh_is_fresh_while_cluster_slots_move() {
    let world = World::start(TABLES, CONFIG, 0).await;
    world.is_covered().await;
    let troubles: Vec<Trouble> =
        (0..12).map(|id| if id % 3 == 2 { Trouble::TurnsBack(id) } else { Trouble::Moves(id) }).collect();
    run(&world, &troubles).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_packages_call_fresh_is_fresh_after_masters_have_failed_over() {
    let world = World::start(TABLES, CONFIG, 1).await;
    world.is_covered().await;
    let troubles = [
        Trouble::Moves(3),
        Trouble::FailsOver(0),
        Trouble::Moves(4),
        Trouble::Moves(3),
        Trouble::FailsOver(2),
    ];
    run(&world, &troubles).await;
}

/// Users have the rules of `acl` on every node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_packages_read_and_publish_on_a_cluster_with_the_rights_of_acl_alone() {
    let world = World::start(TABLES, CONFIG, 0).await;
    world.is_covered().await;
    let (code, said) = world.cli.run(&["acl"]);
    assert_eq!(code, 0, "{said}");
    for line in said.lines().filter(|line| line.starts_with("ACL SETUSER")) {
        let mut rules = redis::Cmd::new();
        for word in line.split(' ').chain([">secret"]) {
            rules.arg(word);
        }
        for position in 0..world.servers.len() {
            world.servers.ask::<()>(position, &rules).await.unwrap();
        }
    }
    let user = |kind: &str| {
        let login = format!("redis+cluster://cachekeeper-{kind}:secret@");
        world.servers.url().replace("redis+cluster://", &login)
    };
    let token = world.token().await;
    let options = json!({ "token": token, "wait": 90 });
    for mut caller in Caller::start_all(&user("reader"), "test") {
        let item = caller.call("get", json!(["item", 7]), options.clone());
        assert_eq!(item, json!({ "id": 7, "version": 1 }), "{}", caller.name);
        let fields = caller.call("get", json!(["fields", 7]), options.clone());
        assert_eq!(fields, json!({ "id": "7", "version": "1" }), "{}", caller.name);
        let event = ("publish", json!([{ "key": "loose:8" }]), json!({}));
        caller.fails_with(event, "PermissionDenied", &["publish", "cachekeeper acl --for publisher"]);
    }
    for mut caller in Caller::start_all(&user("publisher"), "test") {
        let heard = caller.call("publish", json!([{ "key": "loose:8" }]), json!({}));
        assert!(heard.as_u64().is_some_and(|heard| 0 < heard), "{}: {heard}", caller.name);
        let read = ("get", json!(["item", 7]), json!({}));
        caller.fails_with(read, "PermissionDenied", &["cachekeeper acl --for reader"]);
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn numbered(value: &Value) -> ClusterSlot {
    ClusterSlot::new(u16::try_from(value.as_u64().unwrap()).unwrap()).unwrap()
}

/// What the packages are tested with is what the worker does.
#[test]
fn cluster_slots_guards_and_what_is_covered_mean_the_same_to_the_worker() {
    let path = format!("{}/clients/vectors/cluster.json", env!("CARGO_MANIFEST_DIR"));
    let given: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let all = |name: &str| given[name].as_array().unwrap().clone();
    for one in all("slots") {
        assert_eq!(ClusterSlot::of(one["key"].as_str().unwrap().as_bytes()), numbered(&one["slot"]), "{one}");
    }
    let tags: Vec<&str> = ClusterSlot::all().map(ClusterSlot::hash_tag).collect();
    let checksum =
        tags.join(",").bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    assert_eq!(tags[..8], texts(&given["hash_tags"]["first"])[..]);
    assert_eq!(tags[tags.len() - 2..], texts(&given["hash_tags"]["last"])[..]);
    assert_eq!(json!(checksum), given["hash_tags"]["checksum"]);
    for one in all("guards") {
        let slot = ClusterSlot::of(one["key"].as_str().unwrap().as_bytes());
        assert_eq!(json!(Keyspace::new(one["namespace"].as_str().unwrap()).guard(slot)), one["guard"]);
    }
    for one in all("guard_texts") {
        let guard: Guard = one["text"].as_str().unwrap().parse().unwrap();
        assert_eq!(json!(guard.shard), one["shard"], "{one}");
    }
    for text in texts(&given["invalid_guards"]) {
        assert!(text.parse::<Guard>().is_err(), "{text:?}");
    }
    for one in all("covers") {
        let covered: ClusterSlotSet = one["text"].as_str().unwrap().parse().unwrap();
        for (name, is_in) in [("in", true), ("out", false)] {
            for slot in one[name].as_array().unwrap() {
                assert_eq!(covered.contains(numbered(slot)), is_in, "{one}");
            }
        }
    }
    for text in texts(&given["invalid_covers"]) {
        assert!(text.parse::<ClusterSlotSet>().is_err(), "{text:?}");
    }
    for one in all("verdicts") {
        assert_eq!(json!(verdict(&one)), one["freshness"], "{one}");
    }
}

/// What may be said of an entry in a cluster slot, as the protocol says it (R18, R20).
fn verdict(one: &Value) -> &'static str {
    let guard = one["guard"].as_str().and_then(|text| text.parse::<Guard>().ok());
    let watermark: Option<Watermark> = serde_json::from_value(one["watermark"].clone()).unwrap();
    let text = |name: &str| one[name].as_str().unwrap().to_owned();
    let (Some(guard), Some(watermark)) = (guard, watermark) else { return "unknown" };
    let is_covered = watermark.covers.as_ref().is_some_and(|covers| covers.contains(numbered(&one["slot"])));
    let is_of_shard = json!(guard.shard) == one["shard"] && is_covered;
    let token: Token = text("token").parse().unwrap();
    let is_of_life = text("token").starts_with(&format!("{}/", watermark.incarnation));
    if !is_of_shard || !is_of_life || watermark.not_covered.contains(&text("dataset")) {
        return "unknown";
    }
    let snapshot: Snapshot = watermark.snapshot.parse().unwrap();
    if token.is_seen_at(&watermark.incarnation, &snapshot) { "fresh" } else { "stale" }
}
