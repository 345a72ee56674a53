//! Connections: pinned settings, read-only unless a statement says otherwise.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::SourceError;
use super::connector::{Connector, Profile};
use super::pool::Pool;
use super::session::Session;
use cachekeeper_config as config;

/// A handle to the primary. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Postgres {
    pub(super) pool: Pool,
    /// For statements that nobody waits for longer than [`QUICK_MAX`]: the server ends them then, so that they hold no connection.
    pub(super) quick: Pool,
    connector: Arc<Connector>,
    /// For what may take long.
    unlimited: Profile,
    /// Connections of the pool that were opened before this are replaced.
    renewed_at: Arc<RwLock<Option<Instant>>>,
}

/// The longest that a quick statement may take.
pub const QUICK_MAX: Duration = Duration::from_secs(1);
/// Connections for quick statements. A locked table must not take those that other loads need.
pub(super) const QUICK_CONNECTIONS: u32 = 6;
/// How long a statement waits for a lock at most.
const LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// The oldest Postgres that has what the statements need.
pub const POSTGRES_MAJOR_MIN: i32 = 13;

impl Postgres {
    /// Prepares a handle; nothing connects until the first statement.
    ///
    /// # Errors
    /// [`SourceError`] when the URL cannot be used.
    pub fn new(settings: &config::Postgres) -> Result<Self, SourceError> {
        let connector =
            Connector::new(settings).map_err(|source| SourceError::new("read the URL", source))?;
        let connector = Arc::new(connector);
        let attempt = connector.attempt_limit();
        // Less than the statement's limit, so that waiting for a lock is told from being slow.
        let lock_limit = (settings.statement_timeout / 2).min(LOCK_TIMEOUT_MAX);
        let profile = |limit: Option<Duration>| {
            let milliseconds = |limit: Duration| format!("{}ms", limit.as_millis());
            let set = |name: &str, value: String| (name.to_owned(), value);
            Profile {
                settings: vec![
                    set("statement_timeout", milliseconds(limit.unwrap_or_default())),
                    set("lock_timeout", milliseconds(lock_limit)),
                    // A process that is stopped in the middle of a write may not hold its locks for ever.
                    set("idle_in_transaction_session_timeout", "10s".to_owned()),
                ],
                // The server's limit comes first, where it is heard.
                limit: limit.map(|limit| limit + attempt),
                attempt,
            }
        };
        let renewed_at: Arc<RwLock<Option<Instant>>> = Arc::default();
        let pool = |profile, most, wait| {
            Pool::new(Arc::clone(&connector), profile, (most, wait), Arc::clone(&renewed_at))
        };
        let quick_wait = attempt.min(QUICK_MAX);
        let quick = Profile { attempt: quick_wait, ..profile(Some(QUICK_MAX)) };
        Ok(Self {
            pool: pool(profile(Some(settings.statement_timeout)), settings.max_connections, attempt),
            quick: pool(quick, QUICK_CONNECTIONS.min(settings.max_connections), quick_wait),
            unlimited: profile(None),
            connector,
            renewed_at,
        })
    }

    /// Asks whether the server answers.
    ///
    /// # Errors
    /// [`SourceError`], with what to do about it.
    pub async fn ping(&self) -> Result<(), SourceError> {
        self.open("reach the server").await.map(drop)
    }

    /// The major version of a server that is too old; none: it is not.
    ///
    /// # Errors
    /// [`SourceError`] where it does not answer.
    pub async fn too_old(&self) -> Result<Option<i32>, SourceError> {
        let sql = "select current_setting('server_version_num')::int4 / 10000";
        let major: Result<i32, _> = sqlx::query_scalar(sql).fetch_one(&self.pool).await;
        let major = major.map_err(|source| SourceError::new("ask for the server's version", source))?;
        Ok(Some(major).filter(|major| *major < POSTGRES_MAJOR_MIN))
    }

    /// Where no connection was free, whether that is because none can be made.
    pub async fn explain(&self, error: SourceError) -> SourceError {
        if !error.is_out_of_connections() {
            return error;
        }
        match self.open(error.what).await {
            // All of them are in use, then.
            Ok(_connection) => error,
            Err(reason) => reason,
        }
    }

    /// A connection of its own, without a time limit for statements: for backfills.
    pub(super) async fn open_unlimited(&self) -> Result<Session, SourceError> {
        self.open("open a connection").await
    }

    async fn open(&self, what: &'static str) -> Result<Session, SourceError> {
        let connected = self.connector.connect(&self.unlimited).await;
        connected.map_err(|error| SourceError::new(what, error.into()))
    }

    /// What the sessions of the pool know is out of date: settings of roles and databases, which they read only once, and the
    /// types that they remember. From now on none that was open before is used.
    pub(crate) fn renew_connections(&self) {
        *self.renewed_at.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Closes all connections.
    pub async fn close(&self) {
        tokio::join!(self.pool.close(), self.quick.close());
    }
}
