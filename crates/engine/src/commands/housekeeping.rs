//! What a leader does beside carrying commands out: old records are dropped, and the length of the stream is noted.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::warn;

use super::transaction::Leadership;
use crate::backoff::every;
use crate::context::Context;
use crate::error::{EngineError, chain};
use crate::log_limit;
use crate::stores::redis::StreamState;

const EVERY: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(30);
/// Most that a leader counts at once. Records note what it counted last, so they may be so much younger than they look.
const COUNTED_MAX: Duration = Duration::from_secs(10);

/// Drops records that no command can need any more, again and again. No command depends on it, so it never ends its leader.
pub(super) async fn keep_house(context: &Context, leadership: &Leadership) -> Infallible {
    let mut ticks = every(EVERY);
    let (mut counted, mut expiry) = (Instant::now(), None);
    loop {
        ticks.tick().await;
        let since_last = counted.elapsed().min(COUNTED_MAX);
        counted = Instant::now();
        match timeout(WITHIN, keep_house_once(context, leadership, since_last, &mut expiry)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => say(&chain(&error)),
            Err(_elapsed) => say("it takes too long"),
        }
    }
}

fn say(reason: &str) {
    let what = "old records of write commands could not be dropped, trying again later";
    if let Some(attempts) = log_limit::due(what, "", 1) {
        warn!(error = reason, attempts, "{what}");
    }
}

async fn keep_house_once(
    context: &Context,
    leadership: &Leadership,
    since_last: Duration,
    expiry: &mut Option<Expiry>,
) -> Result<(), EngineError> {
    let commands = leadership.commands();
    // The order matters: what is in the stream is looked at after the records are known to be old.
    let led_ms = context.postgres.count_leading(commands, leadership.token, since_last).await?;
    let state = context.redis.stream_state(&leadership.stream, &leadership.group).await?;
    context.metrics.commands_waiting.set(i64::try_from(state.length).unwrap_or(i64::MAX));
    let Some(led_ms) = led_ms else { return Ok(()) };
    let age = context.feed.retention.saturating_add(COUNTED_MAX);
    let old = led_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    let due = expiry.get_or_insert(Expiry { before_led_ms: old, up_to: state.newest_position() });
    if due.is_over(&state) {
        let before_led_ms = due.before_led_ms;
        *expiry = None;
        context.postgres.drop_records(commands, before_led_ms).await?;
    }
    Ok(())
}

/// Records that are as old as the retention asks. What came into the stream in time may still be such a command, sent again: so
/// the records are kept until nothing of it waits any more.
#[derive(Debug)]
struct Expiry {
    /// They were made before the stream had been led for so long.
    before_led_ms: i64,
    /// The newest entry that there was when they were that old.
    up_to: Option<(i64, i64)>,
}

impl Expiry {
    /// Whether everything that came in time is worked off.
    fn is_over(&mut self, state: &StreamState) -> bool {
        let (Some(oldest), Some(newest)) = (state.oldest_position(), state.newest_position()) else {
            return true;
        };
        // A stream that lost entries may give their positions to others.
        self.up_to = self.up_to.min(Some(newest));
        self.up_to < Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(ids: &[&str]) -> StreamState {
        let id = |id: Option<&&str>| id.map(|id| (*id).to_owned());
        StreamState { oldest: id(ids.first()), newest: id(ids.last()), ..StreamState::default() }
    }

    #[test]
    fn records_are_kept_until_what_came_in_time_is_worked_off() {
        let mut due = Expiry { before_led_ms: 0, up_to: Some((5, 3)) };
        assert!(!due.is_over(&waiting(&["4-0", "9-0"])));
        assert!(!due.is_over(&waiting(&["5-3", "9-0"])));
        assert!(due.is_over(&waiting(&["5-4", "9-0"])));
        assert!(due.is_over(&waiting(&[])));
        // Nothing waited.
        let mut due = Expiry { before_led_ms: 0, up_to: None };
        assert!(due.is_over(&waiting(&["1-0"])));
        // The stream began anew with lower ids, and is never empty: what waits then may have come in time, what comes later not.
        let mut due = Expiry { before_led_ms: 0, up_to: Some((1_000, 0)) };
        assert!(!due.is_over(&waiting(&["1-0", "2-0"])));
        assert!(!due.is_over(&waiting(&["2-0", "3-0"])));
        assert!(due.is_over(&waiting(&["3-0", "4-0"])));
    }
}
