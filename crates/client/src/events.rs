//! Invalidation events: publish them, and hear them.

use std::time::Duration;

use super::core::Cache;
use super::error::ClientError;
use cachekeeper_engine::stores::redis::{Notice, Subscription};
use cachekeeper_protocol::event::{Event, InvalidEvent};

/// How often a silent subscription is probed, and how long that may take.
const HEARTBEAT: Duration = Duration::from_secs(5);
const REPLY_LIMIT: Duration = Duration::from_secs(2);

/// What a subscriber hears.
#[derive(Debug)]
pub enum Heard {
    /// An event.
    Event(Event),
    /// A message that is none.
    Invalid(InvalidEvent),
    /// The subscription broke and is active again: events in between are lost to this subscriber. (Workers make up for it
    /// by the change feed.)
    Gap,
}

/// A subscription to events.
#[derive(Debug)]
pub struct Events {
    cache: Cache,
    subscription: Option<Subscription>,
    pause: Duration,
}

impl Cache {
    /// Publishes an event: workers apply it, and applications that listen hear it. Answers how many did. Publish after
    /// the commit: an event says that the source changed before.
    pub async fn publish(&self, event: &Event) -> Result<u64, ClientError> {
        self.core.announce(event).await
    }

    /// Subscribes to events. When this returns, every later event is heard or a gap is told.
    ///
    /// # Errors
    /// [`ClientError`] where Redis cannot be reached.
    pub async fn events(&self) -> Result<Events, ClientError> {
        let mut events = Events { cache: self.clone(), subscription: None, pause: Duration::ZERO };
        events.subscription = events.open().await?;
        Ok(events)
    }
}

impl Events {
    async fn open(&self) -> Result<Option<Subscription>, ClientError> {
        let super::backend::Backend::Redis(redis) = &self.cache.core.backend else { return Ok(None) };
        let channels = [self.cache.core.channel.clone()];
        Ok(Some(redis.subscribe(&channels, false, HEARTBEAT, REPLY_LIMIT).await?))
    }

    /// The next event. It subscribes again by itself when the connection breaks, and says so. A cache in memory hears
    /// nothing.
    pub async fn next(&mut self) -> Heard {
        loop {
            let Some(subscription) = &mut self.subscription else {
                self.open_again().await;
                return Heard::Gap;
            };
            match subscription.next().await {
                Ok(Notice::Event { body, .. }) => {
                    return Event::decode(&body).map_or_else(Heard::Invalid, Heard::Event);
                }
                Ok(Notice::Quiet | Notice::Miss { .. }) => {}
                Err(_ended) => self.subscription = None,
            }
        }
    }

    async fn open_again(&mut self) {
        loop {
            tokio::time::sleep(self.pause).await;
            match self.open().await {
                Ok(Some(subscription)) => {
                    self.pause = Duration::ZERO;
                    self.subscription = Some(subscription);
                    return;
                }
                Ok(None) => std::future::pending().await,
                Err(_down) => {
                    self.pause = (self.pause * 2).clamp(Duration::from_millis(50), Duration::from_secs(5));
                }
            }
        }
    }
}
