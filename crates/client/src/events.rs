//! Invalidation events: publish them, and hear them.

use super::core::Cache;
use super::error::ClientError;
use super::messages::Listener;
use cachekeeper_protocol::event::{Event, InvalidEvent};

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
pub struct Events(Listener);

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
        Ok(Events(Listener::open(self, vec![self.core.channel.clone()]).await?))
    }
}

impl Events {
    /// The next event. It subscribes again by itself when the connection breaks, and says so.
    pub async fn next(&mut self) -> Heard {
        match self.0.next().await {
            Some((_channel, body)) => Event::decode(&body).map_or_else(Heard::Invalid, Heard::Event),
            None => Heard::Gap,
        }
    }
}
