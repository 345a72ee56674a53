//! Connections that are used again and again. `sqlx` has a pool too, but it connects by options that do not change, and tells of a
//! failed attempt only that it took too long: here the primary is looked for, and secrets are read again, each time.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Either, Error, Execute, Executor, Postgres as Server, SqlStr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connector::{Connector, Profile};
use super::session::{Session, Transaction};

/// A connection that nobody used for longer is asked whether it lives before it is used again.
const ASKED_AFTER: Duration = Duration::from_millis(100);
/// A connection that nobody used for longer is closed.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How long before the moment at which it counts as open a session may have read its settings.
const SESSION_BEGINS_WITHIN: Duration = Duration::from_millis(200);
/// How long one waits until a connection that was used is ready for the next.
const RETURN_WITHIN: Duration = Duration::from_secs(5);
/// Pauses between attempts, while a server starts or is promoted.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A pool of at most so many connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    connector: Arc<Connector>,
    profile: Profile,
    /// How long callers wait for a connection.
    wait: Duration,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// Connections that were opened before this are replaced.
    renewed_at: Arc<RwLock<Option<Instant>>>,
}

#[derive(Debug)]
struct Idle {
    session: Session,
    opened: Instant,
    since: Instant,
}

/// A connection of the pool, which goes back there.
#[derive(Debug)]
pub struct Lease {
    session: Session,
    opened: Instant,
    permit: Option<OwnedSemaphorePermit>,
    pool: Arc<Shared>,
}

impl Pool {
    pub(super) fn new(
        connector: Arc<Connector>,
        profile: Profile,
        (most, wait): (u32, Duration),
        renewed_at: Arc<RwLock<Option<Instant>>>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(most as usize));
        Self(Arc::new(Shared { connector, profile, wait, permits, idle: Mutex::default(), renewed_at }))
    }

    /// A connection that lives.
    pub(super) async fn acquire(&self) -> Result<Lease, Error> {
        let permit = Arc::clone(&self.0.permits).acquire_owned();
        let permit = match tokio::time::timeout(self.0.wait, permit).await {
            Ok(permit) => permit.map_err(|_closed| Error::PoolClosed)?,
            Err(_elapsed) => return Err(Error::PoolTimedOut),
        };
        let lease =
            |session, opened| Lease { session, opened, permit: Some(permit), pool: Arc::clone(&self.0) };
        while let Some(mut idle) = self.0.next_idle() {
            if idle.since.elapsed() < ASKED_AFTER || self.0.connector.is_alive(&mut idle.session).await? {
                return Ok(lease(idle.session, idle.opened));
            }
        }
        let session = self.0.open().await?;
        Ok(lease(session, Instant::now()))
    }

    /// Begins a transaction.
    pub(super) async fn begin(&self) -> Result<Transaction<Lease>, Error> {
        Transaction::begin(self.acquire().await?, None).await
    }

    /// The same, by this statement.
    pub(super) async fn begin_with(&self, statement: &str) -> Result<Transaction<Lease>, Error> {
        Transaction::begin(self.acquire().await?, Some(statement)).await
    }

    /// Closes what nobody uses. What is in use is closed when it comes back.
    pub(super) async fn close(&self) {
        self.0.permits.close();
        let idle = std::mem::take(&mut *self.0.idle.lock().unwrap_or_else(PoisonError::into_inner));
        join_all(idle.into_iter().map(|idle| idle.session.close())).await;
    }
}

impl Shared {
    /// The connection that was used last, of those that may be used again.
    fn next_idle(&self) -> Option<Idle> {
        let renewed_at = *self.renewed_at.read().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |idle: &Idle| {
            renewed_at.is_none_or(|at| at + SESSION_BEGINS_WITHIN < idle.opened)
                && idle.since.elapsed() < IDLE_MAX
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(is_fresh);
        idle.pop()
    }

    /// A new connection. A server that starts, and one that is being promoted, is waited for.
    async fn open(&self) -> Result<Session, Error> {
        let begun = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            match self.connector.connect(&self.profile).await {
                Err(error) if error.may_pass && begun.elapsed() + pause < self.wait => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX).min(self.wait / 5);
                }
                done => return Ok(done?),
            }
        }
    }

    /// Puts a connection back once it is ready for the next caller.
    async fn take_back(self: Arc<Self>, mut session: Session, opened: Instant, permit: OwnedSemaphorePermit) {
        let is_ready = matches!(tokio::time::timeout(RETURN_WITHIN, session.flush()).await, Ok(Ok(())));
        if is_ready && !self.permits.is_closed() {
            let idle = Idle { session, opened, since: Instant::now() };
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
        }
        drop(permit);
    }
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (Some(session), Some(permit)) = (self.session.take(), self.permit.take()) else { return };
        // Without a runtime the connection goes with this.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(Arc::clone(&self.pool).take_back(session, self.opened, permit)));
        }
    }
}

impl<'p> Executor<'p> for &'p Pool {
    type Database = Server;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Server>,
    {
        // All that it answers is read at once: a stream that borrows from what it owns cannot be written.
        let answers = async move {
            let mut lease = self.acquire().await?;
            let answers: Vec<_> = lease.session.fetch_many(query).try_collect().await?;
            Ok::<_, Error>(futures_util::stream::iter(answers.into_iter().map(Ok)))
        };
        futures_util::stream::once(answers).try_flatten().boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Server>,
    {
        Box::pin(async move { self.acquire().await?.session.fetch_optional(query).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move { self.acquire().await?.session.prepare_with(sql, parameters).await })
    }
}
