//! The worker's own parts: tasks, servers, epoch.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::shared::Shared;
use crate::actors::health::{DEPENDENCIES, SeenEpoch};
use cachekeeper_engine::metrics::ByActor;

/// The worker's own parts.
#[derive(Serialize, JsonSchema)]
pub(super) struct Machine {
    tasks: Vec<TaskState>,
    servers: Vec<ServerState>,
    /// The epoch; null: none is known yet.
    epoch: Option<String>,
    /// The last 20 that this worker has seen, the newest first.
    epochs: Vec<EpochState>,
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
    /// When it ended last though it was not to, in Unix milliseconds; null: never.
    ended_ms: Option<u64>,
    /// Why it did.
    ended_why: Option<String>,
}

/// An epoch, as this worker has seen it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Epoch")]
struct EpochState {
    id: String,
    /// Since when this worker has seen it, in Unix milliseconds.
    since_ms: u64,
    /// What was pending then, and why; null: nothing.
    cause: Option<String>,
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
        let ended = facts.ends.get(name);
        let (ended_ms, ended_why) = (ended.map(|(at, _)| *at), ended.map(|(_, why)| why.clone()));
        TaskState { name, is_up, restarts, ended_ms, ended_why }
    };
    let server = |name: &'static str| {
        let reason = shared.health().not_reached(name);
        ServerState { name, is_up: reason.is_none(), reason }
    };
    let epoch = |seen: &SeenEpoch| EpochState {
        id: seen.id.clone(),
        since_ms: seen.since_ms,
        cause: seen.cause.clone(),
    };
    let body = Machine {
        tasks: facts.tasks.iter().map(|name| task(name)).collect(),
        servers: DEPENDENCIES.into_iter().map(server).collect(),
        epoch: facts.epoch.clone(),
        epochs: facts.epochs.iter().rev().map(epoch).collect(),
        namespace: shared.tasks.config.service.namespace.clone(),
        owner: shared.tasks.owner.to_string(),
        started_ms: shared.started_ms,
        reasons: shared.health().reasons(),
    };
    axum::Json(body).into_response()
}
