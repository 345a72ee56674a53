//! One key: why it has its value; and keys that somebody wants loaded again or deleted.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::action_log::done;
use super::asked::{Asked, Told};
use super::refusal::refuse;
use super::schemas;
use super::shared::Shared;
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::explain::{Explanation, explain as explain_key};
use cachekeeper_engine::{events, invalidate};
use cachekeeper_protocol::event::Op;

/// Keys of one request.
const KEYS_MAX: usize = 1_000;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OneKey {
    /// The key
    key: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    /// 1 to 1,000 keys.
    keys: Vec<String>,
}

/// What is told of a key, and whether values are left out of it.
#[derive(Serialize, JsonSchema)]
pub(super) struct Explained {
    #[serde(flatten)]
    #[schemars(with = "schemas::Explanation")]
    explained: Explanation,
    /// The configuration hides values.
    values_hidden: bool,
}

pub(super) async fn explain(State(shared): State<Shared>, Asked(asked): Asked<OneKey>) -> Response {
    if asked.key.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "name a key: /api/v1/explain?key=product:42");
    }
    match explain_key(shared.engine(), &asked.key).await {
        Ok(explained) => {
            let hides = shared.hides_values();
            let explained = if hides { without_values(explained) } else { explained };
            axum::Json(Explained { explained, values_hidden: hides }).into_response()
        }
        Err(error) => failed(&error),
    }
}

/// What became of keys.
#[derive(Serialize, JsonSchema)]
pub(super) struct KeysDone {
    /// What was done, in words.
    done: String,
    stored: u64,
    deleted: u64,
    /// Keys of no dataset that `[invalidation] keys` does not name.
    left_out: Vec<String>,
    failed: Vec<FailedKey>,
}

/// A key of which nothing became.
#[derive(Serialize, JsonSchema)]
struct FailedKey {
    key: Option<String>,
    reason: String,
}

/// Which columns differ is told all the same.
fn without_values(mut explained: Explanation) -> Explanation {
    explained.entry.iter_mut().for_each(|entry| entry.value = None);
    explained.row.value = None;
    for difference in &mut explained.differences {
        (difference.redis, difference.postgres) = (None, None);
    }
    explained
}

pub(super) async fn refresh(State(shared): State<Shared>, Told(asked): Told<Keys>) -> Response {
    apply(&shared, asked.keys, Op::Refresh).await
}

pub(super) async fn delete(State(shared): State<Shared>, Told(asked): Told<Keys>) -> Response {
    apply(&shared, asked.keys, Op::Delete).await
}

/// Does what an event would.
async fn apply(shared: &Shared, mut keys: Vec<String>, op: Op) -> Response {
    if keys.is_empty() || KEYS_MAX < keys.len() {
        return refuse(
            StatusCode::BAD_REQUEST,
            format!("name 1 to {KEYS_MAX} keys: {{\"keys\": [\"product:42\"]}}"),
        );
    }
    let context = shared.engine();
    let work = async {
        let left_out = events::leave_out(context, &mut keys).await?;
        let report = with_current_epoch(context, || invalidate::keys(context, &keys, Some(op))).await?;
        Ok::<_, EngineError>((left_out, report))
    };
    let (left_out, report) = match work.await {
        Ok(done) => done,
        Err(error) => return failed(&error),
    };
    let (deleted, stored) = (report.gone + report.invalidated, report.stored);
    let mut what = format!("{stored} loaded again, {deleted} deleted");
    if let Some(first) = left_out.first() {
        what = format!(
            "{what}; left alone: {first}, a key of no dataset that [invalidation] keys does not name"
        );
    }
    let failures = report
        .failures
        .into_iter()
        .map(|failure| FailedKey { key: failure.key, reason: failure.reason })
        .collect();
    let answer = KeysDone { done: what.clone(), stored, deleted, left_out, failed: failures };
    done(axum::Json(answer).into_response(), what)
}

fn failed(error: &EngineError) -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, error.told())
}
