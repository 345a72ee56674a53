//! Pauses: between attempts that fail, and between looks that repeat.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

/// Pauses between attempts that fail: each twice as long as the one before, up to a limit. Each is shortened at random by
/// up to a half, so that many who failed together do not try again together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with about `first`.
    #[must_use]
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, next: first }
    }

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = self.next.saturating_mul(2).min(self.limit);
        pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())
    }

    /// Waits for the next pause.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }

    /// Waits for the next pause, or until something happens by which an attempt is worth it.
    pub async fn wait_or(&mut self, happens: impl Future<Output = ()>) {
        // It or the time: whoever waits tries again in both cases.
        drop(tokio::time::timeout(self.pause(), happens).await);
    }

    /// An attempt has succeeded: the next failure begins with the first pause again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// The same after an attempt that lasted for so long before it failed: longer than any pause is a success.
    pub fn reset_after(&mut self, lasted: Duration) {
        if self.limit < lasted {
            self.reset();
        }
    }
}

/// Ticks at once, and then at this interval. Ticks that were missed are not made up for: whoever is late looks once.
#[must_use]
pub fn every(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_again_after_a_success() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 5);
        let mut expect = |whole: Duration| {
            let pause = backoff.pause();
            assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
        };
        [1, 2, 4, 5, 5].into_iter().for_each(|seconds| expect(second * seconds));
        backoff.reset_after(second);
        assert!(second * 2 < backoff.pause());
        backoff.reset_after(second * 6);
        assert!(backoff.pause() <= second);
    }
}
