//! The worker's own parts: tasks, servers, epoch.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::shared::Shared;
use crate::actors::health::DEPENDENCIES;
use cachekeeper_engine::metrics::ByActor;

/// The worker's own parts.
#[derive(Serialize, JsonSchema)]
pub(super) struct Machine {
    tasks: Vec<TaskState>,
    servers: Vec<ServerState>,
    /// The epoch; null: none is known yet.
    epoch: Option<String>,
    namespace: String,
    /// The worker's name, which no other one has.
    owner: String,
    /// In Unix milliseconds.
    started_ms: u64,
    /// Why the worker is not ready; empty: it is.
    reasons: Vec<String>,
}

/// A task of the worker.
#[derive(Serialize, JsonSchema)]
struct TaskState {
    name: &'static str,
    is_up: bool,
    restarts: u64,
}

/// A server, or a subscription at one.
#[derive(Serialize, JsonSchema)]
struct ServerState {
    name: &'static str,
    is_up: bool,
    /// Why it is not reached.
    reason: Option<String>,
}

pub(super) async fn machine(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let metrics = &shared.engine().metrics;
    let task = |name: &'static str| {
        let labels = ByActor::new(name);
        let is_up = metrics.actor_up.get_or_create(&labels).get() == 1;
        let restarts = metrics.actor_restarts.get_or_create(&labels).get();
        TaskState { name, is_up, restarts }
    };
    let server = |name: &'static str| {
        let reason = match facts.dependencies.get(name) {
            Some(Ok(())) => None,
            Some(Err(reason)) => Some(reason.clone()),
            None => Some("not reached yet".to_owned()),
        };
        ServerState { name, is_up: reason.is_none(), reason }
    };
    let body = Machine {
        tasks: facts.tasks.iter().map(|name| task(name)).collect(),
        servers: DEPENDENCIES.into_iter().map(server).collect(),
        epoch: facts.epoch.clone(),
        namespace: shared.tasks.config.service.namespace.clone(),
        owner: shared.tasks.owner.to_string(),
        started_ms: shared.started_ms,
        reasons: shared.health().reasons(),
    };
    axum::Json(body).into_response()
}
