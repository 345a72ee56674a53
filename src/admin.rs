//! The admin listener: health, metrics, status.

use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;

use crate::actors::health::Health;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::chain;
use cachekeeper_engine::tokens::{self, WaitError};
use cachekeeper_protocol::token::Token;
use cachekeeper_protocol::units::parse_duration;

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
        .route("/api/v1/watermark", get(watermark))
        .with_state(Shared { context, health });
    axum::serve(listener, router).await
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let reasons = shared.health.reasons();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let notes = shared.health.facts().notes();
    (code, axum::Json(json!({ "ready": reasons.is_empty(), "reasons": reasons, "notes": notes })))
        .into_response()
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

/// `?token=…` (of `select cachekeeper.token()`), `&dataset=…`, `&wait=500ms`.
#[derive(serde::Deserialize)]
struct Asked {
    token: Option<String>,
    dataset: Option<String>,
    wait: Option<String>,
}

/// Nobody waits longer than this for one answer.
const WAIT_MAX: Duration = Duration::from_secs(30);

async fn watermark(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let refuse =
        |code: StatusCode, error: String| (code, axum::Json(json!({ "error": error }))).into_response();
    let token = match asked.token.as_deref().map(str::parse::<Token>).transpose() {
        Ok(token) => token,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let wait = match asked.wait.as_deref().map(parse_duration).transpose() {
        Ok(wait) => wait.unwrap_or_default().min(WAIT_MAX),
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("wait: {error}")),
    };
    if let Some(name) = asked.dataset.as_deref()
        && shared.context.catalog.get(name).is_none()
    {
        return refuse(StatusCode::NOT_FOUND, format!("no dataset is named {name}"));
    }
    let found = match &token {
        Some(token) => tokens::wait(&shared.context, token, asked.dataset.as_deref(), wait).await,
        None => {
            let watermark = shared.context.redis.watermark().await;
            watermark.map(|watermark| (watermark, false)).map_err(|error| WaitError::Flow(error.into()))
        }
    };
    match found {
        Ok((watermark, is_fresh)) => {
            let body = json!({ "watermark": watermark, "fresh": token.as_ref().map(|_| is_fresh) });
            axum::Json(body).into_response()
        }
        Err(error @ WaitError::TooMany) => refuse(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, chain(&error)),
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
