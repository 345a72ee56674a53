//! What is done to the nodes of the cluster, and to what they serve. Each fault ends with nodes that agree with each other.

use std::time::Duration;

use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::keyspace::Keyspace;
use cachekeeper_testkit::servers::Cluster as Servers;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::super::load::ITEMS;
use super::{Arena, Shape};
use crate::support::wait_until;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeFault {
    /// Cluster slots move to other masters.
    Moves,
    /// One leaves and comes back at once.
    LeavesAndComesBack,
    /// A migration is turned back half way, and later goes on to its end.
    TurnsBack,
    /// A migration is turned back half way, and what had moved before it is moved back.
    MovesBack,
    /// The cluster slot of a shard's own keys moves.
    HomeMoves,
    /// A range of cluster slots moves by the server itself, where it can do that.
    MovesByItself,
    /// A node joins and is given cluster slots; the next time it gives them away and leaves.
    ComesOrGoes,
    /// A replica takes over in order.
    FailsOver,
    /// A replica takes over from a master that is well, without asking it, and without what it has missed.
    IsForced,
    /// The same without asking anybody.
    TakesOver,
    /// A master is lost, and comes back as a replica of its own.
    IsLost,
    /// The same, and its replica has missed what came last.
    LosesSuffix,
    /// A master ends and is there again at once, empty.
    RestartsEmpty,
    /// The same with what it had some time before.
    RestartsOld,
    /// A node stops for less than others notice.
    IsStopped,
    /// A master stops until its replica has taken over, and goes on.
    WakesUp,
    /// A master answers no client.
    IsPaused,
    /// A master and the others hear nothing from each other until its replica has taken over; clients reach it all the time.
    IsParted,
    /// A master is flushed.
    IsFlushed,
    /// A master forgets some guards.
    LosesGuards,
    /// A master forgets one of the shard's own keys.
    LosesMetadata,
    /// A master has no memory left for a moment.
    IsFull,
    /// All connections of clients are cut.
    CutClients,
    /// All scripts are forgotten.
    ForgottenScripts,
}

const ALONE: &[NodeFault] = &[
    NodeFault::Moves,
    NodeFault::LeavesAndComesBack,
    NodeFault::TurnsBack,
    NodeFault::MovesBack,
    NodeFault::HomeMoves,
    NodeFault::MovesByItself,
    NodeFault::ComesOrGoes,
    NodeFault::RestartsEmpty,
    NodeFault::RestartsOld,
    NodeFault::IsStopped,
    NodeFault::IsPaused,
    NodeFault::IsParted,
    NodeFault::IsFlushed,
    NodeFault::LosesGuards,
    NodeFault::LosesMetadata,
    NodeFault::IsFull,
    NodeFault::CutClients,
    NodeFault::ForgottenScripts,
];

const WITH_REPLICAS: &[NodeFault] = &[
    NodeFault::FailsOver,
    NodeFault::IsForced,
    NodeFault::TakesOver,
    NodeFault::IsLost,
    NodeFault::LosesSuffix,
    NodeFault::WakesUp,
];

/// A shard's own keys.
const METADATA: [&str; 6] = ["meta", "stamps", "tagstamps", "adopted", "watermark", "counters"];

/// What one fault is done with.
struct Strike<'a> {
    arena: &'a Arena,
    servers: &'a mut Servers,
    random: &'a mut StdRng,
    some_time: Duration,
}

impl NodeFault {
    /// Those of clusters whose masters have so many replicas.
    pub fn of(replicas: usize) -> Vec<Self> {
        let more = if replicas == 0 { &[][..] } else { WITH_REPLICAS };
        [ALONE, more].concat()
    }

    pub async fn strike(self, arena: &Arena, random: &mut StdRng) {
        let mut servers = arena.servers.lock().await;
        let some_time = Duration::from_millis(random.random_range(50..400));
        let mut strike = Strike { arena, servers: &mut servers, random, some_time };
        match self {
            Self::Moves
            | Self::LeavesAndComesBack
            | Self::TurnsBack
            | Self::MovesBack
            | Self::HomeMoves
            | Self::MovesByItself
            | Self::ComesOrGoes => strike.on_cluster_slots(self).await,
            Self::FailsOver
            | Self::IsForced
            | Self::TakesOver
            | Self::IsLost
            | Self::LosesSuffix
            | Self::WakesUp
            | Self::IsParted => strike.on_master(self).await,
            Self::RestartsEmpty | Self::RestartsOld => strike.restart(self).await,
            _ => strike.on_server(self).await,
        }
        strike.is_rested().await;
    }
}

