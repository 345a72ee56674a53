//! A private Redis Cluster: masters that share the cluster slots evenly, and replicas of them.

mod parting;

use std::collections::BTreeMap;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, FromRedisValue, RedisError, Value};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use tokio::time::Instant;

use super::{READY_WITHIN, Redis, ServerError, failed, free_port};
use crate::proxy::Proxy;

/// A running cluster. Nodes are named by their position: the masters of the beginning, their replicas, then what was added.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Redis>,
    /// What stands before the bus of each node, where nodes can be parted.
    buses: Vec<Proxy>,
}

const CLUSTER_SLOTS: usize = 16_384;
/// After which time a node is down to others, in milliseconds. Whoever is not seen for so long may be replaced.
const NODE_TIMEOUT_MS: &str = "1000";
const MIGRATE_WITHIN_MS: usize = 5_000;

/// What a command of a cluster is asked with.
fn cluster(words: &[&str]) -> Cmd {
    let mut command = ::redis::cmd("CLUSTER");
    for word in words {
        command.arg(word);
    }
    command
}

impl Cluster {
    /// Starts masters, each with this many replicas. Waits until all of them know that the cluster is whole.
    pub async fn start(masters: usize, replicas: usize) -> Result<Self, ServerError> {
        Self::start_with(masters, replicas, &[]).await
    }

    /// The same with further arguments for every node, as on its command line.
    pub async fn start_with(
        masters: usize,
        replicas: usize,
        arguments: &[&str],
    ) -> Result<Self, ServerError> {
        let mut cluster = Self { nodes: Vec::new(), buses: Vec::new() };
        for _ in 0..masters * (1 + replicas) {
            cluster.nodes.push(start_node(arguments).await?);
        }
        cluster.begin(masters).await?;
        Ok(cluster)
    }

    /// Gives the cluster slots to the first nodes, and has the others follow them.
    async fn begin(&self, masters: usize) -> Result<(), ServerError> {
        for (position, slots) in shares(masters).into_iter().enumerate() {
            let mut command = ::redis::cmd("CLUSTER");
            command.arg("ADDSLOTSRANGE");
            for range in slots.ranges() {
                command.arg(*range.start()).arg(*range.end());
            }
            self.ask::<()>(position, &command).await?;
            let epoch = (position + 1).to_string();
            self.ask::<()>(position, &cluster(&["SET-CONFIG-EPOCH", &epoch])).await?;
        }
        for position in 1..self.nodes.len() {
            self.meet(position).await?;
        }
        self.settled().await?;
        for position in masters..self.nodes.len() {
            self.follow(position, position % masters).await?;
        }
        self.replicated(masters..self.nodes.len()).await
    }

