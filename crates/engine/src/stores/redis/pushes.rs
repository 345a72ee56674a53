//! What a server sends unasked on a connection of its own: it waits here, up to a bound in bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use redis::aio::SendError;
use redis::{AsyncConnectionConfig, PushInfo, PushKind, Value};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::CacheError;

/// Bytes that may wait; as many as Redis keeps for a subscriber.
const WAITING_MAX: usize = 32 << 20;

/// What waits to be read.
pub(super) struct Pushes {
    /// What whoever reads wants to do, for errors.
    what: &'static str,
    messages: UnboundedReceiver<PushInfo>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
}

impl Pushes {
    /// With the settings of a connection that hands over to them.
    pub fn of(what: &'static str, config: AsyncConnectionConfig) -> (AsyncConnectionConfig, Self) {
        let (sender, messages) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting);
        // Hands over as long as not too much waits. Whoever reads sees by its number that some is missing.
        let hand_over = move |message: PushInfo| {
            let bytes = size(&message);
            if counted.fetch_add(bytes, Ordering::Relaxed) + bytes <= WAITING_MAX || bytes == 0 {
                return sender.send(message).map_err(|_closed| SendError);
            }
            Err(SendError)
        };
        (config.set_push_sender(hand_over), Self { what, messages, waiting })
    }

    /// The next one.
    ///
    /// # Errors
    /// [`CacheError`] where the connection has ended, or something is missing.
    pub async fn next(&mut self) -> Result<PushInfo, CacheError> {
        let message = self.messages.recv().await;
        self.checked(message)
    }

    /// The next one of those that have come; none: all are read.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn waiting(&mut self) -> Result<Option<PushInfo>, CacheError> {
        match self.messages.try_recv() {
            Ok(message) => self.checked(Some(message)).map(Some),
            // What was not kept is in no message; its bytes tell.
            Err(TryRecvError::Empty) if WAITING_MAX < self.waiting.load(Ordering::Relaxed) => {
                Err(self.ended("more messages wait than are kept"))
            }
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => self.checked(None).map(Some),
        }
    }

    fn checked(&self, message: Option<PushInfo>) -> Result<PushInfo, CacheError> {
        let Some(message) = message else { return Err(self.ended("the connection ended")) };
        if message.kind == PushKind::Disconnection {
            return Err(self.ended("the server closed the connection"));
        }
        // What came when too much waited was not kept.
        if WAITING_MAX < self.waiting.fetch_sub(size(&message), Ordering::Relaxed) {
            return Err(self.ended("more messages wait than are kept"));
        }
        Ok(message)
    }

    fn ended(&self, reason: &'static str) -> CacheError {
        let error = std::io::Error::new(std::io::ErrorKind::ConnectionReset, reason);
        CacheError::new(self.what, error.into())
    }
}

fn size(message: &PushInfo) -> usize {
    message.data.iter().map(size_of).sum()
}

fn size_of(value: &Value) -> usize {
    match value {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(size_of).sum(),
        _ => 0,
    }
}
