//! The connection that commands share.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo};

use super::CacheError;
use cachekeeper_config as config;
use cachekeeper_protocol::keyspace::Keyspace;

/// A handle to one Redis database and namespace. Cheap to clone; reconnects by itself.
#[derive(Clone)]
pub struct Redis {
    pub(super) client: Client,
    pub(super) connection: ConnectionManager,
    pub(super) keys: Keyspace,
    pub(super) is_fenced: bool,
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
        Ok(Self { client, connection, keys: Keyspace::new(namespace), is_fenced: true })
    }

    /// The same, but no stamps are compared: nothing keeps an old value from replacing a newer one. For the control
    /// run of tests, which must see that go wrong.
    #[doc(hidden)]
    #[must_use]
    pub fn without_stamps(mut self) -> Self {
        self.is_fenced = false;
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

    pub(super) async fn command<T: redis::FromRedisValue>(
        &self,
        what: &'static str,
        command: &redis::Cmd,
    ) -> Result<T, CacheError> {
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(|source| CacheError::new(what, source))
    }
}
