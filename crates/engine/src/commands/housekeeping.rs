//! What a leader does beside carrying commands out: old records are dropped, and the length of the stream is noted.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::timeout;
use tracing::warn;

use super::transaction::Leadership;
use crate::backoff::every;
use crate::context::Context;
use crate::error::{EngineError, chain};

const EVERY: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(30);

/// Drops records that no command can need any more, again and again. No command depends on it, so it never ends its leader.
pub(super) async fn keep_house(context: &Context, leadership: &Leadership) -> Infallible {
    let mut ticks = every(EVERY);
    loop {
        ticks.tick().await;
        match timeout(WITHIN, keep_house_once(context, leadership)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(error = %chain(&error), "old records of write commands could not be dropped, trying again later");
            }
            Err(_elapsed) => {
                warn!("dropping old records of write commands takes too long, trying again later");
            }
        }
    }
}

async fn keep_house_once(context: &Context, leadership: &Leadership) -> Result<(), EngineError> {
    let state = context.redis.stream_state(&leadership.stream, &leadership.group).await?;
    context.metrics.commands_waiting.set(i64::try_from(state.length).unwrap_or(i64::MAX));
    let oldest = state.oldest_position().map(|(ms, _)| ms);
    context.postgres.prune_records(leadership.commands(), oldest, context.feed.retention).await?;
    Ok(())
}
