//! How a connection is opened: with the passwords and certificates as they are now, and only to a master.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisError,
};

use super::attempt::{Attempt, Login};
use super::error::is_of_login;
use super::hello::{self, Hello, greet};
use super::trouble::Trouble;
use super::{CacheError, tls};
use cachekeeper_config::{self as config, Password, Sentinels};

/// Where Redis is, and with what a connection to it begins.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    settings: Arc<config::Redis>,
    sentinels: Option<Arc<Sentinels>>,
    /// The server of the URL; where it names sentinels, the address is not the server's.
    server: ConnectionInfo,
}

/// How long the answer to a greeting may take, before it is asked for on another connection. Large replies may be in its way.
pub(super) const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
const A_MOMENT: Duration = Duration::from_millis(500);

/// Host and port of a master.
pub(super) type Address = (String, u16);

/// A connection to a master.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub connection: MultiplexedConnection,
    /// What the server said first; none: it does not tell.
    hello: Option<Hello>,
    /// What the connection was named; none: the user may not name it.
    name: Option<String>,
    /// Where it goes, for messages.
    pub address: String,
    /// The master that sentinels named.
    pub master: Option<Address>,
}

impl Endpoint {
    pub fn new(settings: &config::Redis) -> Result<Self, CacheError> {
        const WHAT: &str = "read the URL";
        let wrong = |flaw: config::AddressFlaw| CacheError::of_address(&flaw);
        if settings.cluster().map_err(wrong)?.is_some() {
            let text = "this URL names a Redis Cluster, where only the worker works yet".to_owned();
            let help = "give the URL of a single Redis, or of the sentinels that know it; docs/cluster.md says what works";
            return Err(CacheError::new(WHAT, Trouble::new("redis.url", text, help).into()));
        }
        let sentinels = settings.sentinels().map_err(wrong)?.map(Arc::new);
        // The address is replaced by what the sentinels say.
        let url = match &sentinels {
            Some(known) => known.server("localhost", 1),
            None => settings.url.reveal().to_owned(),
        };
        let server = url.into_connection_info().map_err(|source| CacheError::new(WHAT, source))?;
        Ok(Self { settings: Arc::new(settings.clone()), sentinels, server })
    }

    pub fn sentinels(&self) -> Option<&Arc<Sentinels>> {
        self.sentinels.as_ref()
    }

    pub fn database(&self) -> i64 {
        self.server.redis_settings().db()
    }

    pub fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout
    }

    pub fn response_timeout(&self) -> Duration {
        self.settings.response_timeout
    }

    /// Whether the host of the URL is known: then it is worth asking again soon.
    pub async fn resolves(&self) -> bool {
        match self.server.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                tokio::net::lookup_host((host.as_str(), *port)).await.is_ok()
            }
            _ => true,
        }
    }

    /// Opens a connection to the server of the URL, or to the master that sentinels told, and looks whether it is one. Its limits
    /// are those of `config`.
    pub async fn open(
        &self,
        master: Option<&Address>,
        config: AsyncConnectionConfig,
        protocol: ProtocolVersion,
    ) -> Result<Session, RedisError> {
        let info = match master {
            Some((host, port)) => {
                self.server.clone().set_addr(with_host(self.server.addr(), host.clone(), *port))
            }
            None => self.server.clone(),
        };
        let settings = info.redis_settings().clone().set_protocol(protocol);
        let settings = match &self.settings.password {
            Some(password) => settings.set_password(read("redis.password_file", password)?),
            None => settings,
        };
        let (mut connection, attempt) =
            self.connect(info.set_redis_settings(settings), config, Login::of_server(&self.settings)).await?;
        let tls = &self.settings.tls;
        let hello = greet(&mut connection).await.map_err(|error| attempt.in_words(error, tls))?;
        let name = hello::name(&mut connection).await?;
        let session = Session { connection, hello, name, address: attempt.address, master: master.cloned() };
        match session.hello {
            Some(hello) if hello.is_sentinel => Err(session.sentinel().into()),
            Some(hello) if !hello.is_master => Err(session.replica().into()),
            _ => Ok(session),
        }
    }

    /// Opens a connection to a sentinel.
    pub async fn open_sentinel(
        &self,
        (host, port): &Address,
        limit: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        let Some(sentinels) = &self.sentinels else { return Err(no_answer()) };
        let info = sentinels.sentinel(host, *port).into_connection_info()?;
        let mut settings = info.redis_settings().clone();
        if let Some(password) = &self.settings.sentinel_password {
            settings = settings.set_password(read("redis.sentinel_password_file", password)?);
        }
        if let Some(user) = &self.settings.sentinel_username {
            settings = settings.set_username(user);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        let login = Login::of_sentinels(&self.settings);
        Ok(self.connect(info.set_redis_settings(settings), config, login).await?.0)
    }

    /// An error that a sentinel has answered, in words.
    pub fn of_sentinel(&self, error: RedisError, (host, port): &Address) -> RedisError {
        if !is_of_login(&error) {
            return error;
        }
        Login::of_sentinels(&self.settings).refused(&format!("{host}:{port}")).into()
    }

    /// Whether the server answers on a new connection.
    async fn answers(&self, master: Option<&Address>) -> bool {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout()))
            .set_response_timeout(Some(self.response_timeout()));
        self.open(master, config, ProtocolVersion::RESP2).await.is_ok()
    }

    async fn connect(
        &self,
        info: ConnectionInfo,
        config: AsyncConnectionConfig,
        login: Login,
    ) -> Result<(MultiplexedConnection, Attempt), RedisError> {
        // Without this, replies to small pipelined commands wait for the delayed-acknowledgement timer.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        let (address, database) = (info.addr().to_string(), info.redis_settings().db());
        let attempt = Attempt { address, is_tls, database, login };
        let tls = &self.settings.tls;
        let certificates = if is_tls { tls::certificates(tls)? } else { None };
        let client = match certificates {
            Some(certificates) => Client::build_with_tls(info, certificates).map_err(|error| {
                Trouble::new(tls::setting(tls), error.to_string(), "give files in PEM form")
            })?,
            None => Client::open(info)?,
        };
        let opened = client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = opened.map_err(|error| attempt.in_words(error, tls))?;
        Ok((connection, attempt))
    }
}

