//! How long Postgres may be asked.

use std::time::Duration;

use tokio::time::Instant;

use crate::stores::postgres::{ErrorKind, SourceError};

/// What remains until a moment, at least a little: nobody is asked without any.
pub(super) fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(50))
}

/// Whether a statement was given up because it took too long.
pub(super) fn is_over(error: &SourceError) -> bool {
    error.kind == ErrorKind::Cancelled
}
