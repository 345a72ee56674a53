//! What was changed under some prefixes, as the server tells by client-side caching (`CLIENT TRACKING … BCAST`), and up to when
//! nothing can be missing (R19).
//!
//! The connection carries nothing but heartbeats, one at a time. Invalidations leave a server after the replies of their event loop, and
//! with threads for input and output even later, so an answer proves nothing about the moment at which it was sent: **it proves
//! the moment at which the heartbeat before it was sent.** Each heartbeat asks whether the server is a master and whether it tracks
//! for this connection: one that a proxy has moved to another server is noticed by that.

use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{
    AsyncConnectionConfig, FromRedisValue, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisError, Value,
};
use tokio::time::{Instant, Interval};

use super::advance::{Watermark, parse};
use super::endpoint::Session;
use super::hashes::with_life;
use super::pushes::Pushes;
use super::shared::SharedConnection;
use super::{CacheError, Redis, ValueAndLife};
use crate::backoff::every;
use cachekeeper_protocol::entry::Shape;

const WHAT: &str = "hear what changes";
/// Reads on the server whose changes are told, and on no other: of each key its value and its lifetime. What a key of another type
/// holds is no value.
const MARKED_READ: &str = "
    local reply = {}
    for at, key in ipairs(KEYS) do
      local value = redis.pcall(ARGV[1] or 'GET', key)
      if type(value) == 'table' and value.err then
        if not string.find(value.err, 'WRONGTYPE', 1, true) then return value end
        value = false
      end
      reply[at] = {value, redis.call('PTTL', key)}
    end
    return reply";

/// What came in.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// These keys were written, deleted, or have expired.
    Changed(Vec<String>),
    /// The whole database was emptied.
    Flushed,
    /// Whatever was changed before this moment was told before.
    Proved {
        /// The moment.
        since: Instant,
        /// The watermark as it stood at some moment before it.
        watermark: Option<Watermark>,
    },
}

type Answer = BoxFuture<'static, Result<Vec<Value>, RedisError>>;

struct Heartbeat {
    sent: Instant,
    /// The watermark as it was known then.
    watermark: Option<Watermark>,
}

/// A connection on which the server tells what changes.
pub struct Tracking {
    session: Session,
    messages: Pushes,
    commands: SharedConnection,
    heartbeats: Interval,
    heartbeat: Pipeline,
    mark: String,
    /// The heartbeat that is under way, and its answer.
    under_way: Option<(Heartbeat, Answer)>,
    /// One that has been answered: what was told before its answer has still to be handed out.
    answered: Option<Heartbeat>,
    /// The one before.
    before: Option<Heartbeat>,
    /// As the last answer told it.
    watermark: Option<Watermark>,
}

impl std::fmt::Debug for Tracking {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tracking").finish_non_exhaustive()
    }
}

impl Redis {
    /// Has the server tell of every change of keys that begin with one of these prefixes, none of which may begin with another
    /// one. Heartbeats are sent so often, and are waited for at most so long.
    ///
    /// # Errors
    /// [`CacheError`] where it is not reached, or does not tell.
    pub async fn track(
        &self,
        prefixes: &[String],
        heartbeat: Duration,
        reply_limit: Duration,
    ) -> Result<Tracking, CacheError> {
        let failed = |source| CacheError::new(WHAT, source);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(reply_limit))
            .set_response_timeout(Some(reply_limit));
        let (config, messages) = Pushes::of(WHAT, config);
        let opened = self.connection.open_another(config, ProtocolVersion::RESP3);
        let mut session = opened.await.map_err(failed)?;
        let mut command = redis::cmd("CLIENT");
        command.arg("TRACKING").arg("ON").arg("BCAST");
        for prefix in prefixes {
            command.arg("PREFIX").arg(prefix);
        }
        let _ok: String = command.query_async(&mut session.connection).await.map_err(failed)?;
        // Asked once before anything is left behind: what the user may not ask ends this at once.
        let asked: Result<Vec<Value>, _> = heartbeat_of(self).query_async(&mut session.connection).await;
        let watermark = check(asked.map_err(failed)?)?;
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(format!("-- {:032x}\n{MARKED_READ}", rand::random::<u128>()));
        let mark: String = load.query_async(&mut session.connection).await.map_err(failed)?;
        Ok(Tracking {
            session,
            messages,
            commands: self.connection.clone(),
            heartbeats: every(heartbeat),
            heartbeat: heartbeat_of(self),
            mark,
            under_way: None,
            answered: None,
            before: None,
            watermark,
        })
    }

    /// Values with their remaining lifetimes, in the order of the keys, read on the server that has this mark. None: another one has
    /// answered, which may be older than what is told of changes; or this one has lost its scripts, or refuses.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn read_marked(
        &self,
        keys: &[impl AsRef<str>],
        mark: &str,
        shape: Shape,
    ) -> Result<Option<Vec<ValueAndLife>>, CacheError> {
        const WHAT: &str = "read entries";
        let mut command = redis::cmd("EVALSHA");
        command.arg(mark).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        if shape == Shape::Hash {
            command.arg("HGETALL");
        }
        let read: Vec<(Value, i64)> = match self.command(WHAT, &command).await {
            Ok(read) => read,
            Err(error) if error.is_unreachable() => return Err(error),
            Err(_refused) => return Ok(None),
        };
        if read.len() != keys.len() {
            return Err(CacheError::unexpected(
                WHAT,
                &format!("{} values of {} keys", read.len(), keys.len()),
            ));
        }
        read.into_iter().map(|one| with_life(WHAT, one, shape)).collect::<Result<_, _>>().map(Some)
    }

    /// Tells the server that these entries are in use.
    ///
    /// # Errors
    /// [`CacheError`].
    pub async fn touch(&self, keys: &[impl AsRef<str>]) -> Result<(), CacheError> {
        let mut command = redis::cmd("TOUCH");
        for key in keys {
            command.arg(key.as_ref());
        }
        self.command::<u64>("say which entries are in use", &command).await.map(drop)
    }
}

