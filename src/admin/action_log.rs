//! Who did what: a line of the log with the target `audit` for each action, let through or not. The guard writes it for every
//! action by itself; a path that acts only says in words what it did, by [`done`].

use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;
use tracing::info;

use super::caller::Caller;
use crate::actions::{Action, Actions};
use crate::actors::clock::now_ms;
use cachekeeper_engine::log_limit;

/// What an action did, in words, for the log.
#[derive(Clone, Debug)]
struct Done(String);

/// The answer of an action, with what it did: "the dataset product is warmed". Never a value of data.
pub(super) fn done(mut response: Response, what: impl Into<String>) -> Response {
    response.extensions_mut().insert(Done(what.into()));
    response
}

/// An action that was done, or will be.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Done")]
pub(super) struct InWords {
    /// What was done, in words.
    done: String,
}

/// The answer of an action that has nothing to say but what it did.
pub(super) fn in_words(code: StatusCode, what: impl Into<String>) -> Response {
    let what: String = what.into();
    done((code, axum::Json(InWords { done: what.clone() })).into_response(), what)
}

/// Names an action, before its request is used up.
pub(super) fn name(method: &Method, uri: &Uri) -> String {
    format!("{method} {}", uri.path_and_query().map_or("", |asked| asked.as_str()))
}

/// Says who did what, and what became of it: the answer, or the code of a refusal.
pub(super) fn log(actions: &Actions, caller: &Caller, action: &str, result: Result<&Response, StatusCode>) {
    let status = result.map_or_else(|code| code, Response::status);
    let done = result.ok().and_then(|response| response.extensions().get::<Done>());
    let peer = caller.peer.map(|peer| peer.to_string());
    info!(
        target: "audit",
        action,
        role = caller.role.name(),
        peer = peer.as_deref(),
        user = caller.user,
        status = status.as_u16(),
        outcome = outcome(status),
        done = done.map(|Done(what)| what.as_str()),
        "action over the admin listener"
    );
    actions.note(Action {
        at_ms: now_ms(),
        action: action.to_owned(),
        role: caller.role.name(),
        user: caller.user.clone(),
        peer,
        status: status.as_u16(),
        outcome: outcome(status),
        done: done.map(|Done(what)| what.clone()),
    });
}

/// Says that somebody without a right token tried to. Anybody can do that as often as they like, so not each is told.
pub(super) fn log_stranger(peer: Option<String>, action: &str) {
    if let Some(times) = log_limit::due("action over the admin listener without a right token", "", 1) {
        info!(target: "audit", action, peer, outcome = "refused", times, "action over the admin listener without a right token");
    }
}

fn outcome(status: StatusCode) -> &'static str {
    if status.is_success() {
        "done"
    } else if status.is_server_error() {
        "failed"
    } else {
        "refused"
    }
}
