//! A subscription that says when it has a gap.
//!
//! The driver's own resubscription gives up silently, so this is a plain connection: it ends with an error, and the
//! caller opens the next one and knows that messages may have been lost in between. Redis also cuts a subscriber
//! that falls 32 MiB behind; that looks the same from here, and so does a server that has become a replica (it hears
//! messages, and no misses), one that knows nothing of the subscription, and one to which the other commands do not go.

use std::time::Duration;

use redis::{AsyncConnectionConfig, Msg, ProtocolVersion, PushInfo};
use tokio::time::Interval;

use super::endpoint::Session;
use super::pushes::Pushes;
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
    messages: Pushes,
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
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(reply_limit))
            .set_response_timeout(Some(reply_limit));
        let (config, messages) = Pushes::of(KEEP, config);
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
        Ok(Subscription { session, messages, commands, looks: every(heartbeat) })
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
        while let Some(message) = subscription.messages.waiting()? {
            if matches!(read(message), Some(Notice::Miss { .. })) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Subscription {
    /// The next notice.
    ///
    /// # Errors
    /// [`CacheError`] when the connection ended or does not answer: from here on messages may be lost.
    pub async fn next(&mut self) -> Result<Notice, CacheError> {
        loop {
            tokio::select! {
                message = self.messages.next() => {
                    if let Some(notice) = read(message?) {
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
