//! Readers as plain clients of the cluster, what they see, and the verdict on it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cachekeeper_engine::stores::redis::Watermark;
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::guard::Guard;
use cachekeeper_protocol::keyspace::Keyspace;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline};
use tokio::task::JoinHandle;

use super::super::load::ITEMS;
use super::super::verdict::{History, Lives, history};
use super::{Arena, settled};

/// Rows are more than readers look at: what a run reads often it sees change.
const READ: i64 = ITEMS;

/// One value as a reader saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub dataset: &'static str,
    pub id: i64,
    version: i64,
    /// The row of the group, and its version, where the value has them.
    group: Option<(i64, i64)>,
    /// What held for it: where, which watermark.
    covered: Option<Covered>,
}

/// A watermark that held for a value.
#[derive(Debug, Clone)]
struct Covered {
    incarnation: String,
    snapshot: String,
    /// For people: the port of the node and the guard, or that it is the watermark of the whole.
    by: String,
}

/// Everything that was seen, and what broke while it was seen.
#[derive(Default)]
pub struct Observed {
    pub seen: Mutex<Vec<Seen>>,
    pub broken: Mutex<Vec<String>>,
}

/// A client of the cluster that keeps a map of it, and asks for another one where it is sent elsewhere.
pub struct Reader {
    arena: Arc<Arena>,
    random: StdRng,
    keys: Keyspace,
    served: Vec<(usize, ClusterSlotSet)>,
    connections: HashMap<usize, MultiplexedConnection>,
    /// The newest version of each entry that was seen at a node in an epoch and a life of the nodes.
    newest: HashMap<(Vec<u8>, u64, usize, String), i64>,
}

/// What is read beside a value: the watermark, the epoch before it, the value, the epoch after it, the guard after it.
type Reply = (Option<String>, Option<Vec<u8>>, Option<String>, Option<Vec<u8>>, Option<String>);

/// Why nothing was read: the map is old, or the node does not answer.
struct NotRead;

pub fn start(arena: &Arc<Arena>, seed: u64) -> Vec<JoinHandle<()>> {
    let reader = |number: u64| Reader::new(arena, StdRng::seed_from_u64(seed ^ (100 + number)));
    let mut tasks: Vec<JoinHandle<()>> =
        (0..3).map(|number| tokio::spawn(reader(number).read_by_shard())).collect();
    tasks.push(tokio::spawn(reader(3).read_by_the_whole()));
    tasks
}

impl Reader {
    pub fn new(arena: &Arc<Arena>, random: StdRng) -> Self {
        let (arena, keys) = (Arc::clone(arena), Keyspace::new("test"));
        Self { arena, random, keys, served: Vec::new(), connections: HashMap::new(), newest: HashMap::new() }
    }

