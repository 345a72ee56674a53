//! When a backfill that failed is tried again.

use std::time::Duration;

use cachekeeper_engine::backoff::Backoff;

/// Between two attempts at a backfill.
const RETRY_MIN: Duration = Duration::from_millis(200);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(5);
/// Between two during which Postgres began anew: whoever writes to it comes first.
const AFTER_RESTART_MIN: Duration = Duration::from_secs(60);
const AFTER_RESTART_MAX: Duration = Duration::from_secs(900);
/// After so many restarts in a row it is no chance that the server ends while the backfill runs.
const RESTARTS: u32 = 3;

/// Attempts at one backfill that have failed one after another.
#[derive(Debug)]
pub(super) struct Attempts {
    pauses: Backoff,
    pauses_after_restart: Backoff,
    /// The incarnation of the database in which the last one began that lost the server.
    lost_in: Option<String>,
    restarts: u32,
}

impl Default for Attempts {
    fn default() -> Self {
        Self {
            pauses: Backoff::new(RETRY_MIN, RETRY_MAX),
            pauses_after_restart: Backoff::new(AFTER_RESTART_MIN, AFTER_RESTART_MAX),
            lost_in: None,
            restarts: 0,
        }
    }
}

impl Attempts {
    /// One has lost the server, and had begun in this incarnation of the database, as far as is known.
    pub fn lost_server(&mut self, incarnation: Option<String>) {
        if incarnation.is_some() && self.lost_in != incarnation {
            self.lost_in = incarnation;
            self.restarts += 1;
        }
    }

    /// One has failed for a reason that the server gave.
    pub fn met_server(&mut self) {
        (self.lost_in, self.restarts) = (None, 0);
    }

    /// How long to wait for the next one.
    pub fn pause(&mut self) -> Duration {
        match self.restarts_each_time() {
            Some(_) => self.pauses_after_restart.pause(),
            None => self.pauses.pause(),
        }
    }

    /// In how many incarnations of the database in a row an attempt has lost the server, where that is too often for chance.
    pub fn restarts_each_time(&self) -> Option<u32> {
        (RESTARTS <= self.restarts).then_some(self.restarts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backfill_during_which_the_server_ends_each_time_is_tried_seldom() {
        let mut attempts = Attempts::default();
        let lost_in = |attempts: &mut Attempts, incarnation: &str| {
            attempts.lost_server(Some(incarnation.to_owned()));
            attempts.pause()
        };
        // While the server does not answer, no attempt begins in another incarnation.
        for incarnation in ["a", "a", "b", "b", "b"] {
            assert!(lost_in(&mut attempts, incarnation) <= RETRY_MAX);
        }
        assert!(AFTER_RESTART_MIN / 2 <= lost_in(&mut attempts, "c"));
        assert_eq!(attempts.restarts_each_time(), Some(3));
        assert!(AFTER_RESTART_MIN <= lost_in(&mut attempts, "d"));
        attempts.met_server();
        assert!(attempts.pause() <= RETRY_MAX);
        assert_eq!(attempts.restarts_each_time(), None);
    }
}
