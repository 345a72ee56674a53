//! What durations may be.

use std::time::Duration;

use crate::key::Kind;

pub(super) const fn duration(min: Duration, max: Duration) -> Kind {
    Kind::Duration(min, max)
}

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) const NONE: Duration = Duration::ZERO;
pub(super) const TENTH: Duration = Duration::from_millis(100);
pub(super) const SECOND: Duration = seconds(1);
pub(super) const MINUTE: Duration = seconds(60);
pub(super) const DAY: Duration = seconds(86_400);
pub(super) const YEAR: Duration = seconds(365 * 86_400);
