//! Whether the worker lives and is ready, and its numbers. None of it asks a server: a database that is down must not restart
//! every worker.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::caller::Caller;
use super::refusal::refuse;
use super::shared::Shared;
use crate::actors::health::Health;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::metrics::{ByDataset, Metrics, Unlabelled};
use cachekeeper_engine::process;

pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Whoever may not read is told that it is not ready, but not why.
pub(super) async fn readyz(State(shared): State<Shared>, caller: Option<Extension<Caller>>) -> Response {
    let reasons = shared.health().reasons();
    let is_ready = reasons.is_empty();
    let code = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = match caller {
        Some(_) => json!({
            "ready": is_ready,
            "reasons": reasons,
            "notes": shared.health().notes(),
            "namespace": shared.engine().redis.keys().namespace(),
        }),
        None => json!({ "ready": is_ready }),
    };
    (code, axum::Json(body)).into_response()
}

/// What is known as a fact is put into numbers when it is asked for.
fn set_states(engine: &Context, health: &Health) {
    let (metrics, facts) = (&engine.metrics, health.facts());
    if let Some((_, moved)) = &facts.watermark {
        metrics.watermark_age_seconds.get_or_create(&Unlabelled).set(moved.elapsed().as_secs_f64());
    } else {
        // Not 0: a worker that knows no watermark must not pass for the freshest.
        metrics.watermark_age_seconds.remove(&Unlabelled);
    }
    metrics.ready.get_or_create(&Unlabelled).set(i64::from(health.reasons().is_empty()));
    for dataset in engine.catalog.iter() {
        let is_broken = facts.broken.contains_key(dataset.name());
        metrics.broken.get_or_create(&ByDataset::new(dataset.name())).set(i64::from(is_broken));
    }
}

/// On a cluster with those of each shard, which say so.
fn rendered(shared: &Shared) -> Result<String, std::fmt::Error> {
    let (metrics, process) = (&shared.engine().metrics, process::registry());
    let Some(of_cluster) = &shared.tasks.of_cluster else { return metrics.render_with(&[&process]) };
    let shards = of_cluster.shards.all();
    let of_shards = shards.values().map(|shard| {
        set_states(&shard.tasks.engine, &shard.tasks.health);
        Arc::clone(&shard.tasks.engine.metrics)
    });
    metrics.render_shards(&of_shards.collect::<Vec<_>>(), &[&process])
}

/// As `OpenMetrics` to who asks for it, else in Prometheus's text format.
pub(super) async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let asked = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    set_states(shared.engine(), shared.health());
    let text = match rendered(&shared) {
        Ok(text) => text,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let (text, kind) = if asked.contains("application/openmetrics-text") {
        (text, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    } else {
        (Metrics::classic(&text), "text/plain; version=0.0.4; charset=utf-8")
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
