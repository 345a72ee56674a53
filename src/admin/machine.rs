//! The worker's own parts: tasks, servers, epoch.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::shared::Shared;
use crate::actors::health::DEPENDENCIES;
use cachekeeper_engine::metrics::ByActor;

pub(super) async fn machine(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let metrics = &shared.engine().metrics;
    let task = |name: &'static str| {
        let labels = ByActor::new(name);
        let is_up = metrics.actor_up.get_or_create(&labels).get() == 1;
        let restarts = metrics.actor_restarts.get_or_create(&labels).get();
        json!({ "name": name, "is_up": is_up, "restarts": restarts })
    };
    let server = |name: &'static str| match facts.dependencies.get(name) {
        Some(Ok(())) => json!({ "name": name, "is_up": true, "reason": null }),
        Some(Err(reason)) => json!({ "name": name, "is_up": false, "reason": reason }),
        None => json!({ "name": name, "is_up": false, "reason": "not reached yet" }),
    };
    let tasks: Vec<Value> = facts.tasks.iter().map(|name| task(name)).collect();
    let servers: Vec<Value> = DEPENDENCIES.into_iter().map(server).collect();
    let body = json!({
        "tasks": tasks,
        "servers": servers,
        "epoch": facts.epoch,
        "namespace": shared.tasks.config.service.namespace,
        "owner": &*shared.tasks.owner,
        "started_ms": shared.started_ms,
        "reasons": shared.health().reasons(),
    });
    axum::Json(body).into_response()
}
