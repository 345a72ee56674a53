//! Postgres, asked by somebody who does not wait for long: whoever wants to know why is not helped by silence.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};

use crate::context::Context;
use crate::error::EngineError;
use crate::stores::postgres::ErrorKind;

/// Why Postgres could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct NotAsked {
    /// In words.
    pub reason: String,
    /// No waiting mends it: a setting or a right is wrong, here or there.
    pub is_of_configuration: bool,
}

impl From<NotAsked> for String {
    fn from(not_asked: NotAsked) -> Self {
        not_asked.reason
    }
}

impl fmt::Display for NotAsked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

impl From<&EngineError> for NotAsked {
    fn from(error: &EngineError) -> Self {
        let is_of_configuration = match error {
            EngineError::Source(error) => error.is_of_configuration() || error.kind == ErrorKind::Forbidden,
            EngineError::Dataset { .. } | EngineError::Superseded { .. } => true,
            _ => false,
        };
        Self { reason: error.told(), is_of_configuration }
    }
}

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
) -> Result<Result<T, NotAsked>, EngineError> {
    let asking = pin!(timeout_at(until, asking));
    let answer = tokio::select! {
        answer = asking => answer,
        reason = why_silent(context) => return Ok(Err(reason)),
    };
    match answer {
        Ok(Ok(answer)) => Ok(Ok(answer)),
        Ok(Err(error @ EngineError::Cache(_))) => Err(error),
        Ok(Err(error)) => Ok(Err(NotAsked::from(&error))),
        Err(_elapsed) => {
            let reason = "postgres did not answer in time".to_owned();
            Ok(Err(NotAsked { reason, is_of_configuration: false }))
        }
    }
}

/// One attempt to connect; it ends where that fails.
async fn why_silent(context: &Context) -> NotAsked {
    sleep(SILENT_AFTER).await;
    match context.postgres.ping().await {
        Err(error) => NotAsked::from(&EngineError::from(error)),
        Ok(()) => std::future::pending().await,
    }
}
