//! Postgres, asked by somebody who does not wait for long: whoever wants to know why is not helped by silence.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::context::Context;
use crate::error::EngineError;

/// What is not answered by then may never be: another connection tells why.
const SILENT_AFTER: Duration = Duration::from_millis(300);

/// The answer, or why there is none.
///
/// # Errors
/// Those of Redis.
pub(super) async fn asked<T>(
    context: &Context,
    until: Instant,
    asking: impl Future<Output = Result<T, EngineError>>,
) -> Result<Result<T, String>, EngineError> {
    let asking = pin!(timeout_at(until, asking));
    let answer = tokio::select! {
        answer = asking => answer,
        reason = why_silent(context) => return Ok(Err(reason)),
    };
    match answer {
        Ok(Ok(answer)) => Ok(Ok(answer)),
        Ok(Err(error @ EngineError::Cache(_))) => Err(error),
        Ok(Err(error)) => Ok(Err(error.told())),
        Err(_elapsed) => Ok(Err("postgres did not answer in time".to_owned())),
    }
}

/// One attempt to connect; it ends where that fails.
async fn why_silent(context: &Context) -> String {
    sleep(SILENT_AFTER).await;
    match context.postgres.ping().await {
        Err(error) => error.told(),
        Ok(()) => std::future::pending().await,
    }
}