impl Tracking {
    /// What tells its server from all others, and from itself before this connection ([`Redis::read_marked`]): a script that nobody else
    /// has. Scripts go to no replica, and are lost with the process.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`CacheError`] when the connection ended, does not answer, or leads to another server: what changes from the last
    /// [`Told::Proved`] on may not be told.
    pub async fn next(&mut self) -> Result<Told, CacheError> {
        loop {
            // What was told before an answer comes before it.
            while let Some(message) = self.messages.waiting()? {
                if let Some(told) = read(message) {
                    return Ok(told);
                }
            }
            if let Some(heartbeat) = self.answered.take()
                && let Some(before) = self.before.replace(heartbeat)
            {
                return Ok(Told::Proved { since: before.sent, watermark: before.watermark });
            }
            let is_quiet = self.under_way.is_none();
            let under_way = &mut self.under_way;
            let answer = async {
                match under_way {
                    Some((_, answer)) => answer.as_mut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                message = self.messages.next() => {
                    if let Some(told) = read(message?) {
                        return Ok(told);
                    }
                }
                answer = answer => {
                    let answer = answer.map_err(|source| CacheError::new(WHAT, source))?;
                    self.watermark = check(answer)?;
                    self.answered = self.under_way.take().map(|(heartbeat, _)| heartbeat);
                }
                _ = self.heartbeats.tick(), if is_quiet => self.send()?,
            }
        }
    }

    /// Sends a heartbeat.
    fn send(&mut self) -> Result<(), CacheError> {
        if self.commands.has_moved_from(&self.session) {
            return Err(CacheError::moved(WHAT));
        }
        let pipeline = self.heartbeat.clone();
        let mut connection = self.session.connection.clone();
        let answer = Box::pin(async move { pipeline.query_async(&mut connection).await });
        let heartbeat = Heartbeat { sent: Instant::now(), watermark: self.watermark.clone() };
        self.under_way = Some((heartbeat, answer));
        Ok(())
    }
}

/// Whether it is a master, whether it tells on this connection, and the watermark.
fn heartbeat_of(redis: &Redis) -> Pipeline {
    let mut pipeline = redis::pipe();
    pipeline.cmd("ROLE").cmd("CLIENT").arg("TRACKINGINFO").cmd("GET").arg(&redis.keys.metadata().watermark);
    pipeline
}

/// Looks at what a heartbeat was answered; answers the watermark.
fn check(answer: Vec<Value>) -> Result<Option<Watermark>, CacheError> {
    let unexpected = || CacheError::unexpected(WHAT, "no answer to a heartbeat");
    let [role, tracking, watermark] = <[Value; 3]>::try_from(answer).map_err(|_other| unexpected())?;
    let Value::Array(role) = role else { return Err(unexpected()) };
    let role: Option<String> = role.into_iter().next().and_then(|name| redis::from_redis_value(name).ok());
    if role.as_deref() != Some("master") {
        return Err(CacheError::moved(WHAT));
    }
    if !is_on(&tracking) {
        return Err(CacheError::moved(WHAT));
    }
    let text: Option<Vec<u8>> = FromRedisValue::from_redis_value(watermark).map_err(|_other| unexpected())?;
    text.map(|text| parse(&text)).transpose()
}

/// Whether `CLIENT TRACKINGINFO` says that this connection is told of changes.
fn is_on(info: &Value) -> bool {
    match info {
        Value::SimpleString(text) => text == "bcast",
        Value::BulkString(bytes) => bytes == b"bcast",
        Value::Array(values) | Value::Set(values) => values.iter().any(is_on),
        Value::Map(fields) => fields.iter().any(|(_, value)| is_on(value)),
        _ => false,
    }
}

/// None: not of changes.
fn read(message: PushInfo) -> Option<Told> {
    if message.kind != PushKind::Invalidate {
        return None;
    }
    match message.data.into_iter().next() {
        Some(Value::Array(keys)) => {
            // A key that is not UTF-8 is no key of ours.
            Some(Told::Changed(
                keys.into_iter().filter_map(|key| redis::from_redis_value(key).ok()).collect(),
            ))
        }
        _ => Some(Told::Flushed),
    }
}
