//! What both servers say of an entry.

use std::time::Duration;

use super::facts::RowFacts;
use crate::audit::{Expected, expect, is_covered, is_null};
use crate::catalog::Dataset;
use crate::context::Context;
use crate::decoded::decoded;
use crate::error::EngineError;
use crate::stores::postgres::{ErrorKind, KeyValues};
use crate::stores::redis::Watermark;
use crate::tokens::{self, WaitError};
use cachekeeper_protocol::token::Token;

/// How long the watermark is waited for where the entry differs.
const WATERMARK_WITHIN: Duration = Duration::from_secs(2);

/// What both servers say of an entry.
pub(super) struct Looked {
    pub value: Option<(Vec<u8>, i64)>,
    /// Why Postgres could not be asked.
    pub row: Result<Expected, String>,
    /// The entry is what the row says.
    pub agrees: bool,
    /// The row was another one when it was read again.
    pub is_changing: bool,
    /// The watermark has passed the snapshot of the row.
    pub is_past: bool,
    pub watermark: Option<Watermark>,
}

impl Looked {
    /// What is told of the row.
    pub fn row(&self, key: &str, dataset: &Dataset) -> RowFacts {
        let expected = match &self.row {
            Ok(expected) => expected,
            Err(reason) => return RowFacts { not_asked: Some(reason.clone()), ..RowFacts::default() },
        };
        let value = expected.values.get(key);
        RowFacts {
            exists: Some(value.is_some() || expected.unreadable.contains_key(key)),
            value: value.and_then(|value| decoded(value, Some(&dataset.settings.format)).ok()),
            tags: expected.tags.get(key).cloned().unwrap_or_default(),
            refused: expected.unreadable.get(key).cloned(),
            not_asked: None,
        }
    }
}

/// Looks at an entry and its row; where they differ, once more after the watermark has passed the row's snapshot.
pub(super) async fn look(
    context: &Context,
    dataset: &Dataset,
    key: &str,
    values: &KeyValues,
) -> Result<Looked, EngineError> {
    let first = expected(context, dataset, key, values).await?;
    let value = value_of(context, key).await?;
    let watermark = context.redis.watermark().await?;
    let row = match first {
        Ok(row) => row,
        Err(reason) => {
            let unknown = Looked {
                value,
                row: Err(reason),
                agrees: false,
                is_changing: false,
                is_past: false,
                watermark,
            };
            return Ok(unknown);
        }
    };
    if agree(value.as_ref().map(|(value, _)| value), row.values.get(key)) {
        return Ok(Looked {
            value,
            row: Ok(row),
            agrees: true,
            is_changing: false,
            is_past: false,
            watermark,
        });
    }
    let mut is_past = false;
    if is_covered(context, dataset).await? {
        let poll = row.poll.clone();
        let token = Token { incarnation: poll.incarnation, snapshot: poll.snapshot };
        is_past = match tokens::wait(context, &token, Some(dataset.name()), WATERMARK_WITHIN).await {
            Ok((_, is_fresh)) => is_fresh,
            Err(WaitError::TooMany) => false,
            Err(WaitError::Flow(error)) => return Err(error),
        };
    }
    let value = value_of(context, key).await?;
    let again = expected(context, dataset, key, values).await?;
    let watermark = context.redis.watermark().await?;
    let is_changing = again.as_ref().is_ok_and(|again| again.values.get(key) != row.values.get(key));
    let row = again.unwrap_or(row);
    let agrees = agree(value.as_ref().map(|(value, _)| value), row.values.get(key));
    Ok(Looked { value, row: Ok(row), agrees, is_changing, is_past, watermark })
}

/// What the row says, or why Postgres could not be asked.
async fn expected(
    context: &Context,
    dataset: &Dataset,
    key: &str,
    values: &KeyValues,
) -> Result<Result<Expected, String>, EngineError> {
    let wanted = [(key.to_owned(), values.clone())];
    let read = async {
        let source = dataset.source(&context.postgres).await?;
        let read = expect(context, dataset, &source, &wanted).await;
        if matches!(&read, Err(EngineError::Source(error)) if error.kind == ErrorKind::Changed) {
            dataset.forget_source();
        }
        read
    };
    match read.await {
        Ok(expected) => Ok(Ok(expected)),
        Err(error @ EngineError::Cache(_)) => Err(error),
        Err(error) => Ok(Err(error.told())),
    }
}

/// An entry's bytes and lifetime.
pub(super) async fn value_of(context: &Context, key: &str) -> Result<Option<(Vec<u8>, i64)>, EngineError> {
    let looked = context.redis.look_at(&[key]).await?.pop();
    Ok(looked.and_then(|(value, left)| value.map(|value| (value, left))))
}

/// Whether an entry is what its row says. Absence is looked at elsewhere: it is not wrong.
fn agree(value: Option<&Vec<u8>>, row: Option<&Vec<u8>>) -> bool {
    match (value, row) {
        (None, None) => true,
        (Some(value), Some(row)) => value == row,
        (Some(value), None) => is_null(value),
        (None, Some(_)) => false,
    }
}
