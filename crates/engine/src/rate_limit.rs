//! Spreads work over time.

use std::time::Duration;

use tokio::time::Instant;

/// What was not used of a rate is used later, up to this: after a stall nothing is made up in a burst.
const CREDIT: Duration = Duration::from_secs(1);

/// At most so many entries a second.
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
            let due = self.began + Duration::from_secs_f64(self.spent as f64 / rate.max(1) as f64);
            let late = Instant::now().saturating_duration_since(due);
            self.began += late.saturating_sub(CREDIT);
            tokio::time::sleep_until(due).await;
        }
    }
}
