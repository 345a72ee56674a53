//! How the shop's applications speak to Redis: as any client does, to one server or to a cluster.

use std::collections::HashMap;
use std::time::Duration;

use cachekeeper_protocol::cluster_slot::ClusterSlot;
use rand::seq::IndexedRandom;
use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind,
};

const CONNECTS_WITHIN: Duration = Duration::from_millis(500);
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// Attempts at one command, each at the node that the one before has named.
const ATTEMPTS: usize = 4;

/// A client of Redis.
#[derive(Clone)]
pub enum Client {
    /// Of one server.
    One(ConnectionManager),
    /// Of a cluster.
    Cluster(ClusterClient),
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Prepares it; nothing connects yet.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn new(url: &str) -> RedisResult<Self> {
        if let Some(nodes) = url.strip_prefix("redis+cluster://") {
            return Ok(Self::Cluster(ClusterClient::new(nodes)));
        }
        let manager = ConnectionManagerConfig::new()
            .set_number_of_retries(1)
            .set_connection_timeout(Some(CONNECTS_WITHIN))
            .set_response_timeout(Some(ANSWERS_WITHIN));
        Ok(Self::One(redis::Client::open(url)?.get_connection_manager_lazy(manager)?))
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn get(&mut self, key: &str) -> RedisResult<Option<Vec<u8>>> {
        let command = redis::cmd("GET").arg(key).to_owned();
        self.ask(key, &command).await
    }

    /// Publishes a message. On a cluster any node passes it on to all.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn publish(&mut self, channel: &str, message: &str) -> RedisResult<u64> {
        let command = redis::cmd("PUBLISH").arg(channel).arg(message).to_owned();
        self.ask(channel, &command).await
    }

    async fn ask<T: FromRedisValue>(&mut self, key: &str, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::One(connection) => command.query_async(connection).await,
            Self::Cluster(cluster) => cluster.ask(key, command).await,
        }
    }
}

/// A small client of a cluster: it asks any node, and remembers where it was sent.
#[derive(Clone, Debug)]
pub struct ClusterClient {
    nodes: Vec<String>,
    /// Where the keys of a cluster slot are.
    owners: HashMap<ClusterSlot, String>,
    connections: HashMap<String, MultiplexedConnection>,
}

impl ClusterClient {
    fn new(nodes: &str) -> Self {
        let nodes = nodes.split(',').map(str::to_owned).collect();
        Self { nodes, owners: HashMap::new(), connections: HashMap::new() }
    }

    async fn ask<T: FromRedisValue>(&mut self, key: &str, command: &Cmd) -> RedisResult<T> {
        let slot = ClusterSlot::of(key.as_bytes());
        let mut attempt = 1;
        loop {
            let any = || self.nodes.choose(&mut rand::rng()).cloned().unwrap_or_default();
            let node = self.owners.get(&slot).cloned().unwrap_or_else(any);
            let error = match self.ask_node(&node, command).await {
                Ok(answer) => {
                    self.owners.insert(slot, node);
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let sent_to = error.redirect_node().map(|(address, _)| address.to_owned());
            match (error.kind(), sent_to) {
                (ErrorKind::Server(ServerErrorKind::Moved), Some(owner)) => {
                    self.owners.insert(slot, owner);
                }
                (ErrorKind::Server(ServerErrorKind::Ask), Some(target)) => {
                    return self.ask_while_moving(&target, command).await;
                }
                _ => {
                    self.owners.remove(&slot);
                    self.connections.remove(&node);
                }
            }
            if attempt == ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        }
    }

    async fn ask_node<T: FromRedisValue>(&mut self, node: &str, command: &Cmd) -> RedisResult<T> {
        let mut connection = self.connection(node).await?;
        command.query_async(&mut connection).await
    }

    async fn ask_while_moving<T: FromRedisValue>(&mut self, node: &str, command: &Cmd) -> RedisResult<T> {
        let mut connection = self.connection(node).await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("ASKING").ignore().add_command(command.clone());
        let (answer,) = pipeline.query_async(&mut connection).await?;
        Ok(answer)
    }

    async fn connection(&mut self, node: &str) -> Result<MultiplexedConnection, RedisError> {
        if let Some(known) = self.connections.get(node) {
            return Ok(known.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECTS_WITHIN))
            .set_response_timeout(Some(ANSWERS_WITHIN));
        let client = redis::Client::open(format!("redis://{node}"))?;
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        self.connections.insert(node.to_owned(), connection.clone());
        Ok(connection)
    }
}
