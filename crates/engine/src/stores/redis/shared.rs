//! The connection that all commands of a process share: one at a time, opened again by itself, and always to a master.
//!
//! A task keeps it. Each second it greets the server; a connection is given up where the server has become a replica, is another
//! one, does not answer, where a command was refused because of a replica, and where sentinels name another master. Then
//! whatever waits for a reply is told that it is not known, and the address is looked up again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, RedisError, RedisFuture, RedisResult, Value,
};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::endpoint::{Endpoint, Session};
use super::error::is_of_replica;
use super::sentinels::{ASKED_EVERY, ASKED_EVERY_IN_TROUBLE, Master, Pool};
use crate::backoff::{Backoff, every};

/// How often the server is greeted.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pauses between attempts: short ones while a host resolves or a sentinel answers.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);
const RETRY_MAX_UNKNOWN: Duration = Duration::from_secs(5);
/// The longest that a command waits for a connection: more than an attempt may take.
const OPENED_WITHIN: Duration = Duration::from_secs(10);

/// A handle to it. Cheap to clone.
#[derive(Clone)]
pub(super) struct SharedConnection(Arc<Kept>);

struct Kept {
    inner: Arc<Inner>,
    /// The task that keeps it.
    keeper: Mutex<Option<AbortHandle>>,
}

struct Inner {
    endpoint: Endpoint,
    state: watch::Sender<State>,
}

#[derive(Clone)]
enum State {
    /// No task keeps it: nothing was sent yet, or the runtime of then is gone.
    Idle,
    Opening,
    Open(Open),
    /// The last attempt failed; the next one comes.
    Failed(RedisError),
}

#[derive(Clone)]
struct Open {
    session: Arc<Session>,
    since: Instant,
    given_up: CancellationToken,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
    }
}

impl SharedConnection {
    /// Nothing is sent until the first command.
    pub fn new(endpoint: Endpoint) -> Self {
        let inner = Arc::new(Inner { endpoint, state: watch::Sender::new(State::Idle) });
        Self(Arc::new(Kept { inner, keeper: Mutex::default() }))
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.0.inner.endpoint
    }

    /// Waits until a connection was opened after this call, or a moment before it, when a command had failed already.
    pub async fn opened_again(&self) {
        let mut states = self.0.inner.state.subscribe();
        let is_new = match &*states.borrow() {
            State::Open(open) => open.since.elapsed() < RETRY_MAX && !open.given_up.is_cancelled(),
            State::Idle | State::Opening | State::Failed(_) => false,
        };
        if is_new {
            // Not at once: a command may fail on the new one, too.
            return tokio::time::sleep(RETRY_MIN).await;
        }
        states.mark_unchanged();
        // The sender lives as long as this handle.
        drop(states.changed().await);
        drop(
            states
                .wait_for(|state| matches!(state, State::Open(open) if !open.given_up.is_cancelled()))
                .await,
        );
    }

    /// A connection of its own, to where the commands of the process go.
    pub async fn open_another(
        &self,
        config: AsyncConnectionConfig,
        protocol: ProtocolVersion,
    ) -> RedisResult<Session> {
        let open = self.open().await?;
        self.endpoint().open(open.session.master.as_ref(), config, protocol).await
    }

    /// Whether the commands of the process go to another server than this connection.
    pub fn has_moved_from(&self, session: &Session) -> bool {
        match &*self.0.inner.state.borrow() {
            State::Open(open) => open.session.address != session.address,
            State::Idle | State::Opening | State::Failed(_) => false,
        }
    }

    /// The open connection. One that is being opened is waited for; where the last attempt failed, the next one is.
    async fn open(&self) -> RedisResult<Open> {
        if let State::Open(open) = &*self.0.inner.state.borrow()
            && !open.given_up.is_cancelled()
        {
            return Ok(open.clone());
        }
        let mut states = self.0.inner.state.subscribe();
        self.keep()?;
        let mut before = match &*states.borrow_and_update() {
            State::Failed(error) => Some(error.clone()),
            _ => None,
        };
        let (patience, limit) = (tokio::time::sleep(RETRY_MAX), tokio::time::sleep(OPENED_WITHIN));
        tokio::pin!(patience, limit);
        loop {
            let state = states.borrow_and_update().clone();
            match (state, &before) {
                (State::Open(open), _) if !open.given_up.is_cancelled() => return Ok(open),
                (State::Failed(error), None) => return Err(error),
                (State::Failed(_), Some(_)) => {}
                (State::Idle | State::Opening | State::Open(_), _) => before = None,
            }
            tokio::select! {
                // The sender lives as long as this handle.
                changed = states.changed() => drop(changed),
                () = &mut patience, if before.is_some() => {
                    return Err(before.unwrap_or_else(gone));
                }
                () = &mut limit => {
                    // Each attempt has its own limits: whoever keeps the connection is of a runtime that nobody drives. The next
                    // caller begins anew, in its own.
                    self.leave_keeper();
                    return Err(before.unwrap_or_else(gone));
                }
            }
        }
    }

