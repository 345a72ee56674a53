//! Channels within the process: who listens hears every later message, or is told of a gap.

use std::sync::{Arc, Mutex, Weak};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::mutex::lock;

/// Messages that a listener may be behind, as the server's limit for output is.
const BEHIND: usize = 1_024;

type Message = (Arc<str>, Arc<[u8]>);

/// All channels of one cache. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Channels {
    sender: broadcast::Sender<Message>,
    /// Of each listener, the channels that it hears.
    listeners: Arc<Mutex<Vec<Weak<[String]>>>>,
}

impl Default for Channels {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND), listeners: Arc::default() }
    }
}

/// A subscription.
#[derive(Debug)]
pub struct Listening {
    receiver: broadcast::Receiver<Message>,
    channels: Arc<[String]>,
}

impl Channels {
    pub fn listen(&self, channels: &[String]) -> Listening {
        let channels: Arc<[String]> = channels.into();
        let receiver = self.sender.subscribe();
        lock(&self.listeners).push(Arc::downgrade(&channels));
        Listening { receiver, channels }
    }

    /// Answers how many hear it.
    pub fn publish(&self, channel: &str, body: &[u8]) -> u64 {
        let mut listeners = lock(&self.listeners);
        listeners.retain(|listener| 0 < listener.strong_count());
        let hear = listeners.iter().filter_map(Weak::upgrade);
        let count = hear.filter(|channels| channels.iter().any(|name| name == channel)).count();
        drop(listeners);
        if 0 < count {
            // It fails where nobody listens any more.
            drop(self.sender.send((channel.into(), body.into())));
        }
        count as u64
    }
}

impl Listening {
    /// The next message with its channel; none: some were missed.
    pub async fn next(&mut self) -> Option<(String, Vec<u8>)> {
        loop {
            match self.receiver.recv().await {
                Ok((channel, body)) if self.channels.iter().any(|name| **name == *channel) => {
                    return Some((channel.to_string(), body.to_vec()));
                }
                Ok(_of_others) => {}
                Err(RecvError::Lagged(_)) => return None,
                // The cache is gone: nothing will come.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
