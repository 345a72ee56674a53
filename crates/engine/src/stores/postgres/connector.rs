//! How a connection is made: where the primary is, with the secrets and certificates of the moment, and the settings of every
//! session. Files are read again each time, so that what is rotated needs no restart.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection as _, PgConnection};

use super::error::{ConnectError, ErrorKind};
use super::inquiry::{Inquiry, Open};
use super::session::{Patience, Session};
use super::tls_files;
use super::{pinned, pooler};
use cachekeeper_config as config;
use cachekeeper_config::Secret;
use cachekeeper_config::postgres_url::{PostgresServer, PostgresUrl, Target};

/// Makes connections.
#[derive(Debug)]
pub(super) struct Connector {
    url: Secret,
    url_file: Option<PathBuf>,
    password_file: Option<PathBuf>,
    connect_timeout: Duration,
    /// Which server was the primary last.
    last_good: AtomicUsize,
    /// Whether it was looked whether a pooler shares sessions.
    is_looked_at: AtomicBool,
}

/// What a kind of session is for.
#[derive(Debug, Clone)]
pub(super) struct Profile {
    /// Settings of its own.
    pub settings: Vec<(String, String)>,
    /// How long one waits for an answer; none: as long as the server is at work.
    pub limit: Option<Duration>,
    /// How long an attempt to connect to one server may take.
    pub attempt: Duration,
}

/// The URL and the password of the moment.
struct Secrets {
    url: PostgresUrl,
    password: Option<Secret>,
}

impl Secrets {
    fn options(&self, server: &PostgresServer) -> Result<PgConnectOptions, sqlx::Error> {
        // The driver reads `PGPASSFILE` here too.
        let mut options = PgConnectOptions::from_str(self.url.driver_url(server).reveal())?;
        if let Some(password) = &self.password {
            options = options.password(password.reveal());
        }
        let given = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let wrong = |text: String| sqlx::Error::Configuration(text.into());
        // As libpq; the driver takes what is empty, and passes over what is no port.
        match given("PGHOST").filter(|_| server.host.is_none()) {
            Some(hosts) if hosts.to_string_lossy().contains(',') => {
                let hosts = hosts.display();
                return Err(wrong(format!(
                    "PGHOST names several servers ({hosts}): give them in postgres.url"
                )));
            }
            None if server.host.is_none() && std::env::var_os("PGHOST").is_some() => {
                options = options.host("localhost");
            }
            _ => {}
        }
        if let Some(port) = given("PGPORT").filter(|_| server.port.is_none())
            && port.to_str().and_then(|port| port.parse::<u16>().ok()).is_none()
        {
            return Err(wrong(format!("PGPORT is {}, which is no port", port.display())));
        }
        // The driver knows no name of the system's user by itself.
        if !self.url.has_user()
            && given("PGUSER").is_none()
            && let Ok(user) = whoami::username()
        {
            options = options.username(&user);
        }
        Ok(options
            .application_name(self.url.application_name.as_deref().unwrap_or("cachekeeper"))
            // Poolers refuse what they do not know. It is set later.
            .extra_float_digits(None)
            .disable_statement_logging())
    }
}

impl Connector {
    /// # Errors
    /// [`sqlx::Error::Configuration`] when the URL cannot be used.
    pub fn new(settings: &config::Postgres) -> Result<Self, sqlx::Error> {
        let url = PostgresUrl::parse(settings.url.reveal())
            .map_err(|problem| sqlx::Error::Configuration(problem.into()))?;
        Ok(Self {
            url: settings.url.clone(),
            url_file: settings.url_file.clone(),
            password_file: settings.password_file.clone(),
            connect_timeout: url.connect_timeout.unwrap_or(settings.connect_timeout),
            last_good: AtomicUsize::new(0),
            is_looked_at: AtomicBool::new(false),
        })
    }

    /// How long an attempt may take.
    pub fn attempt_limit(&self) -> Duration {
        self.connect_timeout
    }

    /// Reads the files again.
    async fn secrets(&self) -> Result<Secrets, ConnectError> {
        let error = |reason: String| ConnectError::of_settings("Postgres", &reason);
        let url = match &self.url_file {
            Some(file) => read(file.clone()).await.map_err(error)?,
            None => self.url.clone(),
        };
        let url = PostgresUrl::parse(url.reveal()).map_err(|problem| error(problem.to_string()))?;
        let password = match &self.password_file {
            Some(file) => Some(read(file.clone()).await.map_err(error)?),
            None => None,
        };
        Ok(Secrets { url, password })
    }

