//! Changes followed on the shards of a real cluster, while cluster slots move and nodes are flushed or fail over: what a plain client
//! of the cluster reads is never older than the watermark that covers it.

use std::time::Duration;

use cachekeeper_config::{Config, OnNewEpoch, Secret};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::epoch;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::load::{Cause, Job, Keys, LoadOptions, load};
use cachekeeper_engine::revalidation;
use cachekeeper_engine::shard::Follower;
use cachekeeper_engine::stores::postgres::Postgres;
use cachekeeper_engine::stores::redis::Cluster;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_testkit::servers::Cluster as Servers;
use tokio_util::sync::CancellationToken;

use crate::cluster_clients::{Clients, asked, check, slot};
use crate::support::{Rig, wait_until};

const ROWS: usize = 60;

/// Each change of a row leaves a line in its history, in the same transaction.
const TABLES: &str = "
    create table items (id int primary key, version int not null);
    create table history (id int, version int, xid xid8 default pg_current_xact_id());
    insert into items select n, 1 from generate_series(0, 59) n;
    insert into history (id, version) select n, 1 from generate_series(0, 59) n;";

const DATASETS: &str = r#"
    [dataset.item]
    query = "select i.id, i.version from items i"
    key = "item:{id}"
    format = "json"
    watch = [{ table = "items", key = { id = "id" } }]
"#;

/// The servers.
struct World {
    rig: Rig,
    servers: Servers,
}

/// A worker's part on every shard.
struct Followed {
    shards: Vec<Shard>,
}

/// What follows one shard; another one where the shard has another server.
struct Shard {
    context: Context,
    follower: Follower,
}

impl World {
    async fn start(replicas: usize) -> Self {
        Self { rig: Rig::start(TABLES).await, servers: Servers::start(3, replicas).await.unwrap() }
    }

    async fn follow(&self) -> Followed {
        let mut config: Config = self.rig.config(DATASETS);
        config.redis.url = Secret::new(self.servers.url());
        let cluster = Cluster::new(&config.redis, &config.service.namespace).unwrap().unwrap();
        let postgres = Postgres::new(&config.postgres).unwrap();
        let mut shards = Vec::new();
        let map = cluster.map().await.unwrap();
        for placed in cluster.placed_shards(&map, &[]).await.unwrap() {
            let context = Context::of_shard(&config, &postgres, &cluster, &placed).unwrap();
            let context = context.registering(&config);
            epoch::ensure(&context, "").await.unwrap();
            context.set_coverage(coverage::look(&context, true).await.unwrap());
            shards.push(Shard { follower: Follower::new(&context), context });
        }
        assert_eq!(shards.len(), 3);
        Followed { shards }
    }

    /// Each entry that is there is the row of now.
    async fn agrees(&self) -> usize {
        let mut session = self.rig.postgres.session().await.unwrap();
        let mut found = 0;
        for id in 0..ROWS {
            let owner = self.servers.owner(slot(id), asked(&self.servers).await).await.unwrap();
            let value: Option<String> =
                self.servers.ask(owner, redis::cmd("GET").arg(format!("item:{id}"))).await.unwrap();
            let row = session
                .text(&format!("select version::text from items where id = {id}"))
                .await
                .unwrap()
                .unwrap();
            if let Some(value) = value {
                assert_eq!(value, format!("{{\"id\":{id},\"version\":{row}}}"));
                found += 1;
            }
        }
        found
    }
}

