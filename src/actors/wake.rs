//! Wake-ups: the only messages between tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The request that a task looks now. Several requests are one, and one that comes while the task is down is found by the next.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    notify: Arc<Notify>,
}

impl Wake {
    /// Requests it.
    pub fn now(&self) {
        self.notify.notify_one();
    }

    /// Waits for a request.
    pub async fn requested(&self) {
        self.notify.notified().await;
    }

    /// Whether a request is there, or comes within this time; waits so long for it.
    pub async fn is_requested_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.requested()).await.is_ok()
    }

    /// Waits for a request, or until this moment.
    pub async fn requested_until(&self, moment: Instant) {
        // A request or the time: the task looks in both cases.
        drop(tokio::time::timeout_at(moment, self.requested()).await);
    }
}
