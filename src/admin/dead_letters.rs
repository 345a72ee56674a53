//! The stream of write commands, and those that were rejected: to be tried again, or discarded.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::action_log::done;
use super::refusal::refuse;
use super::shared::Shared;
use cachekeeper_engine::commands::group_of;
use cachekeeper_engine::dead_letters::{self, Rejected, rejected};
use cachekeeper_engine::error::EngineError;

/// Rejected commands that are told, the oldest first.
const TOLD_MAX: usize = 100;
/// More than are ever kept.
const ALL: usize = 1_000_000;

/// Ids as they are told; those that are kept no more are left out.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Letters {
    /// As `letter` or `id` names them.
    letters: Vec<String>,
}

/// The stream of write commands, and those that were rejected.
#[derive(Serialize, JsonSchema)]
pub(super) struct DeadLetters {
    /// Its name; null: there is none.
    stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    /// Commands that somebody has taken and not finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pending: Option<u64>,
    /// How many were rejected and are kept.
    count: u64,
    /// The oldest of them, 100 at most.
    dead_letters: Vec<DeadLetter>,
    /// The configuration hides values.
    #[serde(skip_serializing_if = "Option::is_none")]
    values_hidden: Option<bool>,
}

/// A rejected command.
#[derive(Serialize, JsonSchema)]
struct DeadLetter {
    /// Under which it is kept.
    letter: String,
    /// When it was rejected, in Unix milliseconds.
    at_ms: i64,
    /// The command's id; null: it has no record.
    id: Option<String>,
    dataset: Option<String>,
    /// As they came; null: hidden, or there are none.
    parameters: Option<Value>,
    reason: String,
}

/// What was put back.
#[derive(Serialize, JsonSchema)]
pub(super) struct ReplayDone {
    /// What was done, in words.
    done: String,
    replayed: u64,
}

/// What was discarded.
#[derive(Serialize, JsonSchema)]
pub(super) struct DiscardDone {
    /// What was done, in words.
    done: String,
    discarded: u64,
}

pub(super) async fn list(State(shared): State<Shared>) -> Response {
    let Some(stream) = shared.tasks.config.writes.stream.clone() else {
        let (stream, length, pending, values_hidden) = (None, None, None, None);
        let none = DeadLetters { stream, length, pending, count: 0, dead_letters: Vec::new(), values_hidden };
        return axum::Json(none).into_response();
    };
    let look = async {
        let redis = &shared.engine().redis;
        let state = redis.stream_state(&stream, &group_of(redis.keys().namespace())).await?;
        Ok::<_, EngineError>((state, rejected(shared.engine(), &stream, TOLD_MAX).await?))
    };
    match look.await {
        Ok((state, letters)) => {
            shared.since.note_rejected(state.dead);
            let hides = shared.hides_values();
            let body = DeadLetters {
                stream: Some(stream),
                length: Some(state.length),
                pending: Some(state.pending),
                count: state.dead,
                dead_letters: letters.iter().map(|one| told(one, hides)).collect(),
                values_hidden: Some(hides),
            };
            axum::Json(body).into_response()
        }
        Err(error) => failed(&error),
    }
}

fn told(rejected: &Rejected, hides_values: bool) -> DeadLetter {
    let parameters = || rejected.parameters().or_else(|| rejected.field("params").map(Value::from));
    DeadLetter {
        letter: rejected.kept_as().to_owned(),
        at_ms: rejected.rejected_ms(),
        id: rejected.id.clone(),
        dataset: rejected.field("dataset"),
        parameters: if hides_values { None } else { parameters() },
        reason: rejected.reason.clone(),
    }
}

/// Puts commands back into the stream.
pub(super) async fn replay(State(shared): State<Shared>, axum::Json(asked): axum::Json<Letters>) -> Response {
    let (stream, chosen) = match choose(&shared, &asked.letters).await {
        Ok(chosen) => chosen,
        Err(response) => return response,
    };
    let replayed = dead_letters::replay(shared.engine(), &stream, &chosen).await;
    let what = format!("{} put back into {stream}", commands(replayed.count));
    match replayed.error {
        Some(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, format!("{what}; then: {}", error.told())),
        None => {
            let answer = ReplayDone { done: what.clone(), replayed: replayed.count as u64 };
            done(axum::Json(answer).into_response(), what)
        }
    }
}

/// Discards commands for good.
pub(super) async fn discard(
    State(shared): State<Shared>,
    axum::Json(asked): axum::Json<Letters>,
) -> Response {
    let (stream, chosen) = match choose(&shared, &asked.letters).await {
        Ok(chosen) => chosen,
        Err(response) => return response,
    };
    match dead_letters::discard(shared.engine(), &stream, &chosen).await {
        Ok(count) => {
            let what = format!("{} of {stream} discarded", commands(usize::try_from(count).unwrap_or(ALL)));
            let answer = DiscardDone { done: what.clone(), discarded: count };
            done(axum::Json(answer).into_response(), what)
        }
        Err(error) => failed(&error.into()),
    }
}

fn commands(count: usize) -> String {
    if count == 1 { "1 rejected command".to_owned() } else { format!("{count} rejected commands") }
}

async fn choose(shared: &Shared, letters: &[String]) -> Result<(String, Vec<Rejected>), Response> {
    let Some(stream) = shared.tasks.config.writes.stream.clone() else {
        return Err(refuse(
            StatusCode::NOT_FOUND,
            "there is no stream of write commands: [writes] stream is empty",
        ));
    };
    let mut found = rejected(shared.engine(), &stream, ALL).await.map_err(|error| failed(&error.into()))?;
    found.retain(|one| letters.iter().any(|letter| one.is_meant_by(letter)));
    if found.is_empty() {
        return Err(refuse(StatusCode::NOT_FOUND, "none of these commands is kept any more; look again"));
    }
    Ok((stream, found))
}

fn failed(error: &EngineError) -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, error.told())
}
