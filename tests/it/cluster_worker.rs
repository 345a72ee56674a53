//! The worker itself on a real cluster: it fills, follows writes, and goes on while cluster slots move, a node is flushed and a master fails
//! over. What a plain client of the cluster reads is never older than the watermark that covers it, and in the end it is the table.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::Duration;

use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::keyspace::Keyspace;
use cachekeeper_testkit::servers::Cluster as Servers;
use tokio::time::Instant;

use crate::cluster_clients::{Clients, asked, check, slot};
use crate::support::{Cli, Rig, wait_until};

const ROWS: usize = 300;

/// Each change of a row leaves a line in its history, in the same transaction.
const TABLES: &str = "
    create table items (id int primary key, version int not null, kind int not null);
    create table history (id int, version int, xid xid8 default pg_current_xact_id());
    insert into items select n, 1, n % 5 from generate_series(0, 299) n;
    insert into history (id, version) select n, 1 from generate_series(0, 299) n;";

const CONFIG: &str = r#"
    [invalidation]
    stream = ""
    [dataset.item]
    query = "select i.id, i.version, i.kind from items i"
    key = "item:{id}"
    tags = ["kind:{kind}"]
    format = "json"
    on_miss = "load"
    warm = { on_start = true }
    watch = [{ table = "items", key = { id = "id" } }]
"#;

struct World {
    rig: Rig,
    servers: Servers,
    cli: Cli,
}

