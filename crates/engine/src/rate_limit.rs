//! Spreads work over time.

use std::time::Duration;

use tokio::time::Instant;

/// At most so many entries a second, on the average since it began.
pub(crate) struct RateLimit {
    rate: Option<u64>,
    began: Instant,
    spent: u64,
}

impl RateLimit {
    /// One that begins now; without a rate it never waits.
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate, began: Instant::now(), spent: 0 }
    }

    /// Waits until so many entries more are within the rate.
    pub(crate) async fn spend(&mut self, entries: u64) {
        self.spent += entries;
        if let Some(rate) = self.rate {
            #[expect(clippy::cast_precision_loss, reason = "a rate is no ledger")]
            let due = Duration::from_secs_f64(self.spent as f64 / rate.max(1) as f64);
            tokio::time::sleep_until(self.began + due).await;
        }
    }
}