    /// Connects to the primary: first where it was last, then in the order of the URL.
    ///
    /// # Errors
    /// [`ConnectError`], with what is wrong with each server.
    pub async fn connect(self: &Arc<Self>, profile: &Profile) -> Result<Session, ConnectError> {
        let secrets = self.secrets().await?;
        let servers = &secrets.url.servers;
        let last_good = self.last_good.load(Ordering::Relaxed).min(servers.len().saturating_sub(1));
        let mut order: Vec<usize> = (0..servers.len()).filter(|place| *place != last_good).collect();
        order.insert(0, last_good);
        let mut failures = Vec::new();
        for place in order {
            match self.connect_to(&secrets, place, profile).await {
                Ok(session) => {
                    self.last_good.store(place, Ordering::Relaxed);
                    return Ok(session);
                }
                // The same pooler, or one like it, stands before all of them.
                Err(error) if error.kind == ErrorKind::Pooler => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        Err(ConnectError::of_all(failures))
    }

    async fn connect_to(
        self: &Arc<Self>,
        secrets: &Secrets,
        server: usize,
        profile: &Profile,
    ) -> Result<Session, ConnectError> {
        let Some(address) = secrets.url.servers.get(server) else {
            return Err(ConnectError::of_settings("Postgres", "the URL has no server"));
        };
        let place = address.to_string();
        let error = |source: sqlx::Error| ConnectError::of(&place, &source);
        let limit = profile.attempt.min(self.connect_timeout);
        let attempt = async {
            tls_files::check(&secrets.url.files)
                .await
                .map_err(|reason| ConnectError::of_settings(&place, &reason))?;
            let options = secrets.options(address).map_err(error)?;
            let mut connection = PgConnection::connect_with(&options).await.map_err(error)?;
            let token = format!("{:016x}", rand::random::<u64>());
            let settings = secrets.url.settings.iter().chain(&profile.settings).cloned().collect::<Vec<_>>();
            let facts = pinned::pin(&mut connection, &settings, &token).await.map_err(error)?;
            if facts.is_standby {
                return Err(ConnectError::standby(&place));
            }
            if facts.is_read_only && secrets.url.target == Target::ReadWrite {
                return Err(ConnectError::read_only(&place));
            }
            if !pinned::is_kept(&mut connection, facts.process, &token).await.map_err(error)? {
                return Err(self.shared(&place));
            }
            if !self.is_looked_at.load(Ordering::Relaxed) {
                self.look_for_pooler(&mut connection, facts.process, &options, &place).await?;
            }
            let connector = Arc::clone(self);
            let open: Open = Arc::new(move || {
                let connector = Arc::clone(&connector);
                Box::pin(async move { connector.plain(server).await })
            });
            let inquiry = Inquiry { open, limit, process: facts.process };
            let patience = Patience { inquiry, limit: profile.limit };
            Ok(Session::new(connection, facts.process, patience))
        };
        let attempt = tokio::time::timeout(limit, attempt).await;
        attempt.unwrap_or_else(|_elapsed| Err(ConnectError::slow(&place, limit)))
    }

    /// Looks once whether sessions are shared; after they were, each time, until they are not.
    async fn look_for_pooler(
        &self,
        connection: &mut PgConnection,
        process: i32,
        options: &PgConnectOptions,
        place: &str,
    ) -> Result<(), ConnectError> {
        // A role that may have one connection only is not kept out for that.
        let Ok(other) = PgConnection::connect_with(options).await else { return Ok(()) };
        let is_shared = pooler::is_shared(connection, process, other).await;
        if is_shared.map_err(|source| ConnectError::of(place, &source))? {
            return Err(self.shared(place));
        }
        self.is_looked_at.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn shared(&self, place: &str) -> ConnectError {
        self.is_looked_at.store(false, Ordering::Relaxed);
        ConnectError::pooler(place)
    }

    /// Whether a session that nobody used for a while can be used.
    ///
    /// # Errors
    /// A pooler has given it to somebody else meanwhile.
    pub async fn is_alive(&self, session: &mut Session) -> Result<bool, ConnectError> {
        match session.is_own().await {
            Some(false) => Err(self.shared("Postgres")),
            answer => Ok(answer.is_some()),
        }
    }

    /// A bare connection to one of the servers.
    async fn plain(&self, server: usize) -> Result<PgConnection, sqlx::Error> {
        let secrets = self.secrets().await?;
        let address = secrets.url.servers.get(server).or(secrets.url.servers.first());
        let address = address.ok_or(sqlx::Error::PoolClosed)?;
        PgConnection::connect_with(&secrets.options(address)?).await
    }
}

/// The one line that a file holds. Its file system may be slow.
async fn read(file: PathBuf) -> Result<Secret, String> {
    let name = file.display().to_string();
    match tokio::task::spawn_blocking(move || Secret::of_file(&file)).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(error) => Err(format!("{name} cannot be read: {error}")),
    }
}