/// A worker, ended with its owner.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl World {
    async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &[]).await
    }

    async fn start_with(replicas: usize, arguments: &[&str]) -> Self {
        let rig = Rig::start(TABLES).await;
        let servers = Servers::start_with(3, replicas, arguments).await.unwrap();
        let cli = Cli::new(&rig, CONFIG).with("CACHEKEEPER__REDIS__URL", &servers.url());
        Self { rig, servers, cli }
    }

    fn worker(&self) -> Worker {
        let mut command = self.cli.command(&["run"]);
        command.stdout(Stdio::null());
        if std::env::var_os("CACHEKEEPER_SHOWN").is_none() {
            command.stderr(Stdio::null());
        }
        Worker(command.spawn().unwrap())
    }

    async fn value(&self, id: usize) -> Result<Option<String>, String> {
        let owner = self
            .servers
            .owner(slot(id), asked(&self.servers).await)
            .await
            .map_err(|error| error.to_string())?;
        let get = redis::cmd("GET").arg(format!("item:{id}")).to_owned();
        self.servers.ask(owner, &get).await.map_err(|error| error.to_string())
    }

    /// Waits until every row has its entry, and no other entry is there.
    async fn agrees(&self) {
        wait_until("entries are the rows", async || {
            let mut session = self.rig.postgres.session().await.unwrap();
            let rows = "select string_agg(id || ' ' || version || ' ' || kind, ',' order by id) from items";
            let rows = session.text(rows).await.unwrap().unwrap_or_default();
            let mut expected: BTreeMap<usize, String> = BTreeMap::new();
            for row in rows.split(',') {
                let mut words = row.split(' ').map(|word| word.parse::<usize>().unwrap());
                let (id, version, kind) =
                    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                let value = format!("{{\"id\":{id},\"version\":{version},\"kind\":{kind}}}");
                expected.insert(id, value);
            }
            for id in 0..ROWS + 20 {
                let value = self.value(id).await?;
                if value.as_ref() != expected.get(&id) {
                    return Err(format!("item:{id} is {value:?}, and {:?} is expected", expected.get(&id)));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until the watermark of all shards covers every cluster slot, at the database as it is now.
    async fn is_covered(&self) {
        let mut session = self.rig.postgres.session().await.unwrap();
        let now = session.text("select pg_current_snapshot()::text").await.unwrap().unwrap();
        let now: cachekeeper_protocol::stamp::Snapshot = now.parse().unwrap();
        wait_until("all is covered", async || {
            let status = self.cli.json(&["status"]);
            let watermark = status.get("watermark").cloned().unwrap_or_default();
            let watermark: Watermark =
                serde_json::from_value(watermark).map_err(|_none| format!("{status:#}"))?;
            let snapshot: cachekeeper_protocol::stamp::Snapshot = watermark.snapshot.parse().unwrap();
            let is_whole = watermark.covers == Some(ClusterSlotSet::all());
            if is_whole && watermark.not_covered.is_empty() && now.stamp() <= snapshot.stamp() {
                Ok(())
            } else {
                Err(format!("{watermark:?}"))
            }
        })
        .await;
    }
}

/// Rows whose cluster slots a new master is given.
const JOINED: std::ops::Range<usize> = 5..25;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// A cluster slot moves, with its entries.
    Moves(usize),
    /// The migration is turned back half way, and done later.
    TurnsBack(usize),
    /// A master without cluster slots is given some.
    Joins(usize),
    /// A master gives away all that it has, and leaves.
    Leaves(usize),
    /// A node answers no client for two seconds.
    IsPaused(usize),
    /// The home slot of the shard of a node moves.
    HomeMoves(usize),
    /// A node is flushed.
    IsFlushed(usize),
    /// A master ends, and its replica takes over.
    FailsOver(usize),
}

async fn strike(world: &World, trouble: Trouble) {
    match trouble {
        Trouble::Moves(id) => {
            let from = world.servers.owner(slot(id), asked(&world.servers).await).await.unwrap();
            let to = other_master(world, from).await;
            world.servers.move_slot(slot(id), from, to).await.unwrap();
        }
        Trouble::TurnsBack(id) => {
            let from = world.servers.owner(slot(id), asked(&world.servers).await).await.unwrap();
            let to = other_master(world, from).await;
            world.servers.begin_move(slot(id), from, to).await.unwrap();
            world.servers.move_keys(slot(id), from, to, 1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..150))).await;
            world.servers.turn_back(slot(id), from, to).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..150))).await;
            // Whoever finds it so lets the migration go on to its end.
            world.servers.move_slot(slot(id), from, to).await.unwrap();
        }
        Trouble::Joins(position) => {
            for id in JOINED {
                let from = world.servers.owner(slot(id), 0).await.unwrap();
                if from != position {
                    world.servers.move_slot(slot(id), from, position).await.unwrap();
                }
            }
        }
        Trouble::Leaves(position) => {
            for id in JOINED {
                if world.servers.owner(slot(id), 0).await.unwrap() == position {
                    world.servers.move_slot(slot(id), position, 0).await.unwrap();
                }
            }
            world.servers.remove(position).await.unwrap();
        }
        Trouble::IsPaused(position) => {
            let pause = redis::cmd("CLIENT").arg("PAUSE").arg(2_000).to_owned();
            world.servers.ask::<()>(position, &pause).await.unwrap();
        }
        Trouble::HomeMoves(position) => {
            let status = world.cli.json(&["status"]);
            let port = format!(":{}", world.servers.node(position).unwrap().port());
            let shards = status["shards"].as_array().cloned().unwrap_or_default();
            let shard = shards.iter().find(|shard| shard["address"].as_str().unwrap().ends_with(&port));
            let number = u32::try_from(shard.unwrap()["shard"].as_u64().unwrap()).unwrap();
            let home = Keyspace::new("test").of_shard(number).metadata().home_slot();
            let to = other_master(world, position).await;
            world.servers.move_slot(home, position, to).await.unwrap();
        }
        Trouble::IsFlushed(position) => {
            world.servers.ask::<()>(position, &redis::cmd("FLUSHALL")).await.unwrap();
        }
        Trouble::FailsOver(master) => {
            let replica = master + 3;
            // It answers nothing any more, not even this.
            let end = redis::cmd("SHUTDOWN").arg("NOSAVE").arg("NOW").to_owned();
            drop(world.servers.ask::<()>(master, &end).await);
            world.servers.take_over(replica).await.unwrap();
        }
    }
}

