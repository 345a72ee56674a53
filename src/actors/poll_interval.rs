//! The rhythm of the change feed.

use std::time::Duration;

use cachekeeper_engine::change_feed::Step;

/// How long to wait between two polls: hardly at all while there is something to do, and longer and longer when not.
#[derive(Debug)]
pub(super) struct PollInterval {
    idle: u32,
    pause: Duration,
}

impl Default for PollInterval {
    fn default() -> Self {
        Self { idle: 0, pause: Self::BUSY }
    }
}

impl PollInterval {
    const BUSY: Duration = Duration::from_millis(1);
    const IDLE: Duration = Duration::from_millis(25);
    /// Idle polls before the pauses grow: about a fifth of a second.
    const PATIENCE: u32 = 100;

    /// After a step that took so long.
    pub fn after(&mut self, step: Step, took: Duration) -> Duration {
        if let Step::Applied(statements) = step
            && 0 < statements
        {
            *self = Self::default();
            // More was committed while that was applied; a timer would add up to two milliseconds to each change.
            return self.pause.saturating_sub(took);
        }
        self.idle += 1;
        if Self::PATIENCE < self.idle {
            self.pause = (self.pause * 5 / 4).min(Self::IDLE);
        }
        self.pause
    }
}
