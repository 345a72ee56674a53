//! A Redis Cluster: which master serves what, a connection to each, and what the servers say of the cluster slots.
//!
//! Where a command is refused because a key is at another node (`MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN`, a script on a shard that
//! answers [`super::PreconditionFailed::Guard`]) it was not applied: the map is fetched again, and the command is tried again there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::endpoint::Address;
use super::script::{Call, HELD_ELSEWHERE};
use super::{Adopted, CacheError, ClusterMap, ClusterNode, Redis, Refusal};
use cachekeeper_config::{self as config, ClusterNodes, Secret};
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;

/// A handle to a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: config::Redis,
    nodes: ClusterNodes,
    namespace: String,
    /// A handle to each server that was ever spoken to and is still in the map.
    servers: Mutex<BTreeMap<Address, Redis>>,
    looks: Looks,
    compares_guards: bool,
}

/// The server of a shard, as it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardServer {
    /// The id of the node.
    pub node: String,
    /// The run of the server; empty: it does not tell.
    pub run: String,
    /// The cluster slots that it serves.
    pub serves: ClusterSlotSet,
}

/// What all masters have said.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The masters, in the order of their ids.
    pub servers: Vec<ShardServer>,
    /// The cluster slots that no server shows as moving, and of which none holds entries that does not serve them.
    pub clear: ClusterSlotSet,
    /// Those that a server shows as moving.
    moving: ClusterSlotSet,
    /// Those of which a server holds entries that does not serve them, and when all were asked for that.
    held: ClusterSlotSet,
    held_at: Instant,
}

impl Survey {
    /// The runs of all servers, each with its node.
    #[must_use]
    pub fn runs(&self) -> Vec<String> {
        self.servers.iter().map(|server| format!("{} {}", server.node, server.run)).collect()
    }
}

/// What all servers have said.
#[derive(Debug, Clone)]
pub struct Look {
    /// Who serves what.
    pub map: ClusterMap,
    /// What the servers know of the cluster slots.
    pub survey: Survey,
}

/// How a look ended.
pub(super) type Looked = Result<Arc<Look>, CacheError>;

/// The last look, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Held while one is under way: whoever comes meanwhile waits for it.
    pub(super) last: tokio::sync::Mutex<Option<(Instant, Looked)>>,
    /// The last one to which all servers have answered.
    pub(super) whole: Mutex<Option<Arc<Look>>>,
}

/// How often all servers are asked for entries of cluster slots that they do not serve, where nothing shows that there may be any.
const HELD_ASKED_EVERY: Duration = Duration::from_secs(1);
/// Cluster slots of which one script counts the keys: more would hold up the server for milliseconds.
const COUNTED_AT_ONCE: usize = 2_048;

impl Cluster {
    /// The cluster of this URL; none: it names none. Nothing is sent yet.
    ///
    /// # Errors
    /// [`CacheError`] when the URL cannot be used.
    pub fn new(settings: &config::Redis, namespace: &str) -> Result<Option<Self>, CacheError> {
        let nodes = settings.cluster().map_err(|flaw| CacheError::of_address(&flaw))?;
        Ok(nodes.map(|nodes| {
            let (settings, namespace) = (settings.clone(), namespace.to_owned());
            let (servers, looks) = (Mutex::default(), Looks::default());
            let compares_guards = true;
            Self { inner: Arc::new(Inner { settings, nodes, namespace, servers, looks, compares_guards }) }
        }))
    }

    /// The same cluster, but scripts act whatever the guards say. For the control run of tests, which must see that go wrong.
    #[doc(hidden)]
    #[must_use]
    pub fn without_guards(&self) -> Self {
        let Inner { settings, nodes, namespace, .. } = &*self.inner;
        let (settings, nodes, namespace) = (settings.clone(), nodes.clone(), namespace.clone());
        let (servers, looks) = (Mutex::default(), Looks::default());
        let compares_guards = false;
        Self { inner: Arc::new(Inner { settings, nodes, namespace, servers, looks, compares_guards }) }
    }

    /// The map as the nodes know it: the servers of the last map are asked, and where none answers, those of the URL. Of several
    /// answers the one with the newest configuration counts.
    ///
    /// # Errors
    /// [`CacheError`] where none answers.
    pub async fn map(&self) -> Result<ClusterMap, CacheError> {
        let known: Vec<Address> = self.lock().keys().cloned().collect();
        let map = match self.newest_map(&known).await {
            Ok(map) => map,
            Err(_whatever) => self.newest_map(&self.inner.nodes.nodes).await?,
        };
        self.lock().retain(|address, _| map.masters.iter().any(|node| node.address == *address));
        Ok(map)
    }

    pub(super) fn looks(&self) -> &Looks {
        &self.inner.looks
    }

    async fn newest_map(&self, asked: &[Address]) -> Result<ClusterMap, CacheError> {
        let mut newest: Option<ClusterMap> = None;
        let mut failed: Option<CacheError> = None;
        for answer in join_all(asked.iter().map(|address| self.map_of(address))).await {
            match answer {
                Ok(map) => {
                    let is_newer = |known: &ClusterMap| known.config_epoch < map.config_epoch;
                    newest = if newest.as_ref().is_none_or(is_newer) { Some(map) } else { newest };
                }
                // What the user may not do says more than that a replica was asked too.
                Err(error) if failed.is_none() || error.refusal == Refusal::Forbidden => failed = Some(error),
                Err(_) => {}
            }
        }
        let none = || CacheError::unexpected("ask a node for the map", "no node is known");
        newest.ok_or_else(|| failed.unwrap_or_else(none))
    }

