//! Read your writes: whether Redis is at least as fresh as a token (R18).

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::context::Context;
use super::epoch::with_current_epoch;
use super::error::EngineError;
use super::watermark_watch::WAITS_MAX;
use crate::stores::redis::Watermark;
use cachekeeper_protocol::token::Token;

/// Takes a token of this moment: it sees every transaction that has committed by now.
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

/// Why a wait ended without an answer.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Too many wait already.
    #[error("more than {WAITS_MAX} requests wait for the watermark")]
    TooMany,
    /// Redis did not answer.
    #[error(transparent)]
    Flow(#[from] EngineError),
}

/// As good as for ever, and a moment that a clock can tell.
const WAIT_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Waits until it is so, or for this long; answers the last watermark and whether it is.
pub async fn wait(
    context: &Context,
    token: &Token,
    dataset: Option<&str>,
    at_most: Duration,
) -> Result<(Option<Watermark>, bool), WaitError> {
    let deadline = Instant::now() + at_most.min(WAIT_MAX);
    // Whoever need not wait is answered however many do.
    let watermark = context.redis.watermark().await.map_err(EngineError::from)?;
    let is_fresh = satisfies(watermark.as_ref(), token, dataset);
    if is_fresh || at_most.is_zero() {
        return Ok((watermark, is_fresh));
    }
    let watch = &context.watermark_watch;
    let _permit = watch.permit().ok_or(WaitError::TooMany)?;
    loop {
        // Joined before this wait looks for itself, so that no move falls between the two.
        let shared = watch.join(&context.redis);
        let mut looks = shared.looks();
        // What was seen before may be of a Redis that has rolled back since.
        looks.mark_unchanged();
        let mut watermark = context.redis.watermark().await.map_err(EngineError::from)?;
        let is_fresh = satisfies(watermark.as_ref(), token, dataset);
        if is_fresh || deadline <= Instant::now() {
            return Ok((watermark, is_fresh));
        }
        // An error is that the watch has ended, because Redis did not answer it: this wait looks for itself again.
        while let Ok(Ok(())) = timeout_at(deadline, looks.changed()).await {
            watermark.clone_from(&looks.borrow_and_update());
            if satisfies(watermark.as_ref(), token, dataset) {
                return Ok((watermark, true));
            }
        }
        if deadline <= Instant::now() {
            return Ok((watermark, false));
        }
    }
}

/// What was found under a key, for a reader with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRead {
    /// At least as fresh as the token; none: no value.
    Fresh(Option<Vec<u8>>),
    /// Perhaps older than the token: ask the database, or wait.
    Stale,
}

/// Reads a value together with the watermark, in one command: read one after the other, either could be of another
/// time than the other (X13, X14).
pub async fn get(context: &Context, key: &str, token: &Token) -> Result<TokenRead, EngineError> {
    let dataset = context.catalog.of_key(key).map(|(dataset, _)| dataset);
    let shape = dataset.map(|dataset| dataset.settings.format.shape()).unwrap_or_default();
    let (value, watermark) = context.redis.read_with_watermark(key, shape).await?;
    let is_fresh = dataset.is_some_and(|dataset| satisfies(watermark.as_ref(), token, Some(dataset.name())));
    Ok(if is_fresh { TokenRead::Fresh(value) } else { TokenRead::Stale })
}
