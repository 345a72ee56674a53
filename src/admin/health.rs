//! Whether the worker lives and is ready, and its numbers. None of it asks a server: a database that is down must not restart
//! every worker.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::shared::Shared;

pub(super) async fn livez() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(shared): State<Shared>) -> Response {
    let reasons = shared.health.reasons();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let notes = shared.health.facts().notes();
    (code, axum::Json(json!({ "ready": reasons.is_empty(), "reasons": reasons, "notes": notes })))
        .into_response()
}

pub(super) async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.context.metrics.render() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