impl Session {
    /// Waits for an answer on this connection. Where it does not come in time, and the server answers on another one, nothing passes
    /// through this one any more: it is not waited for any longer.
    pub async fn answered<T>(
        &self,
        endpoint: &Endpoint,
        within: Duration,
        answer: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let mut answer = pin!(answer);
        if let Ok(answer) = tokio::time::timeout(within, answer.as_mut()).await {
            return answer;
        }
        let answers_elsewhere = async {
            let answers = endpoint.answers(self.master.as_ref()).await;
            // It may have been busy until now, and answers here a moment later.
            tokio::time::sleep(A_MOMENT).await;
            answers
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            true = answers_elsewhere => Err(self.silent().into()),
        }
    }

    /// Asks whether the same server is still at the other end, and still a master.
    pub async fn look(&self, endpoint: &Endpoint) -> Result<(), RedisError> {
        let asked = async {
            let (mut one, mut other) = (self.connection.clone(), self.connection.clone());
            let name =
                async { if self.name.is_some() { hello::name_of(&mut other).await } else { Ok(None) } };
            tokio::try_join!(greet(&mut one), name)
        };
        let (now, name) = self.answered(endpoint, ANSWERED_WITHIN, asked).await?;
        if now.is_some_and(|now| !now.is_master) {
            return Err(self.replica().into());
        }
        let has_name = match (&self.name, name) {
            (Some(given), Some(name)) => {
                redis::from_redis_value::<Option<String>>(name).ok().flatten().as_ref() == Some(given)
            }
            _ => true,
        };
        let is_same = self.hello.zip(now).is_none_or(|(first, now)| first.is_of_same_session(&now));
        if !is_same || !has_name {
            let text = format!("another server is behind {} now", self.address);
            return Err(Trouble::new("redis.url", text, "nothing: it is connected to anew")
                .of_server()
                .into());
        }
        Ok(())
    }

    fn silent(&self) -> Trouble {
        let text =
            format!("nothing comes through a connection to {}, which answers on another one", self.address);
        Trouble::new("redis.url", text, "nothing: it is connected to anew").of_server()
    }

    fn sentinel(&self) -> Trouble {
        let text = format!("{} is a sentinel, which holds no data", self.address);
        let help =
            "write redis+sentinel://host:port,host:port/service/database, or give the address of a server";
        Trouble::new("redis.url", text, help)
    }

    fn replica(&self) -> Trouble {
        let address = &self.address;
        if self.master.is_some() {
            let text = format!("the sentinels name {address} as master, which is a replica");
            return Trouble::new(
                "redis.url",
                text,
                "wait until they have agreed, or `redis-cli -p 26379 sentinel reset NAME`",
            );
        }
        let text = format!("this Redis is a replica, where nothing can be stored: {address}");
        Trouble::new("redis.url", text, "give the address of its master, or the sentinels that know it")
    }
}

fn with_host(addr: &ConnectionAddr, host: String, port: u16) -> ConnectionAddr {
    match addr {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    }
}

fn read(setting: &'static str, password: &Password) -> Result<String, Trouble> {
    let secret = password.read().map_err(|error| {
        Trouble::new(
            setting,
            error.to_string(),
            "give a file that this user may read, with the password as its one line",
        )
    })?;
    Ok(secret.reveal().to_owned())
}

/// A sentinel that says nothing within its limit.
pub(super) fn no_answer() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer").into()
}
