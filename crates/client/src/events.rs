//! Invalidation events: publish them, and hear them.

use super::backend::Backend;
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

    /// Appends an event to the stream of events: workers apply it also where none runs at the moment. (Applications that listen to the
    /// channel do not hear it.)
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Setting`] where the stream is not known: it is that of the configuration, or
    /// [`super::CacheBuilder::stream`].
    pub async fn publish_durable(&self, event: &Event) -> Result<(), ClientError> {
        let Some(stream) = &self.core.stream else {
            let problem = "no stream of events is known: name the worker's ([invalidation] stream) by `CacheBuilder::stream`";
            return Err(ClientError::Setting { setting: "stream", problem: problem.to_owned() });
        };
        let fields = event.to_fields();
        let fields: Vec<(&str, &[u8])> =
            fields.iter().map(|(name, text)| (name.as_str(), text.as_bytes())).collect();
        let append = async {
            // Before it, so that a worker finds them registered.
            self.core.register_prefixes_now().await;
            match &self.core.backend {
                Backend::Redis(redis) => redis.append(stream, &fields).await.map(drop),
                Backend::Memory(memory) => {
                    memory.apply(event);
                    Ok(())
                }
            }
        };
        self.core.ask("publish an event", append).await
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
