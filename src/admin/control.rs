//! The worker as a whole: its configuration, to load it again, to drain, the level of its log.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::action_log::{done, in_words};
use super::asked::{Asked, Told};
use super::held::hold;
use super::refusal::refuse;
use super::setting::Given;
use super::shared::Shared;
use crate::actions::Action;
use crate::control::{LastReload, ReloadError};
use crate::telemetry;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HowToReload {
    /// Only say what would change
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Level {
    /// error, warn, info, debug, trace, or filters.
    level: String,
}

/// The configuration that counts.
#[derive(Serialize, JsonSchema)]
pub(super) struct Settings {
    file: String,
    /// Every setting that the file or the environment gives, as text; no secrets.
    given: BTreeMap<String, String>,
    /// The same, each with where it comes from.
    settings: Vec<Given>,
    /// The level that the log has now; empty: this worker does not log.
    log_level: String,
    /// How the last reload ended; null: there was none.
    last_reload: Option<LastReload>,
    /// In Unix milliseconds.
    started_ms: u64,
}

/// What people had done, the newest first.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Actions")]
pub(super) struct Done {
    /// The newest 200 since the process started; the log has all.
    actions: Vec<Action>,
}

/// Who did what over this listener.
pub(super) async fn actions(State(shared): State<Shared>) -> Response {
    axum::Json(Done { actions: shared.tasks.control.actions.newest() }).into_response()
}

/// The file, and how it was last loaded.
pub(super) async fn settings(State(shared): State<Shared>) -> Response {
    let config = &shared.tasks.config;
    let given: BTreeMap<String, String> =
        config.given().into_iter().map(|(setting, text)| (setting.to_owned(), text)).collect();
    // Of sections only their names are given.
    let settings = given.iter().filter(|(_, text)| !text.is_empty());
    let settings = settings.map(|(name, text)| Given::new(&config.source, name, text.clone())).collect();
    axum::Json(Settings {
        file: config.source.file().to_owned(),
        settings,
        log_level: telemetry::level(),
        given,
        last_reload: shared.tasks.control.last_reload(),
        started_ms: shared.started_ms,
    })
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
            in_words(StatusCode::ACCEPTED, what)
        }
        Err(error) => refused(&error),
    }
}

pub(super) async fn log_level(Told(asked): Told<Level>) -> Response {
    match telemetry::set_level(&asked.level) {
        Ok(()) => {
            let what =
                format!("the level of the log is {} until the configuration is loaded again", asked.level);
            in_words(StatusCode::OK, what)
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
