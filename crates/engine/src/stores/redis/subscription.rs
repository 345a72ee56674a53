//! A subscription that says when it has a gap.
//!
//! The driver's own resubscription gives up silently, so this is a plain connection: it ends with an error, and the
//! caller opens the next one and knows that messages may have been lost in between. Redis also cuts a subscriber
//! that falls 32 MiB behind; that looks the same from here, and so does a server that has become a replica (it hears
//! messages, and no misses), one that knows nothing of the subscription, and one to which the other commands do not go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::{AsyncConnectionConfig, Msg, ProtocolVersion, PushInfo, PushKind, Value};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::Interval;

use super::endpoint::Session;
use super::shared::SharedConnection;
use super::{CacheError, Redis};
use crate::backoff::every;

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A message on one of the channels.
    Event {
        /// The channel.
        channel: String,
        /// The body.
        body: Vec<u8>,
    },
    /// An application asked for a key that does not exist.
    Miss {
        /// The key.
        key: String,
    },
    /// The server was asked, and is still the one.
    Quiet,
}

/// An open subscription.
pub struct Subscription {
    session: Session,
    messages: UnboundedReceiver<PushInfo>,
    /// Bytes of messages that wait.
    waiting: Arc<AtomicUsize>,
    commands: SharedConnection,
    looks: Interval,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Subscription").finish_non_exhaustive()
    }
}

const MISS_PATTERN: &str = "__keyevent@*__:keymiss";
const KEEP: &str = "keep the subscription";
/// Bytes of messages that may wait; as many as Redis keeps for a subscriber.
const WAITING_MAX: usize = 32 << 20;

impl Redis {
    /// Subscribes. When this returns, every later message arrives or the subscription ends. Each `heartbeat` the server is
    /// asked whether it is still the one, for at most `reply_limit`.
    pub async fn subscribe(
        &self,
        channels: &[String],
        with_misses: bool,
        heartbeat: Duration,
        reply_limit: Duration,
    ) -> Result<Subscription, CacheError> {
        let failed = |source| CacheError::new("subscribe", source);
        let (sender, messages) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(reply_limit))
            .set_response_timeout(Some(reply_limit))
            .set_push_sender(bounded(sender, waiting.clone()));
        let opened = self.connection.open_another(config, ProtocolVersion::RESP3);
        let mut session = opened.await.map_err(failed)?;
        if !channels.is_empty() {
            session.connection.subscribe(channels).await.map_err(failed)?;
        }
        if with_misses {
            let channel = MISS_PATTERN.replace('*', &self.connection.endpoint().database().to_string());
            session.connection.subscribe(channel).await.map_err(failed)?;
        }
        let commands = self.connection.clone();
        Ok(Subscription { session, messages, waiting, commands, looks: every(heartbeat) })
    }
}

impl Redis {
    /// Whether the server tells of misses, whatever its configuration says or hides: one is made.
    ///
    /// # Errors
    /// [`CacheError`] where it cannot be asked.
    pub async fn tells_of_misses(&self, reply_limit: Duration) -> Result<bool, CacheError> {
        let mut subscription = self.subscribe(&[], true, reply_limit, reply_limit).await?;
        self.miss().await?;
        // What the server has told before it answers here has arrived.
        subscription.look().await?;
        while let Ok(message) = subscription.messages.try_recv() {
            if matches!(read(message), Some(Notice::Miss { .. })) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Hands messages over as long as not too many wait. Whoever reads sees by their number that some are missing.
fn bounded(
    sender: UnboundedSender<PushInfo>,
    waiting: Arc<AtomicUsize>,
) -> impl Fn(PushInfo) -> Result<(), redis::aio::SendError> {
    move |message| {
        let bytes = size(&message);
        if waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= WAITING_MAX || bytes == 0 {
            return sender.send(message).map_err(|_closed| redis::aio::SendError);
        }
        Err(redis::aio::SendError)
    }
}

fn size(message: &PushInfo) -> usize {
    let bytes = |value: &Value| if let Value::BulkString(bytes) = value { bytes.len() } else { 0 };
    message.data.iter().map(bytes).sum()
}

impl Subscription {
    /// The next notice.
    ///
    /// # Errors
    /// [`CacheError`] when the connection ended or does not answer: from here on messages may be lost.
    pub async fn next(&mut self) -> Result<Notice, CacheError> {
        loop {
            tokio::select! {
                message = self.messages.recv() => {
                    let Some(message) = message else { return Err(ended("the connection ended")) };
                    if message.kind == PushKind::Disconnection {
                        return Err(ended("the server closed the connection"));
                    }
                    // What came when too much waited was not kept.
                    if WAITING_MAX < self.waiting.fetch_sub(size(&message), Ordering::Relaxed) {
                        return Err(ended("more messages wait than are kept"));
                    }
                    if let Some(notice) = read(message) {
                        return Ok(notice);
                    }
                }
                _ = self.looks.tick() => {
                    self.look().await?;
                    return Ok(Notice::Quiet);
                }
            }
        }
    }

    async fn look(&mut self) -> Result<(), CacheError> {
        if self.commands.has_moved_from(&self.session) {
            return Err(CacheError::moved(KEEP));
        }
        self.session.look(self.commands.endpoint()).await.map_err(|source| CacheError::new(KEEP, source))
    }
}

/// None: not a message, but the confirmation of a subscription.
fn read(message: PushInfo) -> Option<Notice> {
    let message = Msg::from_push_info(message)?;
    let channel = message.get_channel_name().to_owned();
    let body = message.get_payload_bytes().to_vec();
    if channel.starts_with("__keyevent@") {
        return Some(Notice::Miss { key: String::from_utf8_lossy(&body).into_owned() });
    }
    Some(Notice::Event { channel, body })
}

fn ended(reason: &'static str) -> CacheError {
    CacheError::new(KEEP, std::io::Error::new(std::io::ErrorKind::ConnectionReset, reason).into())
}
