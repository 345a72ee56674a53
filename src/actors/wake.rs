//! Wake-ups: the only messages between tasks.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The wish that a task looks now. Several wishes are one, and one that comes while the task is down is found by the next.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    notify: Arc<Notify>,
}

impl Wake {
    /// Wishes it.
    pub fn now(&self) {
        self.notify.notify_one();
    }

    /// Waits for a wish.
    pub async fn wished(&self) {
        self.notify.notified().await;
    }

    /// Waits for a wish, or until this moment.
    pub async fn wished_until(&self, moment: Instant) {
        // Whichever it was: the task looks.
        drop(tokio::time::timeout_at(moment, self.wished()).await);
    }
}