    async fn read_by_shard(mut self) {
        while !self.arena.is_over() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let dataset = if self.random.random_bool(0.3) { "lazy" } else { "item" };
            let id = self.random.random_range(0..READ);
            self.read(dataset, id).await;
        }
    }

    /// Reads an entry with the watermark of its shard: guard, watermark, value.
    pub async fn read(&mut self, dataset: &'static str, id: i64) {
        let key = format!("{dataset}:{id}");
        if self.try_read(dataset, id, &key).await.is_err() {
            self.ask_for_the_map().await;
        }
    }

    async fn try_read(&mut self, dataset: &'static str, id: i64, key: &str) -> Result<(), NotRead> {
        let slot = ClusterSlot::of(key.as_bytes());
        let life = self.arena.life.load(Ordering::SeqCst);
        let position = self.position_of(slot)?;
        let guard_key = self.keys.guard(slot);
        let mut first = redis::pipe();
        first.get(&guard_key);
        let (said,): (Option<String>,) = self.ask(position, &first).await?;
        let Some(guard) = said.as_ref().and_then(|said| said.parse::<Guard>().ok()) else { return Ok(()) };
        let shard = self.keys.of_shard(guard.shard);
        let of_shard = shard.metadata();
        let mut then = redis::pipe();
        then.get(&of_shard.watermark).hget(&of_shard.meta, "epoch").get(key);
        then.hget(&of_shard.meta, "epoch").get(&guard_key);
        let (watermark, epoch, value, epoch_after, said_after): Reply = self.ask(position, &then).await?;
        let Some(value) = value else { return Ok(()) };
        let mut seen = parse(dataset, id, &value);
        let is_one_life = life == self.arena.life.load(Ordering::SeqCst);
        if is_one_life && epoch == epoch_after && said == said_after {
            self.is_not_older(epoch.map(|epoch| (epoch, life, position, key.to_owned())), &seen);
        }
        if let Some(watermark) = watermark {
            let watermark: Watermark = serde_json::from_str(&watermark).unwrap();
            let by = format!("port {} {guard}", self.arena.ports[position]);
            seen.covered = covered(&watermark, dataset, slot, by);
        }
        self.arena.observed.seen.lock().unwrap().push(seen);
        Ok(())
    }

    /// Within an epoch no value goes back.
    fn is_not_older(&mut self, place: Option<(Vec<u8>, u64, usize, String)>, seen: &Seen) {
        let Some(place) = place else { return };
        let (port, before) = (self.arena.ports[place.2], self.newest.get(&place).copied());
        if before.is_some_and(|before| seen.version < before) {
            let text =
                format!("C1: fell from {before:?} within epoch {:02x?} at port {port}: {seen:?}", place.0);
            self.arena.observed.broken.lock().unwrap().push(text);
        }
        self.newest.insert(place, before.map_or(seen.version, |before| before.max(seen.version)));
    }

    /// Reads the watermark of the whole, then entries. While a node goes back two of them may serve the same, and a client goes to either:
    /// what is read then says nothing.
    async fn read_by_the_whole(mut self) {
        let arena = Arc::clone(&self.arena);
        let life = || arena.life.load(Ordering::SeqCst);
        while !arena.is_over() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let before = life();
            let Ok(watermark) = settled::watermark(&arena).await else { continue };
            for _ in 0..20 {
                let id = self.random.random_range(0..READ);
                let Ok(seen) = self.read_beside(&watermark, "item", id).await else {
                    self.ask_for_the_map().await;
                    continue;
                };
                if before.is_multiple_of(2) && before == life() {
                    arena.observed.seen.lock().unwrap().extend(seen);
                }
            }
        }
    }

    async fn read_beside(
        &mut self,
        watermark: &Watermark,
        dataset: &'static str,
        id: i64,
    ) -> Result<Option<Seen>, NotRead> {
        let key = format!("{dataset}:{id}");
        let slot = ClusterSlot::of(key.as_bytes());
        let mut get = redis::pipe();
        get.get(&key);
        let (value,): (Option<String>,) = self.ask(self.position_of(slot)?, &get).await?;
        let covered = covered(watermark, dataset, slot, "the whole".to_owned());
        Ok(value.map(|value| Seen { covered, ..parse(dataset, id, &value) }))
    }

    fn position_of(&self, slot: ClusterSlot) -> Result<usize, NotRead> {
        let found = self.served.iter().find(|(_, serves)| serves.contains(slot));
        found.map(|(position, _)| *position).ok_or(NotRead)
    }

    async fn ask<T: FromRedisValue>(&mut self, position: usize, pipeline: &Pipeline) -> Result<T, NotRead> {
        if !self.connections.contains_key(&position) {
            let url = format!("redis://127.0.0.1:{}/0", self.arena.ports[position]);
            // A node that was stopped keeps nobody waiting for long.
            let limit = Some(Duration::from_secs(1));
            let limits =
                AsyncConnectionConfig::new().set_connection_timeout(limit).set_response_timeout(limit);
            let client = Client::open(url).unwrap();
            let opened = client.get_multiplexed_async_connection_with_config(&limits).await;
            self.connections.insert(position, opened.map_err(|_down| NotRead)?);
        }
        let connection = self.connections.get_mut(&position).unwrap();
        let read: Result<T, redis::RedisError> = pipeline.query_async(connection).await;
        read.map_err(|error| {
            if error.code() != Some("MOVED") {
                self.connections.remove(&position);
            }
            NotRead
        })
    }

    /// Asks any node; where it does not answer, another one the next time.
    async fn ask_for_the_map(&mut self) {
        let position = self.random.random_range(0..self.arena.ports.len());
        let mut nodes = redis::pipe();
        nodes.cmd("CLUSTER").arg("NODES");
        let Ok((lines,)) = self.ask::<(String,)>(position, &nodes).await else { return };
        let served: Vec<_> = lines.lines().filter_map(|line| served_by(&self.arena.ports, line)).collect();
        // The one that has left knows itself alone.
        if !served.is_empty() {
            self.served = served;
        }
    }
}

