//! What the running worker knows of its datasets.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::shared::Shared;

pub(super) async fn status(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let reasons = shared.health().reasons();
    let datasets: Vec<_> = shared
        .engine()
        .catalog
        .iter()
        .map(|dataset| {
            json!({
                "name": dataset.name(),
                "key": dataset.settings.key.as_str(),
                "definition": dataset.definition,
                "pending": facts.pending.get(dataset.name()),
                "not_covered": facts.uncovered.get(dataset.name()).or(facts.renamed.get(dataset.name())),
                "warmed": !facts.not_warmed.contains(dataset.name()),
                "broken": facts.broken.get(dataset.name()),
            })
        })
        .collect();
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons, "epoch": facts.epoch, "datasets": datasets,
        "watermark": facts.watermark.as_ref().map(|(watermark, _)| watermark) });
    axum::Json(body).into_response()
}
