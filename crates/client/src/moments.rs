//! Moments in the future, also where a caller means "for ever": adding a span that is too long must not panic.

use std::time::Duration;

use tokio::time::Instant;

/// Longer than any process waits.
pub(super) const FAR: Duration = Duration::from_secs(30 * 366 * 86_400);

/// So long from now, or very far away.
pub(super) fn after(span: Duration) -> Instant {
    Instant::now() + span.min(FAR)
}

/// A share between 0 and `most`; what is no number is none.
pub(super) fn share(given: f64, most: f64) -> f64 {
    if given.is_nan() { 0.0 } else { given.clamp(0.0, most) }
}

/// This share of a span, at most the whole.
pub(super) fn part(span: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(span.as_secs_f64() * share).map_or(span, |part| part.min(span))
}
