//! How a lock is taken.

use std::time::Duration;

use crate::moments::FAR;

/// How a lock is taken and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockOptions {
    /// How long it lives without renewal (default 10 s).
    pub life: Duration,
    /// How long to wait for it (default 5 s); zero: not at all.
    pub wait: Duration,
    /// Whether it is renewed while it is held (default).
    pub is_renewed: bool,
    /// How long it may be held in any case; then the holder is told that it is lost, and it ends.
    pub max_hold: Option<Duration>,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { life: Duration::from_secs(10), wait: Duration::from_secs(5), is_renewed: true, max_hold: None }
    }
}

impl LockOptions {
    /// What is longer than anybody waits is very long.
    pub(super) fn bounded(self) -> Self {
        let max_hold = self.max_hold.filter(|hold| *hold < FAR);
        Self { life: self.life.min(FAR), wait: self.wait.min(FAR), max_hold, ..self }
    }
}
