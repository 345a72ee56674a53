//! The connection that commands share.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, FromRedisValue, IntoConnectionInfo, Value};

use super::CacheError;
use cachekeeper_config as config;
use cachekeeper_protocol::keyspace::Keyspace;

/// A handle to one Redis database and namespace. Cheap to clone; reconnects by itself.
#[derive(Clone)]
pub struct Redis {
    pub(super) client: Client,
    pub(super) connection: ConnectionManager,
    pub(super) keys: Keyspace,
    pub(super) compares_stamps: bool,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Redis").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// Reconnect attempts that one command waits for; the command after that tries again.
const RETRIES: usize = 2;
const RETRY_DELAY_MAX: Duration = Duration::from_secs(2);

impl Redis {
    /// Prepares a handle; nothing is sent until the first command.
    ///
    /// # Errors
    /// [`CacheError`] when the URL cannot be used.
    pub fn new(settings: &config::Redis, namespace: &str) -> Result<Self, CacheError> {
        let error = |source| CacheError::new("read the URL", source);
        let info = settings.url.reveal().into_connection_info().map_err(error)?;
        // Without this, replies to small pipelined commands wait for the delayed-acknowledgement timer.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let info = match &settings.password {
            Some(password) => {
                let with_password = info.redis_settings().clone().set_password(password.reveal());
                info.set_redis_settings(with_password)
            }
            None => info,
        };
        let client = Client::open(info).map_err(error)?;
        let manager = ConnectionManagerConfig::new()
            .set_number_of_retries(RETRIES)
            .set_max_delay(RETRY_DELAY_MAX)
            .set_connection_timeout(Some(settings.connect_timeout))
            .set_response_timeout(Some(settings.response_timeout));
        let connection = client.get_connection_manager_lazy(manager).map_err(error)?;
        Ok(Self { client, connection, keys: Keyspace::new(namespace), compares_stamps: true })
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
        Ok(Replies { what, values: values.into_iter() })
    }
}

/// The replies of a pipeline, in their order.
#[derive(Debug)]
pub(super) struct Replies {
    what: &'static str,
    values: std::vec::IntoIter<Value>,
}

impl Replies {
    /// The next reply, of the agreed type.
    pub(super) fn next<T: FromRedisValue>(&mut self) -> Result<T, CacheError> {
        let value =
            self.values.next().ok_or_else(|| CacheError::unexpected(self.what, "a reply is missing"))?;
        T::from_redis_value(value).map_err(|parse| CacheError::unexpected(self.what, &parse.to_string()))
    }
}
