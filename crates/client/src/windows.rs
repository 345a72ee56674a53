//! Tag sets of windows that are over are dropped, also where no worker does it: without it they would stay for ever.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::debug;

use super::backend::Backend;
use super::core::Core;
use cachekeeper_protocol::entry::EntryBatch;

/// Between two looks, and by how much more at random: workers and other processes look, too.
const EVERY: Duration = Duration::from_secs(10);
const JITTER: f64 = 0.5;

/// Where the task is dropped with its runtime, the next tagged store begins anew.
struct Dropping(Weak<Core>);

impl Drop for Dropping {
    fn drop(&mut self) {
        if let Some(core) = self.0.upgrade() {
            core.drops_windows.store(false, Ordering::Release);
        }
    }
}

impl Core {
    /// Sees to it that what these entries leave behind is dropped one day.
    pub fn drop_windows_of(&self, batch: &EntryBatch) {
        let is_in_redis = matches!(self.backend, Backend::Redis(_));
        if is_in_redis && batch.has_tags() && !self.drops_windows.swap(true, Ordering::AcqRel) {
            // It ends by itself when the cache is gone.
            drop(tokio::spawn(drop_windows(Dropping(self.own.clone()))));
        }
    }
}

async fn drop_windows(dropping: Dropping) {
    loop {
        tokio::time::sleep(EVERY.mul_f64(1.0 + JITTER * rand::random::<f64>())).await;
        let Some(core) = dropping.0.upgrade() else { return };
        loop {
            match core.ask("drop old tag sets", core.backend.drop_old_windows()).await {
                Ok(has_more) if has_more => {}
                Ok(_) => break,
                Err(error) => {
                    debug!(%error, "old tag sets are dropped at the next look");
                    break;
                }
            }
        }
    }
}
