//! Write-through: Postgres first, then Redis (DESIGN 2.6).
//!
//! What a transaction touched is what its triggers captured: its own rows of the outbox. After the commit those entries are
//! loaded on another connection and stored under that load's stamp. Whatever happens after the commit, the feed finishes
//! it, because the rows are in the outbox.

mod error;
mod identity;
pub mod parameters;
mod settle;
mod statement;

use std::time::Duration;

use sqlx::PgConnection;

use super::context::Context;
use crate::stores::postgres::{Blame, SourceError};
pub use error::WriteError;
use parameters::Parameters;
pub use settle::{CacheState, Written, settle};
pub use statement::{Prepared, Touched, statement_of};

/// Attempts of a write that others are in the way of.
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(4);

/// Carries out a dataset's write statement and stores what it touched. A caller who leaves after the commit does not keep
/// it from being stored.
///
/// # Errors
/// [`WriteError`].
pub async fn write(context: &Context, dataset: &str, given: &Parameters) -> Result<Written, WriteError> {
    let mut attempt = 0;
    let touched = loop {
        attempt += 1;
        match commit(context, dataset, given).await {
            Err(WriteError::Unavailable(error)) if error.blame() == Blame::Others && attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * (1 << attempt)).await;
            }
            other => break other?,
        }
    };
    let rows = touched.rows;
    let own = context.clone();
    let settled = tokio::spawn(async move { settle(&own, touched).await }).await;
    // It panicked: the write is durable, and the feed finishes it.
    Ok(settled.unwrap_or_else(|_panic| Written {
        rows,
        values: std::collections::HashMap::new(),
        token: None,
        cache: CacheState::Pending,
    }))
}

async fn commit(context: &Context, dataset: &str, given: &Parameters) -> Result<Touched, WriteError> {
    let prepared = Prepared::new(context, dataset, given).await?;
    let mut transaction = context.postgres.begin_write().await?;
    let mut touched = prepared.execute(&mut transaction).await?;
    touched.seal(context, &mut transaction).await?;
    match transaction.commit().await {
        Ok(()) => Ok(touched),
        Err(error) => Err(after_commit(SourceError::of_commit(error))),
    }
}

/// A server that answers has refused it; one that goes down, or is silent, says nothing about the commit.
fn after_commit(error: SourceError) -> WriteError {
    if error.blame() == Blame::Server { WriteError::Unknown(error) } else { error.into() }
}

/// Carries out a dataset's write statement in the caller's transaction. Call [`settle()`] with the answer after the commit;
/// without that, the feed does it.
///
/// # Errors
/// [`WriteError`]; the transaction must be rolled back.
pub async fn write_in(
    context: &Context,
    connection: &mut PgConnection,
    dataset: &str,
    given: &Parameters,
) -> Result<Touched, WriteError> {
    let prepared = Prepared::new(context, dataset, given).await?;
    let mut touched = prepared.execute(connection).await?;
    touched.seal(context, connection).await?;
    Ok(touched)
}
