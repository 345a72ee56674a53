//! The worker as a whole: its configuration, to load it again, to drain, the level of its log.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::action_log::done;
use super::asked::{Asked, Told};
use super::held::hold;
use super::refusal::refuse;
use super::shared::Shared;
use crate::control::ReloadError;
use crate::telemetry;

#[derive(Deserialize)]
pub(super) struct HowToReload {
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
pub(super) struct Level {
    level: String,
}

/// The file, and how it was last loaded.
pub(super) async fn settings(State(shared): State<Shared>) -> Response {
    let config = &shared.tasks.config;
    axum::Json(json!({
        "file": config.source.file(),
        "given": config.given(),
        "last_reload": shared.tasks.control.last_reload(),
        "started_ms": shared.started_ms,
    }))
    .into_response()
}

/// Answers when it is done; the worker that answers waits with its end until the answer was read.
pub(super) async fn reload(State(shared): State<Shared>, Asked(how): Asked<HowToReload>) -> Response {
    match shared.tasks.control.reload(how.dry_run).await {
        Ok((reloaded, told)) => {
            let (count, plural) = match reloaded.changes.len() {
                1 => (1, "setting"),
                count => (count, "settings"),
            };
            let would = if how.dry_run { "would change" } else { "changed" };
            let response = axum::Json(reloaded).into_response();
            hold(done(response, format!("{count} {plural} {would}")), told)
        }
        Err(error) => refused(&error),
    }
}

pub(super) async fn drain(State(shared): State<Shared>) -> Response {
    match shared.tasks.control.drain() {
        Ok(()) => {
            let what = "the worker takes no more work; /readyz says so, and others take over";
            done((StatusCode::ACCEPTED, axum::Json(json!({ "done": what }))).into_response(), what)
        }
        Err(error) => refused(&error),
    }
}

pub(super) async fn log_level(Told(asked): Told<Level>) -> Response {
    match telemetry::set_level(&asked.level) {
        Ok(()) => {
            let what =
                format!("the level of the log is {} until the configuration is loaded again", asked.level);
            done(axum::Json(json!({ "done": what })).into_response(), what)
        }
        Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, error),
    }
}

fn refused(error: &ReloadError) -> Response {
    let code = match error {
        ReloadError::Wrong(_) => StatusCode::UNPROCESSABLE_ENTITY,
        ReloadError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        ReloadError::Refused(_) => StatusCode::CONFLICT,
    };
    refuse(code, error.to_string())
}
