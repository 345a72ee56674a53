//! One look at the watermark for everybody who waits for it.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::stores::redis::{Redis, Watermark};

/// Between two looks; the watermark moves every few milliseconds while something changes.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Most waits of a process at the same time.
pub(super) const WAITS_MAX: usize = 512;

/// Reads the watermark for everybody who waits for it: one task, as long as anybody does.
#[derive(Debug)]
pub(super) struct WatermarkWatch {
    permits: Semaphore,
    shared: Mutex<Weak<SharedLooks>>,
}

/// What the task sees; the last wait that drops this ends the task.
#[derive(Debug)]
pub(super) struct SharedLooks {
    looks: watch::Receiver<Option<Watermark>>,
    task: AbortHandle,
}

impl Default for WatermarkWatch {
    fn default() -> Self {
        Self { permits: Semaphore::new(WAITS_MAX), shared: Mutex::default() }
    }
}

impl WatermarkWatch {
    /// The right to wait; none: too many wait already.
    pub(super) fn permit(&self) -> Option<SemaphorePermit<'_>> {
        self.permits.try_acquire().ok()
    }

    /// The looks from now on, as long as the answer is held.
    pub(super) fn join(&self, redis: &Redis) -> Arc<SharedLooks> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade().filter(|running| !running.task.is_finished()) {
            return running;
        }
        let (sender, looks) = watch::channel(None);
        let task = tokio::spawn(look_on(redis.clone(), sender)).abort_handle();
        let new = Arc::new(SharedLooks { looks, task });
        *shared = Arc::downgrade(&new);
        new
    }
}

impl SharedLooks {
    pub(super) fn looks(&self) -> watch::Receiver<Option<Watermark>> {
        self.looks.clone()
    }
}

impl Drop for SharedLooks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends where Redis does not answer: whoever waits looks for itself then.
async fn look_on(redis: Redis, sender: watch::Sender<Option<Watermark>>) {
    // Whoever began this has just looked.
    let mut every = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let Ok(watermark) = redis.watermark().await else { return };
        sender.send_if_modified(|last| {
            let is_news = *last != watermark;
            *last = watermark;
            is_news
        });
    }
}
