//! Clients of a real cluster: one writes rows of `items` and their history, one reads entries as any client of the cluster does. What was
//! read is checked against the history.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::guard::Guard;
use cachekeeper_protocol::keyspace::Keyspace;
use cachekeeper_testkit::servers::{Cluster as Servers, Session};

use crate::support::{Rig, wait_until};

/// So many writes and covered reads at least are made beside the trouble.
const ENOUGH: usize = 50;

/// The cluster slot of a row's entry.
pub fn slot(id: usize) -> ClusterSlot {
    ClusterSlot::of(format!("item:{id}").as_bytes())
}

/// The position of a node that runs.
pub async fn asked(servers: &Servers) -> usize {
    for position in 0..servers.len() {
        if servers.connect(position).await.is_ok() {
            return position;
        }
    }
    panic!("no node runs");
}

/// What a client saw at one moment.
pub struct Seen {
    id: usize,
    version: i64,
    watermark: Watermark,
}

/// Two clients, until they are told to stop.
pub struct Clients {
    url: String,
    rows: usize,
    stop: AtomicBool,
    written: AtomicUsize,
    covered: AtomicUsize,
}

impl Clients {
    /// Of the first `rows` rows.
    pub fn new(rig: &Rig, rows: usize) -> Self {
        Self {
            url: rig.postgres.url(),
            rows,
            stop: AtomicBool::new(false),
            written: AtomicUsize::new(0),
            covered: AtomicUsize::new(0),
        }
    }

    /// Whether the clients are to stop.
    pub fn are_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Stops both, once enough was written and read to tell something.
    pub async fn stop_after_enough(&self) {
        wait_until("enough is written and read", async || {
            let (written, covered) =
                (self.written.load(Ordering::Relaxed), self.covered.load(Ordering::Relaxed));
            let told = format!("{written} writes, {covered} covered reads");
            if ENOUGH < written && ENOUGH < covered { Ok(()) } else { Err(told) }
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Writes until it is told to stop. Each change of a row leaves a line in its history, in the same transaction.
    pub async fn write(&self) {
        let mut session = Session::open(&self.url).await.unwrap();
        while !self.are_stopped() {
            let id = rand::random_range(0..self.rows);
            let sql = format!(
                "with changed as (update items set version = version + 1 where id = {id} returning id, version)
                 insert into history (id, version) select id, version from changed"
            );
            session.execute(&sql).await.unwrap();
            self.written.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Reads as a plain client of the cluster does, on one connection to the owner: guard, watermark, value. Answers what was covered.
    pub async fn read(&self, servers: &Servers) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut connections = BTreeMap::new();
        while !self.are_stopped() {
            let id = rand::random_range(0..self.rows);
            tokio::time::sleep(Duration::from_micros(500)).await;
            let at = rand::random_range(0..servers.len());
            let Ok(owner) = servers.owner(slot(id), at).await else { continue };
            let connection = match connections.entry(owner) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => match servers.connect(owner).await {
                    Ok(connection) => place.insert(connection),
                    Err(_is_down) => continue,
                },
            };
            match read_one(connection, id).await {
                Err(_moved_or_down) => drop(connections.remove(&owner)),
                Ok(None) => {}
                Ok(Some(one)) => {
                    self.covered.fetch_add(1, Ordering::Relaxed);
                    seen.push(one);
                }
            }
        }
        let written = self.written.load(Ordering::Relaxed);
        println!("{written} writes, {} covered reads", seen.len());
        seen
    }
}

/// None: there is no entry, or its freshness is not told.
async fn read_one(
    connection: &mut redis::aio::MultiplexedConnection,
    id: usize,
) -> redis::RedisResult<Option<Seen>> {
    let namespace = Keyspace::new("test");
    let guard: Option<String> =
        redis::cmd("GET").arg(namespace.guard(slot(id))).query_async(connection).await?;
    let Some(guard) = guard.and_then(|guard| guard.parse::<Guard>().ok()) else { return Ok(None) };
    let keys = namespace.of_shard(guard.shard);
    let mut pipeline = redis::pipe();
    pipeline.get(&keys.metadata().watermark).get(format!("item:{id}"));
    let (watermark, value): (Option<String>, Option<String>) = pipeline.query_async(connection).await?;
    let (Some(watermark), Some(value)) = (watermark, value) else { return Ok(None) };
    let watermark: Watermark = serde_json::from_str(&watermark).unwrap();
    if !watermark.covers.as_ref().unwrap().contains(slot(id)) || !watermark.not_covered.is_empty() {
        return Ok(None);
    }
    let value: serde_json::Value = serde_json::from_str(&value).unwrap();
    Ok(Some(Seen { id, version: value["version"].as_i64().unwrap(), watermark }))
}

/// Checks everything that was seen: it is as new as its watermark says, and no entry goes back within an epoch.
pub async fn check(rig: &Rig, seen: &[Seen]) {
    let mut session = rig.postgres.session().await.unwrap();
    let mut newest: BTreeMap<(usize, &str), i64> = BTreeMap::new();
    let mut last: BTreeMap<(usize, &str), i64> = BTreeMap::new();
    for Seen { id, version, watermark } in seen {
        let expected = match newest.entry((*id, watermark.snapshot.as_str())) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let sql = format!(
                    "select max(version)::text from history where id = {id} and pg_visible_in_snapshot(xid, '{}')",
                    watermark.snapshot
                );
                *place.insert(session.text(&sql).await.unwrap().unwrap().parse().unwrap())
            }
        };
        assert!(expected <= *version, "item {id} is version {version}, but {watermark:?} has {expected}");
        let before = last.insert((*id, watermark.epoch.as_str()), *version).unwrap_or_default();
        assert!(before <= *version, "item {id} went from version {before} to {version} in {watermark:?}");
    }
}
