//! The admin listener: health, metrics, status.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use crate::actors::health::Health;
use crate::flows::context::Context;

#[derive(Clone)]
struct Shared {
    context: Context,
    health: Health,
}

/// Serves until the task is aborted.
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: TcpListener, context: Context, health: Health) -> std::io::Result<()> {
    let router = Router::new()
        // Never asks a dependency: a database that is down must not restart every worker.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .with_state(Shared { context, health });
    axum::serve(listener, router).await
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let reasons = shared.health.reasons();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.context.metrics.render() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(shared): State<Shared>) -> Response {
    let facts = shared.health.facts();
    let reasons = shared.health.reasons();
    let datasets: Vec<_> = shared
        .context
        .catalog
        .iter()
        .map(|dataset| {
            json!({
                "name": dataset.name(),
                "key": dataset.settings.key.as_str(),
                "revision": dataset.revision,
                "owed": facts.owed.get(dataset.name()),
                "warmed": !facts.not_warmed.contains(dataset.name()),
                "broken": facts.broken.get(dataset.name()),
            })
        })
        .collect();
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons, "epoch": facts.epoch, "datasets": datasets });
    axum::Json(body).into_response()
}
