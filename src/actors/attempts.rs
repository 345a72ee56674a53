//! When a backfill that failed is tried again.

use std::time::Duration;

use cachekeeper_engine::backoff::Backoff;

/// Between two attempts at a backfill.
const RETRY_MIN: Duration = Duration::from_millis(200);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between two that have lost the server, where it is no chance any more.
const AFTER_RESTART_MIN: Duration = Duration::from_secs(60);
const AFTER_RESTART_MAX: Duration = Duration::from_secs(900);
/// From so many incarnations of the database in a row on.
pub(super) const NO_CHANCE: u32 = 3;

/// Attempts at one backfill that have failed one after another.
#[derive(Debug)]
pub(super) struct Attempts {
    pauses: Backoff,
    pauses_after_restart: Backoff,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            pauses: Backoff::new(RETRY_MIN, RETRY_MAX),
            pauses_after_restart: Backoff::new(AFTER_RESTART_MIN, AFTER_RESTART_MAX),
        }
    }
}

impl Attempts {
    /// How long to wait for the next one, where in so many incarnations of the database in a row one has lost the server.
    pub fn pause(&mut self, lost: u32) -> Duration {
        if NO_CHANCE <= lost { self.pauses_after_restart.pause() } else { self.pauses.pause() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backfill_during_which_the_server_ends_each_time_is_tried_seldom() {
        let mut attempts = Attempts::default();
        for lost in [0, 0, 1, 2, 2] {
            assert!(attempts.pause(lost) <= RETRY_MAX);
        }
        assert!(AFTER_RESTART_MIN / 2 <= attempts.pause(3));
        assert!(AFTER_RESTART_MIN <= attempts.pause(4));
        assert!(attempts.pause(0) <= RETRY_MAX);
    }
}
