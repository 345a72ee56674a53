//! A closer look at one dataset, for who asks for it: each is bounded, whatever the size of the dataset.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::refusal::refuse;
use super::schemas;
use super::shared::Shared;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::coverage::{self, Relation};
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lifetimes::{lifetimes as lifetimes_of, sample};
use cachekeeper_engine::plan::{RowAsStored, rows_as_stored};

/// Rows that are shown, and how long Postgres may take to find them.
const ROWS: usize = 10;
const ROWS_WITHIN: Duration = Duration::from_secs(2);

/// What a dataset reads and watches.
#[derive(Serialize, JsonSchema)]
pub(super) struct Relations {
    #[schemars(with = "Vec<schemas::Relation>")]
    relations: Vec<Relation>,
}

/// First rows of a dataset.
#[derive(Serialize, JsonSchema)]
pub(super) struct FirstRows {
    #[schemars(with = "Vec<schemas::RowAsStored>")]
    rows: Vec<RowAsStored>,
    /// The configuration hides values.
    values_hidden: bool,
}

/// What its query reads and its rules watch, and whether every change of that is captured.
pub(super) async fn relations(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let Some(dataset) = of_name(&shared, &name) else { return unknown(&name) };
    match coverage::relations_of(shared.engine(), &dataset).await {
        Ok(relations) => axum::Json(Relations { relations }).into_response(),
        Err(error) => failed("what it reads and watches", &error),
    }
}

/// How long some of its entries still live.
pub(super) async fn lifetimes(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let Some(dataset) = of_name(&shared, &name) else { return unknown(&name) };
    match lifetimes_of(shared.engine(), &dataset).await {
        Ok(lifetimes) => axum::Json(lifetimes).into_response(),
        Err(error) => failed("how long its entries live", &error),
    }
}

/// What some of its entries take.
pub(super) async fn size(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let Some(dataset) = of_name(&shared, &name) else { return unknown(&name) };
    match sample(shared.engine(), &dataset).await {
        Ok(sample) => axum::Json(sample).into_response(),
        Err(error) => failed("what its entries take", &error),
    }
}

/// Its first rows, as they would be stored now.
pub(super) async fn rows(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let Some(dataset) = of_name(&shared, &name) else { return unknown(&name) };
    match rows_as_stored(shared.engine(), &dataset, ROWS, ROWS_WITHIN).await {
        Ok(mut rows) => {
            let hidden = shared.hides_values();
            rows.iter_mut().filter(|_| hidden).for_each(|row| row.value = None);
            axum::Json(FirstRows { rows, values_hidden: hidden }).into_response()
        }
        Err(error) => failed("its first rows", &error),
    }
}

fn of_name(shared: &Shared, name: &str) -> Option<Arc<Dataset>> {
    shared.engine().catalog.get(name).cloned()
}

fn unknown(name: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, format!("no dataset is named {name}"))
}

/// A server does not answer: what cannot be told therefore.
fn failed(what: &str, error: &EngineError) -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{what} cannot be told now: {}", error.told()))
}