/// A master that is not this one.
async fn other_master(world: &World, not: usize) -> usize {
    let asked = asked(&world.servers).await;
    for id in 0..ROWS {
        let owner = world.servers.owner(slot(id), asked).await.unwrap();
        if owner != not {
            return owner;
        }
    }
    panic!("there is one master alone");
}

/// Strikes while rows are written and entries are read; after each strike all is covered again, without help.
async fn run(world: &World, troubles: &[Trouble]) {
    world.is_covered().await;
    world.agrees().await;
    let clients = Clients::new(&world.rig, ROWS);
    let strikes = async {
        for trouble in troubles {
            strike(world, *trouble).await;
            let began = Instant::now();
            world.is_covered().await;
            println!("{trouble:?}: covered again after {:.1} s", began.elapsed().as_secs_f64());
        }
        clients.stop_after_enough().await;
    };
    let ((), seen, ()) = tokio::join!(clients.write(), clients.read(&world.servers), strikes);
    world.is_covered().await;
    world.agrees().await;
    check(&world.rig, &seen).await;
}

#[tokio::test]
async fn a_worker_fills_a_cluster_and_follows_writes_tags_events_and_misses() {
    let world = World::start(0).await;
    world.cli.says(&["warm"], 1, &["no worker follows shard"]);
    let mut worker = world.worker();
    world.is_covered().await;
    world.agrees().await;
    let postgres = &world.rig.postgres;
    postgres.execute("update items set version = version + 1 where id % 3 = 0").await.unwrap();
    postgres.execute("insert into items select n, 7, n % 5 from generate_series(300, 309) n").await.unwrap();
    postgres.execute("delete from items where id between 10 and 19").await.unwrap();
    world.agrees().await;
    // What nobody has followed is told by an event, on whatever node it is published.
    let set = |id: usize| redis::cmd("SET").arg(format!("item:{id}")).arg("old").to_owned();
    for id in 0..9 {
        let owner = world.servers.owner(slot(id), 0).await.unwrap();
        world.servers.ask::<()>(owner, &set(id)).await.unwrap();
    }
    let event =
        redis::cmd("PUBLISH").arg("cache:invalidation").arg(r#"{"keys":["item:0","item:1"]}"#).to_owned();
    world.servers.ask::<u64>(1, &event).await.unwrap();
    let event = redis::cmd("PUBLISH").arg("cache:invalidation").arg(r#"{"tag":"kind:2"}"#).to_owned();
    world.servers.ask::<u64>(2, &event).await.unwrap();
    // The verbs work on every shard.
    world.cli.says(&["refresh", "item:3", "item:4", "--tag", "kind:1"], 0, &[" stored again"]);
    world.cli.says(&["invalidate", "item:5", "item:8"], 0, &[" stored again"]);
    world.agrees().await;
    world.cli.says(&["get", "item:5"], 0, &["\"id\": 5"]);
    for id in 20..40 {
        let owner = world.servers.owner(slot(id), 0).await.unwrap();
        world.servers.ask::<()>(owner, redis::cmd("DEL").arg(format!("item:{id}"))).await.unwrap();
        assert_eq!(world.value(id).await, Ok(None));
    }
    // Each of these reads was a miss on its node.
    world.agrees().await;
    world.cli.says(&["warm", "item"], 0, &["entries stored"]);
    world.is_covered().await;
    // Asked to, it ends in order.
    let asked = std::process::Command::new("kill").arg(worker.0.id().to_string()).status().unwrap();
    assert!(asked.success());
    let ended = tokio::task::spawn_blocking(move || worker.0.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[tokio::test]
async fn what_is_wrong_on_a_cluster_is_found_explained_and_mended() {
    let mut world = World::start(0).await;
    let toml = CONFIG.replace("on_miss = \"load\"", "scope = \"all\"");
    world.cli = Cli::new(&world.rig, &toml).with("CACHEKEEPER__REDIS__URL", &world.servers.url());
    let _worker = world.worker();
    world.is_covered().await;
    world.agrees().await;
    world.cli.says(&["audit"], 0, &["item: 300 entries looked at, 300 right"]);
    world.cli.says(&["explain", "item:1"], 0, &["\"version\":1", "redis", "the same"]);
    let at_owner = async |command: &str, id: usize, value: &[&str]| {
        let owner = world.servers.owner(slot(id), 0).await.unwrap();
        let command = redis::cmd(command).arg(format!("item:{id}")).arg(value).to_owned();
        world.servers.ask::<redis::Value>(owner, &command).await.unwrap();
    };
    for id in 0..9 {
        at_owner("SET", id, &["{\"id\":0,\"version\":0,\"kind\":0}"]).await;
    }
    at_owner("DEL", 9, &[]).await;
    at_owner("SET", 400, &["{\"id\":400,\"version\":0,\"kind\":0}"]).await;
    let found = ["300 entries looked at", "9 stale: ", "1 extra: item:400", "1 missing: item:9"];
    world.cli.says(&["audit"], 1, &found);
    world.cli.says(&["explain", "item:3"], 1, &["The entry is wrong"]);
    world.cli.says(&["explain", "item:9"], 0, &["Redis is to hold every row, and this one has no entry"]);
    let (_, sampled) = world.cli.run(&["audit", "--sample", "6"]);
    assert!(sampled.contains("6 entries looked at, chosen at random"), "{sampled}");
    // Of a cluster slot that is moving nothing is claimed, so nothing is accused.
    let from = world.servers.owner(slot(3), 0).await.unwrap();
    world.servers.begin_move(slot(3), from, (from + 1) % 3).await.unwrap();
    wait_until("the watermark leaves it out", async || {
        let status = world.cli.json(&["status"]);
        let covers = status["watermark"]["covers"].as_str().unwrap_or_default().to_owned();
        let covers: ClusterSlotSet = covers.parse().map_err(|_none| format!("{status:#}"))?;
        if covers.contains(slot(3)) || covers.is_empty() { Err(format!("{covers}")) } else { Ok(()) }
    })
    .await;
    world.cli.says(&["audit"], 1, &["8 stale", "1 unsure: item:3"]);
    world.cli.says(&["explain", "item:3"], 0, &["its cluster slot is moving, or has come from elsewhere"]);
    world.servers.turn_back(slot(3), from, (from + 1) % 3).await.unwrap();
    world.is_covered().await;
    world.cli.says(&["audit", "--fix"], 0, &["entries mended"]);
    world.cli.says(&["audit"], 0, &["300 right"]);
    world.agrees().await;
}

#[tokio::test]
async fn a_worker_goes_on_while_cluster_slots_move_and_nodes_are_flushed() {
    let troubles = [
        Trouble::Moves(0),
        Trouble::TurnsBack(1),
        Trouble::Moves(0),
        Trouble::IsFlushed(1),
        Trouble::HomeMoves(0),
        Trouble::Moves(2),
        Trouble::IsFlushed(0),
    ];
    let world = World::start(0).await;
    let _worker = world.worker();
    run(&world, &troubles).await;
}

#[tokio::test]
async fn two_workers_share_the_shards_one_of_them_dies_and_masters_come_and_go() {
    let mut world = World::start(0).await;
    let added = world.servers.add_master(&[]).await.unwrap();
    let (one, _other) = (world.worker(), world.worker());
    run(&world, &[Trouble::Joins(added), Trouble::IsPaused(1)]).await;
    drop(one);
    run(&world, &[Trouble::Moves(0), Trouble::Leaves(added), Trouble::IsPaused(0)]).await;
}

#[tokio::test]
async fn a_worker_goes_on_after_a_master_has_failed_over() {
    let world = World::start(1).await;
    let _worker = world.worker();
    let troubles = [Trouble::Moves(3), Trouble::FailsOver(0), Trouble::Moves(4), Trouble::FailsOver(1)];
    run(&world, &troubles).await;
}

#[tokio::test]
async fn a_worker_with_the_rights_of_acl_alone_goes_on_through_a_move_a_flush_and_a_failover() {
    let mut world = World::start_with(1, &["--notify-keyspace-events", "Em"]).await;
    let (code, said) = world.cli.run(&["acl", "--for", "worker"]);
    assert_eq!(code, 0, "{said}");
    let rules = said.lines().find_map(|line| line.strip_prefix("ACL ")).unwrap();
    let asked = |rules: &str| {
        let mut command = redis::cmd("ACL");
        for word in rules.split(' ') {
            command.arg(word);
        }
        command
    };
    let give = async |rules: &str| {
        for position in 0..world.servers.len() {
            world.servers.ask::<()>(position, &asked(rules)).await.unwrap();
        }
    };
    give(&format!("{rules} >secret")).await;
    let url = world.servers.url().replace("redis+cluster://", "redis+cluster://cachekeeper-worker:secret@");
    let cli = Cli::new(&world.rig, CONFIG).with("CACHEKEEPER__REDIS__URL", &url);
    for lacking in ["cluster|myid", "cluster|nodes", "info"] {
        give(&format!("SETUSER cachekeeper-worker -{lacking}")).await;
        cli.says(&["check"], 78, &[lacking, "the user"]);
        give(&format!("SETUSER cachekeeper-worker +{lacking}")).await;
    }
    cli.says(&["check"], 0, &["configuration is right"]);
    for position in 0..world.servers.len() {
        world.servers.ask::<()>(position, redis::cmd("ACL").arg("LOG").arg("RESET")).await.unwrap();
    }
    world.cli = cli;
    let _worker = world.worker();
    run(&world, &[Trouble::Moves(0), Trouble::TurnsBack(1), Trouble::IsFlushed(1), Trouble::FailsOver(0)])
        .await;
    for position in 1..world.servers.len() {
        let log: Vec<redis::Value> = world.servers.ask(position, redis::cmd("ACL").arg("LOG")).await.unwrap();
        let shown = log.iter().map(|entry| format!("{entry:?}"));
        // Drivers introduce themselves, and settings are asked for where that may be.
        let is_needed =
            |entry: &String| !["client|setinfo", "config|get"].iter().any(|it| entry.contains(it));
        let refused: Vec<String> = shown.filter(is_needed).collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }
    world.cli.says(&["audit"], 0, &["right"]);
    world.cli.says(&["status"], 0, &["16384 cluster slots"]);
}

#[tokio::test]
async fn what_does_not_work_on_a_cluster_is_refused_in_one_sentence() {
    let world = World::start(0).await;
    let with_stream = Cli::new(&world.rig, &CONFIG.replace("stream = \"\"", ""));
    let with_stream = with_stream.with("CACHEKEEPER__REDIS__URL", &world.servers.url());
    with_stream.says(&["run"], 78, &["no stream of events is read on a Redis Cluster yet", "stream = \"\""]);
    with_stream.says(&["check"], 78, &["no stream of events is read on a Redis Cluster yet"]);
    let written =
        "    [dataset.item.write]\n    statement = \"update items set version = :version where id = :id\"\n";
    let with_writes = Cli::new(&world.rig, &format!("{CONFIG}{written}"));
    let with_writes = with_writes.with("CACHEKEEPER__REDIS__URL", &world.servers.url());
    with_writes.says(&["run"], 78, &["nothing is written through on a Redis Cluster yet"]);
    world.cli.says(&["check"], 0, &["configuration is right"]);
    for verb in [&["purge"][..], &["plan"], &["writes", "status"]] {
        world.cli.says(verb, 78, &["does not work on a Redis Cluster yet", "docs/cluster.md"]);
    }
    let one = world.servers.node(0).unwrap().url();
    let single = Cli::new(&world.rig, CONFIG).with("CACHEKEEPER__REDIS__URL", &one);
    single.says(&["run"], 78, &["a node of a cluster", "redis+cluster://"]);
}