    /// Sees to it that a task keeps the connection.
    fn keep(&self) -> RedisResult<()> {
        let mut keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.as_ref().is_some_and(|keeper| !keeper.is_finished()) {
            return Ok(());
        }
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| RedisError::from(std::io::Error::other(error.to_string())))?;
        *keeper = Some(runtime.spawn(keep(self.0.inner.clone())).abort_handle());
        Ok(())
    }

    fn leave_keeper(&self) {
        let keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
    }

    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
        is_refused: impl FnOnce(&T) -> bool,
    ) -> RedisResult<T> {
        let Open { session, given_up, .. } = self.open().await?;
        let mut connection = session.connection.clone();
        let reply = tokio::select! {
            // Replies that are there are taken.
            biased;
            reply = question(&mut connection) => reply,
            () = given_up.cancelled() => Err(gone()),
        };
        let is_useless = match &reply {
            Ok(reply) => is_refused(reply),
            Err(error) => error.is_unrecoverable_error() || is_of_replica(error),
        };
        if is_useless {
            given_up.cancel();
        }
        reply
    }
}

impl ConnectionLike for SharedConnection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        let send =
            async |connection: &mut MultiplexedConnection| connection.send_packed_command(command).await;
        async move { self.ask(send, is_refusal).await }.boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let send = async move |connection: &mut MultiplexedConnection| {
            connection.send_packed_commands(pipeline, offset, count).await
        };
        async move { self.ask(send, |replies| replies.iter().any(is_refusal)).await }.boxed()
    }

    fn get_db(&self) -> i64 {
        self.endpoint().database()
    }
}

fn is_refusal(reply: &Value) -> bool {
    match reply {
        Value::ServerError(error) => is_of_replica(&error.clone().into()),
        _ => false,
    }
}

fn gone() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the connection was given up").into()
}

/// Says that nobody keeps the connection any more.
struct IdleOnDrop<'a>(&'a Inner);

impl Drop for IdleOnDrop<'_> {
    fn drop(&mut self) {
        self.0.state.send_replace(State::Idle);
    }
}

async fn keep(inner: Arc<Inner>) {
    let _idle = IdleOnDrop(&inner);
    let mut pool = Pool::new(&inner.endpoint);
    let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut rare = Backoff::new(RETRY_MAX, RETRY_MAX_UNKNOWN);
    loop {
        inner.state.send_replace(State::Opening);
        match open(&inner.endpoint, pool.as_mut()).await {
            Ok((session, master)) => {
                let began = Instant::now();
                let given_up = CancellationToken::new();
                let open = Open { session: Arc::new(session), since: began, given_up };
                inner.state.send_replace(State::Open(open.clone()));
                let reason = useless(&inner.endpoint, &open, pool.as_mut(), master.as_ref()).await;
                // What repeats is said once.
                if RETRY_MAX_UNKNOWN < began.elapsed() {
                    info!(reason, address = open.session.address, "the connection to redis is opened again");
                } else {
                    debug!(reason, address = open.session.address, "the connection to redis is opened again");
                }
                open.given_up.cancel();
                retry.reset_after(began.elapsed());
                rare.reset();
                // A server that takes connections and refuses commands is not asked without end.
                if began.elapsed() < RETRY_MAX {
                    inner.state.send_replace(State::Opening);
                    retry.wait().await;
                }
            }
            Err((error, tried)) => {
                debug!(%error, "redis cannot be connected to, trying again");
                let is_known = match &mut pool {
                    Some(pool) => pool.master().await.is_ok(),
                    None => inner.endpoint.resolves().await,
                };
                inner.state.send_replace(State::Failed(error));
                let pause = if is_known {
                    rare.reset();
                    retry.pause()
                } else {
                    rare.pause()
                };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = moved(pool.as_mut(), tried.as_ref(), ASKED_EVERY_IN_TROUBLE) => {}
                }
            }
        }
    }
}

/// Opens a connection; where sentinels name another master meanwhile, to that one. An error comes with the master that was tried.
async fn open(
    endpoint: &Endpoint,
    mut pool: Option<&mut Pool>,
) -> Result<(Session, Option<Master>), (RedisError, Option<Master>)> {
    loop {
        let master = match &mut pool {
            Some(pool) => Some(pool.master().await.map_err(|trouble| (trouble.into(), None))?),
            None => None,
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(endpoint.connect_timeout()))
            .set_response_timeout(Some(endpoint.response_timeout()));
        let address = master.as_ref().map(|master| &master.address);
        tokio::select! {
            opened = endpoint.open(address, config, ProtocolVersion::RESP2) => {
                return match opened {
                    Ok(session) => Ok((session, master)),
                    Err(error) => Err((error, master)),
                };
            }
            () = moved(pool.as_deref_mut(), master.as_ref(), ASKED_EVERY) => {}
        }
    }
}

/// Waits until sentinels name another master.
async fn moved(pool: Option<&mut Pool>, master: Option<&Master>, asked_every: Duration) {
    match (pool, master) {
        (Some(pool), Some(master)) => pool.moved_from(master, asked_every).await,
        _ => std::future::pending().await,
    }
}

/// Waits until the connection is of no use any more; answers why.
async fn useless(
    endpoint: &Endpoint,
    open: &Open,
    pool: Option<&mut Pool>,
    master: Option<&Master>,
) -> String {
    let looks = async {
        let mut ticks = every(LOOK_EVERY);
        loop {
            ticks.tick().await;
            if let Err(error) = open.session.look(endpoint).await {
                return error.to_string();
            }
        }
    };
    tokio::select! {
        () = open.given_up.cancelled() => "a command failed".to_owned(),
        () = moved(pool, master, ASKED_EVERY) => "the sentinels name another master".to_owned(),
        reason = looks => reason,
    }
}
