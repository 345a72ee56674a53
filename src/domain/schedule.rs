//! Cron schedules.
use chrono::{DateTime, Utc};

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {}

/// Why an expression is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ScheduleError {
    /// What is wrong and what to do.
    pub message: String,
}

impl Schedule {
    /// Parses an expression for a zone of the IANA database.
    pub fn parse(_expression: &str, _zone: &str) -> Result<Self, ScheduleError> {
        Ok(Self {})
    }
    /// The first moment after `now` at which the schedule fires; none if it never does.
    #[must_use]
    pub fn next_after(&self, _now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        None
    }
}
