//! The handle to Redis, and how commands are sent.

use std::sync::Arc;

use redis::{FromRedisValue, Value};

use super::endpoint::Endpoint;
use super::gather::Gathered;
use super::shared::SharedConnection;
use super::{Adopted, CacheError};

use cachekeeper_config as config;
use cachekeeper_protocol::keyspace::Keyspace;

/// A handle to one Redis database and namespace. Cheap to clone; reconnects by itself.
#[derive(Clone)]
pub struct Redis {
    pub(super) connection: SharedConnection,
    pub(super) keys: Keyspace,
    pub(super) compares_stamps: bool,
    /// On a shard of a cluster. Neither is ever false but in the control runs of tests.
    pub(super) compares_guards: bool,
    pub(super) gathered: Arc<Gathered>,
    /// On a shard of a cluster: the cluster slots that it has adopted, as whoever has this handle knows them.
    pub(super) adopted: Option<Arc<Adopted>>,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Redis").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Redis {
    /// Prepares a handle; nothing is sent until the first command.
    ///
    /// # Errors
    /// [`CacheError`] when the URL cannot be used.
    pub fn new(settings: &config::Redis, namespace: &str) -> Result<Self, CacheError> {
        let connection = SharedConnection::new(Endpoint::new(settings)?);
        Ok(Self {
            connection,
            keys: Keyspace::new(namespace),
            compares_stamps: true,
            compares_guards: true,
            gathered: Arc::default(),
            adopted: None,
        })
    }

    /// The same shard, for work that begins now: its stores name the adoptions that are known now. Of what was loaded under earlier
    /// ones nothing may be stored any more.
    #[must_use]
    pub fn with_adopted(&self, adopted: Arc<Adopted>) -> Self {
        Self { adopted: Some(adopted), ..self.clone() }
    }

    /// The same, but no stamps are compared: nothing keeps an old value from replacing a newer one. For the control
    /// run of tests, which must see that go wrong.
    #[doc(hidden)]
    #[must_use]
    pub fn without_stamps(mut self) -> Self {
        self.compares_stamps = false;
        self
    }

    /// Cachekeeper's own keys in this database.
    #[must_use]
    pub fn keys(&self) -> &Keyspace {
        &self.keys
    }

    /// Asks whether the server answers.
    ///
    /// # Errors
    /// [`CacheError`], with what to do about it.
    pub async fn ping(&self) -> Result<(), CacheError> {
        let mut connection = self.connection.clone();
        let reply: Result<String, _> = redis::cmd("PING").query_async(&mut connection).await;
        reply.map(drop).map_err(|source| CacheError::new("reach the server", source))
    }

    /// Waits until a connection was opened after this call: whoever waits to try again need not wait longer.
    pub async fn connected_again(&self) {
        self.connection.opened_again().await;
    }

    pub(super) async fn command<T: FromRedisValue>(
        &self,
        what: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, CacheError> {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(|source| CacheError::new(what, source))
    }
    /// Sends a pipeline and checks every reply: none may be an error, and none may be missing. `replies` are those of the
    /// commands that are not ignored (the driver looks at the errors of all).
    pub(super) async fn pipeline(
        &self,
        what: &'static str,
        pipeline: &redis::Pipeline,
        replies: usize,
    ) -> Result<Replies, CacheError> {
        let mut connection = self.connection.clone();
        let sent: Result<Vec<Value>, _> = pipeline.query_async(&mut connection).await;
        let values = sent.map_err(|source| CacheError::new(what, source))?;
        if values.len() != replies {
            return Err(CacheError::unexpected(
                what,
                &format!("{} replies instead of {replies}", values.len()),
            ));
        }
        Ok(Replies::of(what, values))
    }
}

/// The replies of a pipeline, in their order.
#[derive(Debug)]
pub(super) struct Replies {
    what: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Replies {
    pub(super) fn of(what: &'static str, values: Vec<Value>) -> Self {
        Self { what, values: values.into_iter() }
    }

    /// The next reply, of the agreed type.
    pub(super) fn next<T: FromRedisValue>(&mut self) -> Result<T, CacheError> {
        let value =
            self.values.next().ok_or_else(|| CacheError::unexpected(self.what, "a reply is missing"))?;
        // Only where the pipeline does not look at errors itself.
        if let Value::ServerError(error) = value {
            return Err(CacheError::new(self.what, error.into()));
        }
        T::from_redis_value(value).map_err(|parse| CacheError::unexpected(self.what, &parse.to_string()))
    }
}
