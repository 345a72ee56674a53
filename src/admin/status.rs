//! What the running worker knows of its datasets.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::schemas;
use super::shared::Shared;
use cachekeeper_engine::stores::redis::Watermark;

/// What the running worker knows of its datasets.
#[derive(Serialize, JsonSchema)]
pub(super) struct Status {
    ready: bool,
    /// Why not; empty: it is ready.
    reasons: Vec<String>,
    epoch: Option<String>,
    datasets: Vec<DatasetStatus>,
    #[schemars(with = "Option<schemas::Watermark>")]
    watermark: Option<Watermark>,
}

/// What it knows of one.
#[derive(Serialize, JsonSchema)]
struct DatasetStatus {
    name: String,
    /// The template of its keys.
    key: String,
    /// The hash of its definition.
    definition: String,
    /// Why it is being revalidated; null: it is not.
    pending: Option<String>,
    /// Why its changes may be missed; null: they are captured.
    not_covered: Option<String>,
    /// Its first backfill since the start has ended.
    warmed: bool,
    /// Why it cannot work; null: it can.
    broken: Option<String>,
}

pub(super) async fn status(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let reasons = shared.health().reasons();
    let datasets = shared.engine().catalog.iter().map(|dataset| {
        let name = dataset.name();
        DatasetStatus {
            name: name.to_owned(),
            key: dataset.settings.key.as_str().to_owned(),
            definition: dataset.definition.clone(),
            pending: facts.pending.get(name).cloned(),
            not_covered: facts.uncovered.get(name).or(facts.renamed.get(name)).cloned(),
            warmed: !facts.not_warmed.contains(name),
            broken: facts.broken.get(name).cloned(),
        }
    });
    let body = Status {
        ready: reasons.is_empty(),
        datasets: datasets.collect(),
        reasons,
        epoch: facts.epoch.clone(),
        watermark: facts.watermark.as_ref().map(|(watermark, _)| watermark.clone()),
    };
    axum::Json(body).into_response()
}
