//! A subscription that says when it has a gap.
//!
//! The driver's own resubscription gives up silently, so this is a plain connection: it ends with an error, and the
//! caller opens the next one and knows that messages may have been lost in between. Redis also cuts a subscriber
//! that falls 32 MiB behind; that looks the same from here.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

use super::{CacheError, Redis};

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
    /// Nothing for a while, and the server still answers.
    Quiet,
}

/// An open subscription.
pub struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
    heartbeat: Duration,
    reply_limit: Duration,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Subscription").finish_non_exhaustive()
    }
}

const MISS_PATTERN: &str = "__keyevent@*__:keymiss";

impl Redis {
    /// Subscribes. When this returns, every later message arrives or the subscription ends.
    pub async fn subscribe(
        &self,
        channels: &[String],
        with_misses: bool,
        heartbeat: Duration,
        reply_limit: Duration,
    ) -> Result<Subscription, CacheError> {
        let what = "subscribe";
        let opened = tokio::time::timeout(reply_limit, self.client.get_async_pubsub()).await;
        let pubsub = opened
            .map_err(|_elapsed| CacheError::timed_out(what))?
            .map_err(|source| CacheError::new(what, source))?;
        let (mut sink, stream) = pubsub.split();
        if !channels.is_empty() {
            sink.subscribe(channels).await.map_err(|source| CacheError::new(what, source))?;
        }
        if with_misses {
            let database = self.client.get_connection_info().redis_settings().db();
            let pattern = MISS_PATTERN.replace('*', &database.to_string());
            sink.subscribe(&[pattern]).await.map_err(|source| CacheError::new(what, source))?;
        }
        Ok(Subscription { sink, stream, heartbeat, reply_limit })
    }
}

impl Subscription {
    /// The next notice.
    ///
    /// # Errors
    /// [`CacheError`] when the connection ended or does not answer: from here on messages may be lost.
    pub async fn next(&mut self) -> Result<Notice, CacheError> {
        match tokio::time::timeout(self.heartbeat, self.stream.next()).await {
            Ok(Some(message)) => {
                let channel = message.get_channel_name().to_owned();
                let body = message.get_payload_bytes().to_vec();
                if channel.starts_with("__keyevent@") {
                    return Ok(Notice::Miss { key: String::from_utf8_lossy(&body).into_owned() });
                }
                Ok(Notice::Event { channel, body })
            }
            Ok(None) => Err(CacheError::new("keep the subscription", ended())),
            Err(_quiet) => {
                let ping = tokio::time::timeout(self.reply_limit, self.sink.ping::<redis::Value>()).await;
                ping.map_err(|_elapsed| CacheError::timed_out("keep the subscription"))?
                    .map_err(|source| CacheError::new("keep the subscription", source))?;
                Ok(Notice::Quiet)
            }
        }
    }
}

fn ended() -> redis::RedisError {
    std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the server closed the connection").into()
}