impl Strike<'_> {
    /// A node that serves cluster slots.
    async fn some_master(&mut self) -> usize {
        let slot = self.some_slot();
        self.owner(slot).await
    }

    /// A cluster slot in which an entry may be.
    fn some_slot(&mut self) -> ClusterSlot {
        let dataset = if self.random.random_bool(0.7) { "item" } else { "lazy" };
        ClusterSlot::of(format!("{dataset}:{}", self.random.random_range(0..ITEMS)).as_bytes())
    }

    async fn owner(&self, slot: ClusterSlot) -> usize {
        self.servers.owner(slot, 0).await.unwrap()
    }

    /// Another master.
    async fn other(&mut self, not: usize) -> usize {
        loop {
            let found = self.some_master().await;
            if found != not {
                return found;
            }
        }
    }

    async fn ask<T: redis::FromRedisValue>(&self, position: usize, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        self.servers.ask(position, &command).await.unwrap()
    }

    async fn on_cluster_slots(&mut self, fault: NodeFault) {
        let slot = self.some_slot();
        let from = self.owner(slot).await;
        let to = self.other(from).await;
        match fault {
            NodeFault::Moves => {
                for _ in 0..self.random.random_range(1..12) {
                    let slot = self.some_slot();
                    let from = self.owner(slot).await;
                    let to = self.other(from).await;
                    self.servers.move_slot(slot, from, to).await.unwrap();
                }
            }
            NodeFault::LeavesAndComesBack => {
                self.servers.move_slot(slot, from, to).await.unwrap();
                tokio::time::sleep(self.some_time).await;
                self.servers.move_slot(slot, to, from).await.unwrap();
            }
            NodeFault::TurnsBack => {
                self.servers.begin_move(slot, from, to).await.unwrap();
                self.servers.move_keys(slot, from, to, 1).await.unwrap();
                tokio::time::sleep(self.some_time).await;
                self.servers.turn_back(slot, from, to).await.unwrap();
                tokio::time::sleep(self.some_time).await;
                self.servers.move_slot(slot, from, to).await.unwrap();
            }
            NodeFault::MovesBack => {
                self.servers.begin_move(slot, from, to).await.unwrap();
                let most = self.random.random_range(1..4);
                self.servers.move_keys(slot, from, to, most).await.unwrap();
                tokio::time::sleep(self.some_time).await;
                // While the cluster slot migrates, the source takes no key back.
                self.ask::<()>(from, &["CLUSTER", "SETSLOT", &slot.to_string(), "STABLE"]).await;
                while self.servers.move_keys(slot, to, from, 100).await.unwrap() != 0 {}
                self.servers.turn_back(slot, from, to).await.unwrap();
            }
            NodeFault::HomeMoves => self.move_home().await,
            NodeFault::MovesByItself => self.move_by_itself(slot, from, to).await,
            _ => self.come_or_go().await,
        }
    }

    async fn move_home(&mut self) {
        let cluster = self.arena.cluster();
        let map = cluster.map().await.unwrap();
        let placed = cluster.placed_shards(&map, &[]).await.unwrap();
        let shard = &placed[self.random.random_range(0..placed.len())];
        let home = Keyspace::new("test").of_shard(shard.number).metadata().home_slot();
        let from = self.owner(home).await;
        let to = self.other(from).await;
        self.servers.move_slot(home, from, to).await.unwrap();
    }

    /// A server that cannot move cluster slots by itself has them moved.
    async fn move_by_itself(&mut self, slot: ClusterSlot, from: usize, to: usize) {
        let help: Vec<String> = self.ask(from, &["CLUSTER", "HELP"]).await;
        if !help.iter().any(|line| line.contains("MIGRATESLOTS")) {
            return self.servers.move_slot(slot, from, to).await.unwrap();
        }
        let (number, target) = (slot.to_string(), self.ask::<String>(to, &["CLUSTER", "MYID"]).await);
        let words = ["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &number, &number, "NODE", &target];
        self.ask::<String>(from, &words).await;
        let servers = &self.servers;
        wait_until("a server has moved a cluster slot by itself", async || {
            if servers.agrees_on(slot, to).await { Ok(()) } else { Err(slot.to_string()) }
        })
        .await;
    }

    async fn come_or_go(&mut self) {
        let spare = self.arena.spare();
        let served = self.servers.served(spare).await.unwrap();
        if served.is_empty() {
            self.servers.join(spare).await.unwrap();
            for _ in 0..20 {
                let slot = self.some_slot();
                let from = self.owner(slot).await;
                if from != spare {
                    self.servers.move_slot(slot, from, spare).await.unwrap();
                }
            }
            return;
        }
        for slot in served.iter() {
            let to = self.other(spare).await;
            self.servers.move_slot(slot, spare, to).await.unwrap();
        }
        self.servers.remove(spare).await.unwrap();
    }

    /// One of the masters of the beginning, or its replica that has taken over; and who is the other of the two.
    async fn pair(&mut self) -> (usize, Option<usize>) {
        let Shape { masters, replicas } = self.arena.shape;
        let first = self.random.random_range(0..masters);
        match (replicas, self.servers.is_master(first).await) {
            (0, _) => (first, None),
            (_, true) => (first, Some(first + masters)),
            (_, false) => (first + masters, Some(first)),
        }
    }

    async fn on_master(&mut self, fault: NodeFault) {
        let (master, replica) = self.pair().await;
        self.arena.next_life();
        match (fault, replica) {
            (NodeFault::IsParted, None) => {
                self.servers.part(master);
                tokio::time::sleep(self.some_time * 8).await;
                self.servers.unite(master);
            }
            (_, None) => panic!("{fault:?} needs a replica"),
            (NodeFault::FailsOver, Some(replica)) => self.fail_over(replica, "").await,
            (NodeFault::IsForced, Some(replica)) => {
                self.fall_behind(master, replica).await;
                self.fail_over(replica, "FORCE").await;
            }
            (NodeFault::TakesOver, Some(replica)) => {
                self.fall_behind(master, replica).await;
                self.servers.take_over(replica).await.unwrap();
            }
            (NodeFault::IsLost | NodeFault::LosesSuffix, Some(replica)) => {
                if fault == NodeFault::LosesSuffix {
                    self.fall_behind(master, replica).await;
                }
                self.servers.node_mut(master).unwrap().kill();
                self.has_taken_over(replica).await;
                tokio::time::sleep(self.some_time).await;
                self.servers.node_mut(master).unwrap().start_again().await.unwrap();
            }
            (NodeFault::WakesUp, Some(replica)) => {
                self.servers.node(master).unwrap().pause();
                self.has_taken_over(replica).await;
                tokio::time::sleep(self.some_time).await;
                self.servers.node(master).unwrap().resume();
            }
            (_, Some(replica)) => {
                if self.random.random_bool(0.5) {
                    self.fall_behind(master, replica).await;
                }
                self.servers.part(master);
                self.has_taken_over(replica).await;
                tokio::time::sleep(self.some_time * 4).await;
                self.servers.unite(master);
            }
        }
        if let Some(replica) = replica {
            self.servers.connect_again(replica).await.unwrap();
        }
        self.is_rested().await;
        self.arena.next_life();
    }

    /// The replica misses what comes from now on.
    async fn fall_behind(&mut self, master: usize, replica: usize) {
        self.servers.cut_off(replica, master).await.unwrap();
        tokio::time::sleep(self.some_time).await;
    }

    async fn fail_over(&self, replica: usize, how: &str) {
        let words = ["CLUSTER", "FAILOVER", how];
        let asked = if how.is_empty() { &words[..2] } else { &words[..] };
        // It is given up after some seconds where the two could not agree.
        for _ in 0..5 {
            self.ask::<String>(replica, asked).await;
            let until = Instant::now() + Duration::from_secs(6);
            while Instant::now() < until {
                if self.servers.is_master(replica).await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        panic!("the replica does not take over");
    }

    async fn has_taken_over(&self, replica: usize) {
        let servers = &self.servers;
        wait_until("the replica has taken over", async || {
            if servers.is_master(replica).await { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }

    async fn restart(&mut self, fault: NodeFault) {
        let master = self.some_master().await;
        if fault == NodeFault::RestartsOld {
            self.ask::<String>(master, &["SAVE"]).await;
            tokio::time::sleep(self.some_time).await;
        } else {
            // A replica leaves what it was sent first.
            self.servers.node(master).unwrap().forget_dump();
        }
        // What was read of it until now may be newer than the dump.
        self.arena.next_life();
        self.servers.node_mut(master).unwrap().kill();
        self.servers.node_mut(master).unwrap().start_again().await.unwrap();
        self.servers.node(master).unwrap().forget_dump();
        self.is_rested().await;
        self.arena.next_life();
    }

    async fn on_server(&mut self, fault: NodeFault) {
        let master = self.some_master().await;
        match fault {
            NodeFault::IsStopped => {
                let node = self.servers.node(master).unwrap();
                node.pause();
                tokio::time::sleep(self.some_time).await;
                node.resume();
            }
            NodeFault::IsPaused => {
                let milliseconds = (self.some_time * 4).as_millis().to_string();
                self.ask::<String>(master, &["CLIENT", "PAUSE", &milliseconds]).await;
            }
            NodeFault::IsFlushed => self.ask::<()>(master, &["FLUSHALL"]).await,
            NodeFault::LosesGuards => {
                for _ in 0..20 {
                    let slot = self.some_slot();
                    let owner = self.owner(slot).await;
                    self.ask::<u64>(owner, &["DEL", &Keyspace::new("test").guard(slot)]).await;
                }
            }
            NodeFault::LosesMetadata => self.lose_metadata().await,
            NodeFault::IsFull => {
                self.ask::<()>(master, &["CONFIG", "SET", "maxmemory", "1mb"]).await;
                tokio::time::sleep(self.some_time).await;
                self.ask::<()>(master, &["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            NodeFault::CutClients => {
                for position in 0..self.servers.len() {
                    self.ask::<u64>(position, &["CLIENT", "KILL", "TYPE", "normal"]).await;
                    self.ask::<u64>(position, &["CLIENT", "KILL", "TYPE", "pubsub"]).await;
                }
            }
            NodeFault::ForgottenScripts => {
                for position in 0..self.servers.len() {
                    self.ask::<()>(position, &["SCRIPT", "FLUSH"]).await;
                }
            }
            _ => panic!("{fault:?} is not done to a server"),
        }
    }

    async fn lose_metadata(&mut self) {
        let cluster = self.arena.cluster();
        let map = cluster.map().await.unwrap();
        let placed = cluster.placed_shards(&map, &[]).await.unwrap();
        let number = placed[self.random.random_range(0..placed.len())].number;
        let home = Keyspace::new("test").of_shard(number).metadata().home_slot();
        let name = METADATA[self.random.random_range(0..METADATA.len())];
        println!("  {name} of shard {number}");
        let owner = self.owner(home).await;
        self.ask::<u64>(owner, &["DEL", &format!("ck:{{test:{number}}}:{name}")]).await;
    }

    /// Waits until all nodes run, and agree on who serves what and who follows whom. That is the cluster's own business.
    async fn is_rested(&self) {
        let spare = self.arena.spare();
        let is_alone = self.servers.served(spare).await.unwrap().is_empty();
        let members: Vec<usize> = (0..self.servers.len()).filter(|one| !is_alone || *one != spare).collect();
        let servers = &self.servers;
        let Shape { masters, replicas } = self.arena.shape;
        wait_until("the nodes agree", async || {
            servers.agree(&members).await?;
            for first in (0..masters).filter(|_| 0 < replicas) {
                if servers.is_master(first).await == servers.is_master(first + masters).await {
                    return Err(format!("{first} and its replica are the same"));
                }
            }
            Ok(())
        })
        .await;
    }
}