    /// A handle to the first node of the URL, of whatever shard it may be: it stores nothing.
    ///
    /// # Errors
    /// [`CacheError`] when the URL cannot be used.
    pub fn any_node(&self) -> Result<Redis, CacheError> {
        let first = self.inner.nodes.nodes.first();
        self.shard(first.ok_or_else(|| CacheError::unexpected("read the URL", "it names no node"))?, 0)
    }

    /// A handle to a shard at this server. Nothing of it counts as adopted ([`Redis::with_adopted`]).
    ///
    /// # Errors
    /// [`CacheError`] when the address cannot be used.
    pub fn shard(&self, address: &Address, number: u32) -> Result<Redis, CacheError> {
        let server = self.server(address)?;
        let keys = server.keys.of_shard(number);
        Ok(Redis { keys, adopted: Some(Arc::new(Adopted::nothing(number))), ..server })
    }

    /// Asks every master of the map for its run, for what it serves and for what moves; and, where any of that is not as it was at the
    /// `last` survey, or a second is over, for entries of cluster slots that it does not serve, which costs far more.
    ///
    /// # Errors
    /// [`CacheError`] where one does not answer: then nothing is known of any cluster slot.
    pub async fn survey(&self, map: &ClusterMap, last: Option<&Survey>) -> Result<Survey, CacheError> {
        let mut moving = ClusterSlotSet::default();
        let mut servers = Vec::with_capacity(map.masters.len());
        for (server, moves) in try_join_all(map.masters.iter().map(|node| self.look_at(node))).await? {
            moving = moving.or(&moves);
            servers.push(server);
        }
        let is_as_before = |last: &&Survey| {
            last.servers == servers && last.moving == moving && last.held_at.elapsed() < HELD_ASKED_EVERY
        };
        let (held, held_at) = match last.filter(is_as_before) {
            Some(last) => (last.held.clone(), last.held_at),
            None => (self.held_elsewhere(map).await?, Instant::now()),
        };
        let clear = ClusterSlotSet::all().without(&moving).without(&held);
        Ok(Survey { servers, clear, moving, held, held_at })
    }

    /// The run is asked for first: what is found then is of this run or of a later one, by which a claim is refused.
    async fn look_at(&self, node: &ClusterNode) -> Result<(ShardServer, ClusterSlotSet), CacheError> {
        let run = self.server(&node.address)?.facts().await?.run_id.unwrap_or_default();
        let map = self.map_of(&node.address).await?;
        let own = map.masters.into_iter().find(|own| own.id == node.id);
        let serves = own.map(|own| own.serves).unwrap_or_default();
        Ok((ShardServer { node: node.id.clone(), run, serves }, map.moving))
    }

    async fn held_elsewhere(&self, map: &ClusterMap) -> Result<ClusterSlotSet, CacheError> {
        let asked = map.masters.iter().map(|node| async move {
            let foreign = ClusterSlotSet::all().without(&node.serves);
            self.server(&node.address)?.held_elsewhere(&foreign).await
        });
        let held = try_join_all(asked).await?;
        Ok(held.iter().fold(ClusterSlotSet::default(), |all, held| all.or(held)))
    }

    async fn map_of(&self, address: &Address) -> Result<ClusterMap, CacheError> {
        let command = redis::cmd("CLUSTER").arg("NODES").to_owned();
        let text: String = self.server(address)?.command("ask a node for the map", &command).await?;
        Ok(ClusterMap::parse(&text, address, self.inner.nodes.is_tls))
    }

    fn server(&self, address: &Address) -> Result<Redis, CacheError> {
        if let Some(known) = self.lock().get(address) {
            return Ok(known.clone());
        }
        let url = Secret::new(self.inner.nodes.server(&address.0, address.1));
        let settings = config::Redis { url, ..self.inner.settings.clone() };
        let compares_guards = self.inner.compares_guards;
        let server = Redis { compares_guards, ..Redis::new(&settings, &self.inner.namespace)? };
        Ok(self.lock().entry(address.clone()).or_insert(server).clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Address, Redis>> {
        self.inner.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Redis {
    /// Those of these cluster slots, which the server does not serve, of which it holds entries all the same.
    async fn held_elsewhere(&self, foreign: &ClusterSlotSet) -> Result<ClusterSlotSet, CacheError> {
        let foreign: Vec<ClusterSlot> = foreign.iter().collect();
        let mut held = ClusterSlotSet::default();
        for part in foreign.chunks(COUNTED_AT_ONCE) {
            let mut call = Call::new(&HELD_ELSEWHERE, 0);
            for range in part.iter().copied().collect::<ClusterSlotSet>().ranges() {
                call.arg(range.start().to_string()).arg(range.end().to_string());
            }
            let found: Vec<u16> = call.run(self).await?;
            found.into_iter().filter_map(ClusterSlot::new).for_each(|slot| held.insert(slot));
        }
        Ok(held)
    }
}
