//! Connections: pinned settings, read-only unless a statement says otherwise.

use std::io::{self, ErrorKind};
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use super::SourceError;
use super::error::CONNECTING;
use cachekeeper_config as config;

/// A handle to the primary. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Postgres {
    pub(super) pool: PgPool,
    /// For statements that nobody waits for longer than [`QUICK_MAX`]: the server ends them then, so that they hold no connection.
    pub(super) quick: PgPool,
    options: PgConnectOptions,
    connect_timeout: Duration,
    /// Connections of the pool that were opened before this are replaced.
    renewed_at: Arc<RwLock<Option<Instant>>>,
}

/// A connection that nobody used for longer is asked whether it lives before it is used again.
const ASKED_AFTER: Duration = Duration::from_millis(100);
/// How long before the moment at which it counts as open a session may have read its settings.
const SESSION_BEGINS_WITHIN: Duration = Duration::from_millis(200);
/// The longest that a quick statement may take.
pub const QUICK_MAX: Duration = Duration::from_secs(1);
/// Connections for quick statements. A locked table must not take those that other loads need.
const QUICK_CONNECTIONS: u32 = 6;
/// How long a statement waits for a lock at most.
const LOCK_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// What every session has, whatever is set for its role or database: what shapes texts and decides what a load sees.
const PINNED: [(&str, &str); 12] = [
    // No load may take part in a write, lock rows, or see its own changes.
    ("default_transaction_read_only", "on"),
    ("default_transaction_isolation", "read committed"),
    // A policy hides rows; it does not make the query fail.
    ("row_security", "on"),
    // The text of a key must not depend on who loads it.
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "iso_8601"),
    ("extra_float_digits", "1"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    // Nobody needs to know which trigger was not there when it was replaced.
    ("client_min_messages", "warning"),
    // The first row of a backfill carries its snapshot, so the parts of its union must run in order.
    ("enable_parallel_append", "off"),
    ("jit", "off"),
];

/// Sets them in a session, in case a pooler has not passed them on. Names are looked up where the role's own setting says, and in
/// temporary tables last: what a trigger has made in a session must not stand for a table of the query.
const PIN: &str = r#"
    select pg_catalog.set_config(s.name, s.value, false) from unnest($1::text[], $2::text[]) s(name, value)
    union all
    select pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', nullif(p.path, ''), 'pg_temp'), false)
    from (select pg_catalog.regexp_replace(pg_catalog.regexp_replace(pg_catalog.current_setting('search_path'),
        '(^|,)\s*"?pg_temp"?\s*(?=,|$)', '', 'g'), '^[\s,]+', '')) p(path)"#;

async fn pin(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let (names, values): (Vec<&str>, Vec<&str>) = PINNED.into_iter().unzip();
    sqlx::query(PIN).persistent(false).bind(names).bind(values).execute(connection).await.map(drop)
}

/// In a transaction that may write, names mean what they mean to the application's own sessions: what its triggers make may be
/// temporary tables that they look for first.
pub(super) const BEGIN_WRITE: &str = "begin read write; set local search_path to default";

/// What the connections of a pool have in common.
struct Pooling<'a> {
    options: &'a PgConnectOptions,
    renewed_at: &'a Arc<RwLock<Option<Instant>>>,
}

impl Pooling<'_> {
    /// A pool of at most so many connections, for each of which callers wait at most so long.
    fn connections(&self, most: u32, wait: Duration) -> PgPool {
        let renewed = Arc::clone(self.renewed_at);
        PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(wait)
            .idle_timeout(Duration::from_secs(300))
            // A connection that was just used is not asked whether it lives: that would cost each load a round trip.
            .test_before_acquire(false)
            .before_acquire(move |connection, about| {
                let renewed_at = *renewed.read().unwrap_or_else(PoisonError::into_inner);
                let is_fresh = renewed_at.is_none_or(|at| about.age + SESSION_BEGINS_WITHIN < at.elapsed());
                Box::pin(async move {
                    Ok(is_fresh && (about.idle_for < ASKED_AFTER || connection.ping().await.is_ok()))
                })
            })
            .after_connect(|connection, _| Box::pin(pin(connection)))
            .connect_lazy_with(self.options.clone())
    }
}