/// Which of these nodes a line of `CLUSTER NODES` is about, and what it serves.
fn served_by(ports: &[u16], line: &str) -> Option<(usize, ClusterSlotSet)> {
    let words: Vec<&str> = line.split(' ').collect();
    let port: u16 = words.get(1)?.split('@').next()?.rsplit(':').next()?.parse().ok()?;
    let position = ports.iter().position(|known| *known == port)?;
    let ranges = words.iter().skip(8).filter_map(|range| range.parse::<ClusterSlotSet>().ok());
    let serves = ranges.fold(ClusterSlotSet::default(), |all, range| all.or(&range));
    (!serves.is_empty()).then_some((position, serves))
}

fn parse(dataset: &'static str, id: i64, value: &str) -> Seen {
    let value: BTreeMap<String, Option<i64>> = serde_json::from_str(value).unwrap();
    let number = |name: &str| value.get(name).copied().flatten();
    let group = number("grp").zip(number("group_version"));
    Seen { dataset, id, version: number("version").unwrap(), group, covered: None }
}

fn covered(watermark: &Watermark, dataset: &str, slot: ClusterSlot, by: String) -> Option<Covered> {
    let covers = watermark.covers.as_ref().is_some_and(|covers| covers.contains(slot));
    let is_covered = covers && !watermark.not_covered.iter().any(|name| name == dataset);
    let Watermark { incarnation, snapshot, .. } = watermark.clone();
    is_covered.then_some(Covered { incarnation, snapshot, by })
}

#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<String>,
    pub checked: usize,
    pub versions: usize,
    pub covered: usize,
    unknown_life: usize,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} reads checked, {} of them covered ({} of a life nobody noted), {} versions committed, {} violations",
            self.checked,
            self.covered,
            self.unknown_life,
            self.versions,
            self.violations.len()
        )
    }
}

/// Everything that was seen, against everything that was committed.
pub async fn judge(arena: &Arena, lives: &Lives) -> Verdict {
    let postgres = arena.postgres.lock().await;
    let items = history(&postgres, lives, "history", "is_deleted").await;
    let groups = history(&postgres, lives, "group_history", "false").await;
    drop(postgres);
    let seen = arena.observed.seen.lock().unwrap().clone();
    let mut verdict = Verdict {
        versions: items.values().map(BTreeMap::len).sum(),
        violations: arena.observed.broken.lock().unwrap().clone(),
        ..Verdict::default()
    };
    let mut known = HashSet::new();
    for one in &seen {
        let snapshot = one.covered.as_ref().map(|covered| covered.snapshot.as_str());
        if !known.insert((one.dataset, one.id, one.version, one.group, snapshot)) {
            continue;
        }
        verdict.checked += 1;
        // C2: what is readable was committed.
        let commit = items.get(&one.id).and_then(|versions| versions.get(&one.version));
        if commit.is_none_or(|commit| commit.is_deleted) {
            verdict.violations.push(format!("C2: never committed: {one:?}"));
        }
        let Some(covered) = &one.covered else { continue };
        let Some(life) = lives.of_incarnation(&covered.incarnation) else {
            verdict.unknown_life += 1;
            continue;
        };
        verdict.covered += 1;
        // C3: nothing newer is visible at the watermark, a delete least of all.
        let newer = is_older(&items, (one.id, one.version), life, &covered.snapshot);
        let of_group = one.group.and_then(|group| is_older(&groups, group, life, &covered.snapshot));
        for newer in newer.into_iter().chain(of_group) {
            let by = &covered.by;
            verdict.violations.push(format!("C3: {newer} is visible at the watermark ({by}): {one:?}"));
        }
    }
    verdict
}

/// The next version of a row, where a snapshot sees it.
fn is_older(all: &History, (id, version): (i64, i64), life: usize, snapshot: &str) -> Option<String> {
    let (newer, commit) = all.get(&id)?.range(version + 1..).next()?;
    let is_seen = commit.is_seen(life, snapshot);
    is_seen.then(|| format!("version {newer} of {id} (xid {})", commit.xid))
}
