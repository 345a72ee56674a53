//! Sentinels: who is the master now.
//!
//! All of them are asked at once, and the one with the newest configuration is believed: a sentinel that was cut off from the
//! others goes on naming the old master. What it says is verified where it is connected to.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::endpoint::{Address, Endpoint, no_answer};
use super::trouble::Trouble;

/// How often those are asked whose master is in use, or being connected to.
pub(super) const ASKED_EVERY: Duration = Duration::from_millis(250);
/// The same where it could not be connected to.
pub(super) const ASKED_EVERY_IN_TROUBLE: Duration = Duration::from_millis(100);
/// How long one is waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// How long an attempt to connect to one may take: it ends before the answer is given up, so that it says what it knows.
const CONNECT_LIMIT: Duration = Duration::from_millis(900);
/// How long the others are waited for, once one has answered.
const OTHERS_LIMIT: Duration = Duration::from_millis(100);

/// The sentinels, each with a connection that is kept.
pub(super) struct Pool {
    endpoint: Endpoint,
    service: String,
    nodes: Vec<Node>,
}

struct Node {
    address: Address,
    connection: Option<MultiplexedConnection>,
}

/// What a sentinel says; none: it does not know the service.
type Said = Option<Master>;

/// A master as sentinels name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub address: Address,
    /// Grows with each switch.
    epoch: i64,
}

impl Pool {
    /// None: the URL names a server.
    pub fn new(endpoint: &Endpoint) -> Option<Self> {
        let known = endpoint.sentinels()?;
        let node = |address: &Address| Node { address: address.clone(), connection: None };
        Some(Self {
            endpoint: endpoint.clone(),
            service: known.service.clone(),
            nodes: known.nodes.iter().map(node).collect(),
        })
    }

    /// Asks all of them.
    pub async fn master(&mut self) -> Result<Master, Trouble> {
        let (endpoint, service) = (&self.endpoint, self.service.as_str());
        let mut questions: FuturesUnordered<_> = self
            .nodes
            .iter_mut()
            .map(|node| async move {
                let told = format!("{}:{}", node.address.0, node.address.1);
                let said = tokio::time::timeout(ANSWER_LIMIT, node.ask(endpoint, service)).await;
                (told, said.unwrap_or_else(|_elapsed| Err(no_answer())))
            })
            .collect();
        let mut until = Instant::now() + ANSWER_LIMIT;
        let (mut newest, mut knows_not, mut failed) = (None::<Master>, Vec::new(), Vec::new());
        while let Ok(Some((told, said))) = tokio::time::timeout_at(until, questions.next()).await {
            match said {
                Ok(Some(master)) => {
                    until = until.min(Instant::now() + OTHERS_LIMIT);
                    if newest.as_ref().is_none_or(|newest| newest.epoch < master.epoch) {
                        newest = Some(master);
                    }
                }
                Ok(None) => knows_not.push(told),
                Err(error) => failed.push((told, error)),
            }
        }
        newest.ok_or_else(|| match knows_not.as_slice() {
            [] => none_answers(&failed),
            asked => {
                let text =
                    format!("the sentinels know no master named {service} (asked: {})", asked.join(", "));
                Trouble::new("redis.url", text, "`redis-cli -p 26379 sentinel masters` shows the names")
            }
        })
    }

    /// Waits until they name another master, in a configuration that is not older.
    pub async fn moved_from(&mut self, known: &Master, asked_every: Duration) {
        loop {
            tokio::time::sleep(asked_every).await;
            if let Ok(master) = self.master().await
                && master.address != known.address
                && known.epoch <= master.epoch
            {
                return;
            }
        }
    }
}

impl Node {
    async fn ask(&mut self, endpoint: &Endpoint, service: &str) -> RedisResult<Said> {
        let is_kept = self.connection.is_some();
        match self.ask_once(endpoint, service).await {
            // A connection that was kept may have ended long ago.
            Err(_) if is_kept => self.ask_once(endpoint, service).await,
            said => said,
        }
    }

    async fn ask_once(&mut self, endpoint: &Endpoint, service: &str) -> RedisResult<Said> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => endpoint.open_sentinel(&self.address, CONNECT_LIMIT).await?,
        };
        let mut pipeline = redis::pipe();
        pipeline.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service);
        pipeline.cmd("SENTINEL").arg("MASTER").arg(service);
        pipeline.ignore_errors();
        let replies: Vec<RedisResult<Value>> = pipeline.query_async(&mut connection).await?;
        self.connection = Some(connection);
        let mut replies = replies.into_iter();
        let address: Option<(String, u16)> = match replies.next() {
            Some(reply) => {
                redis::from_redis_value(reply.map_err(|error| endpoint.of_sentinel(error, &self.address))?)?
            }
            None => None,
        };
        let Some(address) = address else { return Ok(None) };
        let epoch = match replies.next() {
            Some(Ok(reply)) => epoch_of(reply),
            _ => 0,
        };
        Ok(Some(Master { address, epoch }))
    }
}

/// What is wrong with the configuration for one of them is so for the others; else waiting helps.
fn none_answers(failed: &[(String, RedisError)]) -> Trouble {
    let reason = |(told, error): &(String, RedisError)| {
        let reason = error.to_string();
        if reason.contains(told) { reason } else { format!("{told}: {reason}") }
    };
    let reasons: Vec<String> = failed.iter().map(reason).collect();
    let text = format!("no sentinel answers ({})", reasons.join("; "));
    let mut troubles = failed.iter().filter_map(|(_, error)| Trouble::of(error));
    match troubles.find(|trouble| trouble.is_of_configuration()) {
        Some(first) => Trouble { text, ..first.clone() },
        None => Trouble::new("redis.url", text, "name sentinels that run, with the port 26379 or theirs")
            .of_server(),
    }
}

fn epoch_of(reply: Value) -> i64 {
    let fields: std::collections::HashMap<String, String> =
        redis::from_redis_value(reply).unwrap_or_default();
    fields.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default()
}