impl Followed {
    /// One round of all shards, and of whatever is pending on them.
    async fn round(&mut self) -> Result<(), EngineError> {
        let mut failure = None;
        for Shard { context, follower } in &mut self.shards {
            match follower.step(false).await {
                Ok(_) => follow_up(context).await?,
                Err(EngineError::RedisRolledBack) => epoch::renew(context).await?,
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Rounds until the watermarks of all shards cover all cluster slots, at the database as it is now.
    async fn settle(&mut self) {
        let now = self.shards[0].context.postgres.poll().await.unwrap().snapshot;
        let mut last = String::new();
        for _ in 0..2_000 {
            if let Err(error) = self.round().await {
                last = error.to_string();
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            let mut covers = ClusterSlotSet::default();
            for Shard { context, .. } in &self.shards {
                let watermark = context.redis.watermark().await.unwrap();
                let Some(watermark) = watermark.filter(|mark| mark.not_covered.is_empty()) else { continue };
                let snapshot = watermark.snapshot.parse::<cachekeeper_protocol::stamp::Snapshot>().unwrap();
                if now.stamp() <= snapshot.stamp() {
                    covers = covers.or(&watermark.covers.unwrap());
                }
            }
            if covers == ClusterSlotSet::all() {
                return;
            }
            last = format!("covers {covers}");
        }
        panic!("not settled: {last}");
    }

    /// Puts entries there that are missing.
    async fn fill(&self) {
        for Shard { context, .. } in &self.shards {
            let dataset = context.catalog.get("item").unwrap();
            let all = (0..ROWS).map(|id| format!("item:{id}"));
            let keys: Keys = all.map(|key| (key.clone(), dataset.read_key(&key).unwrap())).collect();
            drop(
                load(context, dataset, &keys, LoadOptions::because(Cause::Miss), &mut Job::uncounted()).await,
            );
        }
    }
}

/// What a worker does beside the changes: revalidations that are pending.
async fn follow_up(context: &Context) -> Result<(), EngineError> {
    let metadata = context.redis.metadata("").await?;
    let dataset = context.catalog.get("item").unwrap();
    if metadata.is_pending("item") {
        let cancel = CancellationToken::new();
        revalidation::run(context, dataset, OnNewEpoch::Refresh, &cancel).await?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Trouble {
    Moves,
    MovesHalfWay,
    IsFlushed,
}

async fn strike(servers: &Servers, trouble: Trouble, round: usize) {
    let slot = slot(round / 2 % ROWS);
    let from = servers.owner(slot, 0).await.unwrap();
    let to = (from + 1 + round % 2) % 3;
    match trouble {
        Trouble::Moves => servers.move_slot(slot, from, to).await.unwrap(),
        Trouble::MovesHalfWay => {
            servers.begin_move(slot, from, to).await.unwrap();
            servers.move_keys(slot, from, to, 1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..60))).await;
            servers.turn_back(slot, from, to).await.unwrap();
            tokio::time::sleep(Duration::from_millis(rand::random_range(0..60))).await;
            // Whoever finds it so lets the migration go on to its end.
            servers.move_slot(slot, from, to).await.unwrap();
        }
        Trouble::IsFlushed => servers.ask(from, &redis::cmd("FLUSHALL")).await.unwrap(),
    }
}

async fn run(trouble: Trouble, times: usize) {
    let world = World::start(0).await;
    let mut followed = world.follow().await;
    followed.settle().await;
    followed.fill().await;
    assert_eq!(world.agrees().await, ROWS);
    let clients = Clients::new(&world.rig, ROWS);
    let troubles = async {
        for round in 0..times {
            strike(&world.servers, trouble, round).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        clients.stop_after_enough().await;
    };
    let rounds = async {
        while !clients.are_stopped() {
            if followed.round().await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            followed.fill().await;
        }
    };
    let ((), seen, (), ()) = tokio::join!(clients.write(), clients.read(&world.servers), troubles, rounds);
    followed.settle().await;
    check(&world.rig, &seen).await;
    followed.fill().await;
    assert_eq!(world.agrees().await, ROWS);
}

#[tokio::test]
async fn reads_are_as_fresh_as_the_watermark_while_cluster_slots_move_and_come_back() {
    run(Trouble::Moves, 20).await;
}

#[tokio::test]
async fn reads_are_as_fresh_as_the_watermark_while_cluster_slots_move_half_way_and_turn_back() {
    run(Trouble::MovesHalfWay, 15).await;
}

#[tokio::test]
async fn reads_are_as_fresh_as_the_watermark_while_nodes_are_flushed() {
    run(Trouble::IsFlushed, 8).await;
}

#[tokio::test]
async fn a_master_that_fails_over_to_an_older_copy_is_followed_again() {
    let mut world = World::start(1).await;
    let mut followed = world.follow().await;
    followed.settle().await;
    followed.fill().await;
    let position = world.servers.owner(slot(0), 0).await.unwrap();
    let replica = position + 3;
    // The replica has the beginning.
    wait_until("the replica has the entry", async || {
        let mut connection = world.servers.connect(replica).await.map_err(|error| error.to_string())?;
        let mut read = redis::pipe();
        read.cmd("READONLY").ignore().get("item:0");
        let (value,): (Option<String>,) =
            read.query_async(&mut connection).await.map_err(|error| error.to_string())?;
        value.map(drop).ok_or_else(|| "it has not".to_owned())
    })
    .await;
    world.servers.cut_off(replica, position).await.unwrap();
    for id in 0..ROWS {
        let sql = format!(
            "with changed as (update items set version = 2 where id = {id} returning id, version)
             insert into history (id, version) select id, version from changed"
        );
        world.rig.postgres.execute(&sql).await.unwrap();
    }
    followed.settle().await;
    assert_eq!(world.agrees().await, ROWS);
    world.servers.node_mut(position).unwrap().kill();
    world.servers.take_over(replica).await.unwrap();
    // It has entries of before, and a cursor and a watermark of then.
    let mut followed = world.follow().await;
    followed.settle().await;
    let stale = wait_until("all nodes know the new master", async || {
        if world.servers.agrees_on(slot(0), replica).await { Ok(()) } else { Err("not yet".to_owned()) }
    });
    stale.await;
    world.agrees().await;
}