    /// `redis+cluster://127.0.0.1:PORT,…`, with the nodes of the beginning.
    #[must_use]
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", nodes.join(","))
    }

    /// How many nodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The server at this position.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, position: usize) -> Result<&Redis, ServerError> {
        self.nodes.get(position).ok_or_else(|| failed("finding a node of the cluster", position))
    }

    /// The same, to kill it or to start it again.
    ///
    /// # Errors
    /// There is none.
    pub fn node_mut(&mut self, position: usize) -> Result<&mut Redis, ServerError> {
        self.nodes.get_mut(position).ok_or_else(|| failed("finding a node of the cluster", position))
    }

    /// Adds a master without cluster slots. Answers its position.
    pub async fn add_master(&mut self, arguments: &[&str]) -> Result<usize, ServerError> {
        if self.buses.is_empty() {
            self.nodes.push(start_node(arguments).await?);
        } else {
            self.add_divisible(arguments).await?;
        }
        let position = self.nodes.len() - 1;
        self.meet(position).await?;
        self.settled().await?;
        Ok(position)
    }

    /// Has a node that was removed join again, as another node, empty and without cluster slots.
    pub async fn join(&self, position: usize) -> Result<(), ServerError> {
        self.ask::<()>(position, &::redis::cmd("FLUSHALL")).await?;
        self.ask::<()>(position, &cluster(&["RESET", "HARD"])).await?;
        self.meet(position).await?;
        let id = self.id(position).await?;
        self.wait("a node to join", async || self.is_known(&id).await).await
    }

    /// Whether every node knows this one, and that the cluster is whole.
    async fn is_known(&self, id: &str) -> bool {
        for position in 0..self.nodes.len() {
            let lines: String = self.ask(position, &cluster(&["NODES"])).await.unwrap_or_default();
            let info: String = self.ask(position, &cluster(&["INFO"])).await.unwrap_or_default();
            let is_known = lines.lines().any(|line| line.starts_with(id) && !line.contains("handshake"));
            if !is_known || !info.contains("cluster_state:ok") {
                return false;
            }
        }
        true
    }

    /// Has all others forget a node that serves nothing any more. Its server goes on, alone.
    pub async fn remove(&self, position: usize) -> Result<(), ServerError> {
        let id = self.id(position).await?;
        for other in (0..self.nodes.len()).filter(|other| *other != position) {
            if self.is_running(other).await {
                self.ask::<()>(other, &cluster(&["FORGET", &id])).await?;
            }
        }
        self.ask(position, &cluster(&["RESET", "SOFT"])).await
    }

    /// The position of the master that serves a cluster slot, as this node knows it.
    pub async fn owner(&self, slot: ClusterSlot, asked: usize) -> Result<usize, ServerError> {
        let lines: String = self.ask(asked, &cluster(&["NODES"])).await?;
        let line = lines.lines().find(|line| ranges(line).contains(slot)).unwrap_or_default();
        let address =
            line.split(' ').nth(1).and_then(|address| address.split('@').next()).unwrap_or_default();
        let is_it = |node: &Redis| address.ends_with(&format!(":{}", node.port()));
        self.nodes.iter().position(is_it).ok_or_else(|| failed("finding the owner of a cluster slot", lines))
    }

    /// The cluster slots that a node itself says it serves.
    pub async fn served(&self, position: usize) -> Result<ClusterSlotSet, ServerError> {
        let lines: String = self.ask(position, &cluster(&["NODES"])).await?;
        Ok(lines.lines().find(|line| line.contains("myself")).map(ranges).unwrap_or_default())
    }

    /// Whether all of these nodes run, know of the same masters, and are in step where they are replicas.
    ///
    /// # Errors
    /// What is not so.
    pub async fn agree(&self, members: &[usize]) -> Result<(), String> {
        let mut first: Option<BTreeMap<String, ClusterSlotSet>> = None;
        for position in members {
            let said = |error: ServerError| error.to_string();
            let lines: String = self.ask(*position, &cluster(&["NODES"])).await.map_err(said)?;
            let info: String = self.ask(*position, &cluster(&["INFO"])).await.map_err(said)?;
            let mut replication = ::redis::cmd("INFO");
            let told: String = self.ask(*position, replication.arg("replication")).await.map_err(said)?;
            let is_behind = told.contains("role:slave") && !told.contains("master_link_status:up");
            let served = |line: &str| Some((line.split(' ').next()?.to_owned(), ranges(line)));
            let mut served: BTreeMap<_, _> = lines.lines().filter_map(served).collect();
            served.retain(|_, ranges| !ranges.is_empty());
            let is_alike = first.as_ref().is_none_or(|first| *first == served);
            if is_behind || !is_alike || !info.contains("cluster_state:ok") {
                return Err(format!("node {position}: {info}{told}{lines}"));
            }
            first = Some(served);
        }
        Ok(())
    }

    /// Whether all running nodes know that this one serves a cluster slot. One that was removed is not asked.
    pub async fn agrees_on(&self, slot: ClusterSlot, owner: usize) -> bool {
        for position in 0..self.nodes.len() {
            let info: Result<String, _> = self.ask(position, &cluster(&["INFO"])).await;
            let is_asked = info.is_ok_and(|info| !info.contains("cluster_known_nodes:1\r"));
            if is_asked && self.owner(slot, position).await.ok() != Some(owner) {
                return false;
            }
        }
        true
    }

    /// Begins to move a cluster slot: both nodes show it as moving.
    pub async fn begin_move(&self, slot: ClusterSlot, from: usize, to: usize) -> Result<(), ServerError> {
        let (source, target) = (self.id(from).await?, self.id(to).await?);
        let number = slot.to_string();
        self.ask::<()>(to, &cluster(&["SETSLOT", &number, "IMPORTING", &source])).await?;
        self.ask(from, &cluster(&["SETSLOT", &number, "MIGRATING", &target])).await
    }

    /// Moves at most so many keys of it. Answers how many.
    pub async fn move_keys(
        &self,
        slot: ClusterSlot,
        from: usize,
        to: usize,
        most: usize,
    ) -> Result<usize, ServerError> {
        let listed = cluster(&["GETKEYSINSLOT", &slot.to_string(), &most.to_string()]);
        let keys: Vec<Vec<u8>> = self.ask(from, &listed).await?;
        for key in &keys {
            self.move_key(key, from, to).await?;
        }
        Ok(keys.len())
    }

    /// Moves one key, wherever its cluster slot is.
    pub async fn move_key(&self, key: &[u8], from: usize, to: usize) -> Result<(), ServerError> {
        let mut command = ::redis::cmd("MIGRATE");
        command.arg("127.0.0.1").arg(self.node(to)?.port()).arg(key).arg(0).arg(MIGRATE_WITHIN_MS);
        self.ask::<String>(from, command.arg("REPLACE")).await.map(drop)
    }

    /// Ends a migration: the cluster slot is the target's, whether all keys have moved or not.
    pub async fn end_move(&self, slot: ClusterSlot, from: usize, to: usize) -> Result<(), ServerError> {
        let (number, target) = (slot.to_string(), self.id(to).await?);
        for position in [to, from] {
            self.ask::<()>(position, &cluster(&["SETSLOT", &number, "NODE", &target])).await?;
        }
        Ok(())
    }

    /// Turns a migration back: what has moved stays at the target, unless it is moved back first.
    pub async fn turn_back(&self, slot: ClusterSlot, from: usize, to: usize) -> Result<(), ServerError> {
        for position in [from, to] {
            self.ask::<()>(position, &cluster(&["SETSLOT", &slot.to_string(), "STABLE"])).await?;
        }
        Ok(())
    }

    /// Moves a cluster slot with all its keys, and waits until all nodes know.
    pub async fn move_slot(&self, slot: ClusterSlot, from: usize, to: usize) -> Result<(), ServerError> {
        self.begin_move(slot, from, to).await?;
        while self.move_keys(slot, from, to, 1_000).await? != 0 {}
        self.end_move(slot, from, to).await?;
        self.wait("a cluster slot to move", async || self.agrees_on(slot, to).await).await
    }

    /// Keeps a replica from receiving anything more. Its master does not know why.
    pub async fn cut_off(&self, replica: usize, master: usize) -> Result<(), ServerError> {
        let mut command = ::redis::cmd("CONFIG");
        command
            .arg("SET")
            .arg("masterauth")
            .arg("no such password")
            .arg("cluster-replica-validity-factor")
            .arg(0);
        self.ask::<()>(replica, &command).await?;
        let mut command = ::redis::cmd("CLIENT");
        self.ask::<u64>(master, command.arg("KILL").arg("TYPE").arg("replica")).await.map(drop)
    }

    /// Lets it receive again.
    pub async fn connect_again(&self, replica: usize) -> Result<(), ServerError> {
        let mut command = ::redis::cmd("CONFIG");
        self.ask(replica, command.arg("SET").arg("masterauth").arg("")).await
    }

    /// Makes a replica master in place of its own, which need not run, with what it has received.
    pub async fn take_over(&self, replica: usize) -> Result<(), ServerError> {
        self.ask::<()>(replica, &cluster(&["FAILOVER", "TAKEOVER"])).await?;
        self.wait("a replica to take over", async || self.is_master(replica).await).await
    }

    /// Whether a node answers and takes itself for a master.
    pub async fn is_master(&self, position: usize) -> bool {
        let role: Result<Vec<Value>, _> = self.ask(position, &::redis::cmd("ROLE")).await;
        let name = role.ok().and_then(|role| String::from_redis_value(role.into_iter().next()?).ok());
        name.as_deref() == Some("master")
    }

    /// Sends a command to a node, whatever cluster slot it is about.
    pub async fn ask<T: FromRedisValue>(&self, position: usize, command: &Cmd) -> Result<T, ServerError> {
        let said = |error: RedisError| failed(format!("a command on node {position}"), error);
        let mut connection = self.connect(position).await?;
        command.query_async(&mut connection).await.map_err(said)
    }

    /// A connection to a node.
    pub async fn connect(&self, position: usize) -> Result<MultiplexedConnection, ServerError> {
        let client = ::redis::Client::open(self.node(position)?.url());
        let client = client.map_err(|error| failed("connecting", error))?;
        client.get_multiplexed_async_connection().await.map_err(|error| failed("connecting", error))
    }

    async fn id(&self, position: usize) -> Result<String, ServerError> {
        self.ask(position, &cluster(&["MYID"])).await
    }

    async fn is_running(&self, position: usize) -> bool {
        self.ask::<String>(position, &::redis::cmd("PING")).await.is_ok()
    }

    async fn meet(&self, position: usize) -> Result<(), ServerError> {
        let port = self.node(position)?.port().to_string();
        let bus = self.bus_port(position).await?.to_string();
        self.ask(0, &cluster(&["MEET", "127.0.0.1", &port, &bus])).await
    }

    async fn bus_port(&self, position: usize) -> Result<u16, ServerError> {
        if let Some(bus) = self.buses.get(position) {
            return Ok(bus.port());
        }
        let mut command = ::redis::cmd("CONFIG");
        let (_, port): (String, u16) = self.ask(position, command.arg("GET").arg("cluster-port")).await?;
        Ok(port)
    }

    async fn follow(&self, position: usize, master: usize) -> Result<(), ServerError> {
        let id = self.id(master).await?;
        self.wait("a node to know its master", async || {
            self.ask::<()>(position, &cluster(&["REPLICATE", &id])).await.is_ok()
        })
        .await
    }

    /// Waits until every node knows all others, and that the cluster is whole.
    pub async fn settled(&self) -> Result<(), ServerError> {
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        self.wait("the nodes to know each other", async || {
            for position in 0..self.nodes.len() {
                let info: String = self.ask(position, &cluster(&["INFO"])).await.unwrap_or_default();
                if !info.contains("cluster_state:ok") || !info.contains(&known) {
                    return false;
                }
            }
            true
        })
        .await
    }

    async fn replicated(&self, replicas: std::ops::Range<usize>) -> Result<(), ServerError> {
        self.wait("the replicas to be in step", async || {
            for position in replicas.clone() {
                let mut command = ::redis::cmd("INFO");
                let info: String = self.ask(position, command.arg("replication")).await.unwrap_or_default();
                if !info.contains("master_link_status:up") {
                    return false;
                }
            }
            true
        })
        .await
    }

    async fn wait(&self, what: &str, is_so: impl AsyncFn() -> bool) -> Result<(), ServerError> {
        let began = Instant::now();
        while !is_so().await {
            if READY_WITHIN < began.elapsed() {
                return Err(failed(format!("waiting for {what}"), "it took too long"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// The cluster slots in as many shares as there are masters.
fn shares(masters: usize) -> Vec<ClusterSlotSet> {
    let share = |position: usize| {
        let all = ClusterSlot::all().skip(CLUSTER_SLOTS * position / masters);
        let end = CLUSTER_SLOTS * (position + 1) / masters;
        all.take_while(|slot| usize::from(slot.number()) < end).collect()
    };
    (0..masters).map(share).collect()
}

/// What a line of `CLUSTER NODES` says that its node serves.
fn ranges(line: &str) -> ClusterSlotSet {
    let ranges = line.split(' ').skip(8).filter(|word| !word.starts_with('['));
    let ranges = ranges.filter_map(|range| range.parse::<ClusterSlotSet>().ok());
    ranges.fold(ClusterSlotSet::default(), |all, range| all.or(&range))
}

async fn start_node(arguments: &[&str]) -> Result<Redis, ServerError> {
    let bus = free_port()?.to_string();
    let mut all = vec!["--cluster-port", &bus];
    all.extend(arguments);
    start_node_with(&all).await
}

async fn start_node_with(arguments: &[&str]) -> Result<Redis, ServerError> {
    let mut all = vec!["--cluster-enabled", "yes"];
    all.extend(["--cluster-node-timeout", NODE_TIMEOUT_MS, "--repl-diskless-sync-delay", "0"]);
    // A master that gives away its last cluster slot stays one.
    all.extend(["--cluster-allow-replica-migration", "no"]);
    all.extend(arguments);
    Redis::start(&all).await
}
