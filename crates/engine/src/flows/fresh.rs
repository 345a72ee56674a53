//! Read your writes: whether Redis is at least as fresh as a token (R18).

use std::time::Duration;

use tokio::time::Instant;

use super::context::Context;
use super::epoch::with_current_epoch;
use super::error::EngineError;
use crate::stores::redis::Watermark;
use cachekeeper_protocol::token::Token;

/// Between two looks at the watermark; it moves every few milliseconds while something changes.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Takes a token of this moment: it sees every transaction that has committed by now.
///
/// # Errors
/// [`EngineError`].
pub async fn token(context: &Context) -> Result<Token, EngineError> {
    let poll = with_current_epoch(context, || async { Ok(context.postgres.poll().await?) }).await?;
    Ok(Token { incarnation: poll.incarnation, snapshot: poll.snapshot })
}

/// Whether every entry of the dataset (none: of all datasets) is at least as fresh as the token.
#[must_use]
pub fn satisfies(watermark: Option<&Watermark>, token: &Token, dataset: Option<&str>) -> bool {
    let Some(watermark) = watermark else { return false };
    let is_covered = match dataset {
        Some(dataset) => !watermark.not_covered.iter().any(|name| name == dataset),
        None => watermark.not_covered.is_empty(),
    };
    let seen =
        watermark.snapshot.parse().is_ok_and(|snapshot| token.is_seen_at(&watermark.incarnation, &snapshot));
    is_covered && seen
}

/// Waits until it is so, or for this long; answers the last watermark and whether it is.
///
/// # Errors
/// [`EngineError`].
pub async fn wait(
    context: &Context,
    token: &Token,
    dataset: Option<&str>,
    at_most: Duration,
) -> Result<(Option<Watermark>, bool), EngineError> {
    let deadline = Instant::now() + at_most;
    loop {
        let watermark = context.redis.watermark().await?;
        let is_fresh = satisfies(watermark.as_ref(), token, dataset);
        if is_fresh || deadline <= Instant::now() {
            return Ok((watermark, is_fresh));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was found under a key, for a reader with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// At least as fresh as the token; none: no value.
    Fresh(Option<Vec<u8>>),
    /// Perhaps older than the token: ask the database, or wait.
    Stale,
}

/// Reads a value together with the watermark, in one command: read one after the other, either could be of another
/// time than the other (X13, X14).
///
/// # Errors
/// [`EngineError`].
pub async fn get(context: &Context, key: &str, token: &Token) -> Result<Found, EngineError> {
    let (value, watermark) = context.redis.read_with_watermark(key).await?;
    let dataset = context.catalog.of_key(key).map(|(dataset, _)| dataset.name().to_owned());
    let is_fresh = dataset.is_some() && satisfies(watermark.as_ref(), token, dataset.as_deref());
    Ok(if is_fresh { Found::Fresh(value) } else { Found::Stale })
}
