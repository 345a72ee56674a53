//! Messages of an application's own on channels of its choice, as JSON, so that every language reads them.

use std::marker::PhantomData;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::backend::Backend;
use super::core::Cache;
use super::error::ClientError;
use super::in_memory::Listening;
use cachekeeper_engine::stores::redis::{Notice, Subscription};

/// How often a silent subscription is probed, and how long that may take.
const HEARTBEAT: Duration = Duration::from_secs(5);
const REPLY_LIMIT: Duration = Duration::from_secs(2);
/// Pauses between attempts to subscribe again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What a subscriber to messages hears.
#[derive(Debug)]
pub enum HeardMessage<T> {
    /// A message, and the channel that it came on.
    Message(String, T),
    /// One that is not of the wanted type: the channel, and why.
    Invalid(String, String),
    /// The subscription broke and is active again: messages in between are lost to this subscriber.
    Gap,
}

/// A subscription to messages of one type.
#[derive(Debug)]
pub struct Messages<T> {
    listener: Listener,
    kind: PhantomData<fn() -> T>,
}

impl Cache {
    /// Publishes a message as JSON; answers how many heard it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn publish_to<T: Serialize + ?Sized>(
        &self,
        channel: &str,
        message: &T,
    ) -> Result<u64, ClientError> {
        let undecodable = |error: serde_json::Error| ClientError::Encode {
            key: channel.to_owned(),
            reason: error.to_string(),
        };
        let body = serde_json::to_vec(message).map_err(undecodable)?;
        self.core.ask("publish a message", self.core.backend.publish(channel, &body)).await
    }

    /// Subscribes to channels. When this returns, every later message is heard or a gap is told.
    ///
    /// # Errors
    /// [`ClientError`] where Redis cannot be reached.
    pub async fn subscribe_to<T: DeserializeOwned>(
        &self,
        channels: &[impl AsRef<str>],
    ) -> Result<Messages<T>, ClientError> {
        let channels = channels.iter().map(|channel| channel.as_ref().to_owned()).collect();
        Ok(Messages { listener: Listener::open(self, channels).await?, kind: PhantomData })
    }
}

impl<T: DeserializeOwned> Messages<T> {
    /// The next message. It subscribes again by itself when the connection breaks, and says so.
    pub async fn next(&mut self) -> HeardMessage<T> {
        match self.listener.next().await {
            None => HeardMessage::Gap,
            Some((channel, body)) => match serde_json::from_slice(&body) {
                Ok(message) => HeardMessage::Message(channel, message),
                Err(error) => HeardMessage::Invalid(channel, error.to_string()),
            },
        }
    }
}

/// Where a listener hears.
#[derive(Debug)]
enum Subscribed {
    InRedis(Box<Subscription>),
    InMemory(Listening),
}

/// Listens to channels, and subscribes again where that breaks.
#[derive(Debug)]
pub(super) struct Listener {
    cache: Cache,
    channels: Vec<String>,
    subscription: Option<Subscribed>,
    pause: Duration,
}

impl Listener {
    pub async fn open(cache: &Cache, channels: Vec<String>) -> Result<Self, ClientError> {
        let mut listener = Self { cache: cache.clone(), channels, subscription: None, pause: Duration::ZERO };
        listener.subscription = Some(listener.subscribe().await?);
        Ok(listener)
    }

    async fn subscribe(&self) -> Result<Subscribed, ClientError> {
        match &self.cache.core.backend {
            Backend::Redis(redis) => {
                let subscribed = redis.subscribe(&self.channels, false, HEARTBEAT, REPLY_LIMIT).await?;
                Ok(Subscribed::InRedis(Box::new(subscribed)))
            }
            Backend::Memory(memory) => Ok(Subscribed::InMemory(memory.channels.listen(&self.channels))),
        }
    }

    /// The next message with its channel; none: the subscription broke, and is active again.
    pub async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            let subscription = match &mut self.subscription {
                Some(Subscribed::InRedis(subscription)) => subscription,
                Some(Subscribed::InMemory(listening)) => return listening.next().await,
                None => {
                    self.open_again().await;
                    return None;
                }
            };
            match subscription.next().await {
                Ok(Notice::Event { channel, body }) => return Some((channel, body)),
                Ok(Notice::Quiet | Notice::Miss { .. }) => {}
                Err(_ended) => self.subscription = None,
            }
        }
    }

    async fn open_again(&mut self) {
        loop {
            tokio::time::sleep(self.pause).await;
            match self.subscribe().await {
                Ok(subscription) => {
                    self.pause = Duration::ZERO;
                    self.subscription = Some(subscription);
                    return;
                }
                Err(_down) => self.pause = (self.pause * 2).clamp(RETRY_MIN, RETRY_MAX),
            }
        }
    }
}