impl Postgres {
    /// Prepares a handle; nothing connects until the first statement.
    ///
    /// # Errors
    /// [`SourceError`] when the URL cannot be used.
    pub fn new(settings: &config::Postgres) -> Result<Self, SourceError> {
        let error = |source| SourceError::new("read the URL", source);
        let mut options = PgConnectOptions::from_str(settings.driver_url().reveal()).map_err(error)?;
        if let Some(password) = &settings.password {
            options = options.password(password.reveal());
        }
        let limit = format!("{}ms", settings.statement_timeout.as_millis());
        // Less than the statement's limit, so that waiting for a lock is told from being slow.
        let lock_limit = (settings.statement_timeout / 2).min(LOCK_TIMEOUT_MAX);
        let lock_limit = format!("{}ms", lock_limit.as_millis());
        let options = options
            .application_name("cachekeeper")
            .options(PINNED)
            .options([
                ("statement_timeout", limit.as_str()),
                ("lock_timeout", lock_limit.as_str()),
                // A process that is stopped in the middle of a write may not hold its locks for ever.
                ("idle_in_transaction_session_timeout", "10s"),
            ])
            .disable_statement_logging();
        let renewed_at: Arc<RwLock<Option<Instant>>> = Arc::default();
        let pool = Pooling { options: &options, renewed_at: &renewed_at }
            .connections(settings.max_connections, settings.connect_timeout);
        let limit = format!("{}ms", QUICK_MAX.as_millis());
        let quick = options.clone().options([("statement_timeout", limit.as_str())]);
        let quick = Pooling { options: &quick, renewed_at: &renewed_at }.connections(
            QUICK_CONNECTIONS.min(settings.max_connections),
            settings.connect_timeout.min(QUICK_MAX),
        );
        Ok(Self { pool, quick, options, connect_timeout: settings.connect_timeout, renewed_at })
    }

    /// Asks whether the server answers.
    ///
    /// # Errors
    /// [`SourceError`], with what to do about it.
    pub async fn ping(&self) -> Result<(), SourceError> {
        self.open("reach the server", &self.options).await.map(drop)
    }

    /// The pool tries again and again and then says only that it took too long. Where that is why a statement failed, one
    /// more attempt tells what is wrong.
    pub async fn explain(&self, error: SourceError) -> SourceError {
        if !error.is_out_of_connections() {
            return error;
        }
        match self.open(error.what, &self.options).await {
            // All of them are in use, then.
            Ok(_connection) => error,
            Err(reason) => reason,
        }
    }

    /// A connection of its own, without a time limit for statements: for backfills.
    pub(super) async fn open_unlimited(&self) -> Result<PgConnection, SourceError> {
        self.open("open a connection", &self.options.clone().options([("statement_timeout", "0")])).await
    }

    async fn open(
        &self,
        what: &'static str,
        options: &PgConnectOptions,
    ) -> Result<PgConnection, SourceError> {
        let place = || match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        };
        let connect = async {
            let mut connection = PgConnection::connect_with(options).await?;
            pin(&mut connection).await?;
            Ok(connection)
        };
        let (kind, text) = match tokio::time::timeout(self.connect_timeout, connect).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(sqlx::Error::Io(error))) if error.kind() == ErrorKind::ConnectionRefused => {
                (error.kind(), "connection refused".to_owned())
            }
            Ok(Err(sqlx::Error::Io(error))) => (error.kind(), error.to_string()),
            Ok(Err(other)) => return Err(SourceError::new(what, other)),
            Err(_elapsed) => {
                (ErrorKind::TimedOut, format!("no answer within {} ms", self.connect_timeout.as_millis()))
            }
        };
        let source = sqlx::Error::Io(io::Error::new(kind, format!("{CONNECTING}{}: {text}", place())));
        Err(SourceError::new(what, source))
    }

    /// What the sessions of the pool know is out of date: settings of roles and databases, which they read only once, and the
    /// types that they remember. From now on none that was open before is used.
    pub(crate) fn renew_connections(&self) {
        *self.renewed_at.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.pool.close().await;
        self.quick.close().await;
    }
}
