//! A few rows as they would be stored, for somebody who looks.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::limit::left;
use super::sample::Sampling;
use crate::catalog::Dataset;
use crate::context::Context;
use crate::decoded::decoded;
use crate::error::EngineError;

/// A row as it would be stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowAsStored {
    /// Its key.
    pub key: String,
    /// Its value, decoded.
    pub value: Option<Value>,
    /// Its tags.
    pub tags: Vec<String>,
    /// The bytes of its value.
    pub bytes: usize,
    /// Why it would have no entry.
    pub refused: Option<String>,
}

/// The first rows in the order of their keys, as they would be stored. Nothing is written.
///
/// # Errors
/// [`EngineError`] where Postgres does not answer in time, or the dataset is wrong.
pub async fn rows_as_stored(
    context: &Context,
    dataset: &Dataset,
    most: usize,
    within: Duration,
) -> Result<Vec<RowAsStored>, EngineError> {
    let postgres = &context.postgres;
    let until = Instant::now() + within;
    let source = dataset.source(postgres).await?;
    let keys = postgres.some_keys(&source, most, left(until)).await?;
    let mut rows = Vec::new();
    for values in &keys {
        // One by one: each says for itself why it is refused.
        let mut sampling = Sampling::new(dataset, &source);
        sampling.read(postgres, std::slice::from_ref(values), until).await?;
        let sample = sampling.finish();
        if let Some(example) = sample.example {
            rows.push(RowAsStored {
                value: decoded(&example.value, Some(&dataset.settings.format)).ok(),
                bytes: example.value.len(),
                key: example.key,
                tags: example.tags,
                refused: None,
            });
        } else if let (Some(key), Some((reason, _))) =
            (dataset.key_of(values), sample.refused.first_key_value())
        {
            let refused = Some(reason.clone());
            rows.push(RowAsStored { key, value: None, tags: Vec::new(), bytes: 0, refused });
        }
    }
    Ok(rows)
}
