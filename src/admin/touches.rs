//! What happens to entries, as far as this worker does it: at once, or as it comes.

use std::convert::Infallible;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use schemars::JsonSchema;
use serde::Serialize;

use super::asked::Asked;
use super::filter::{Filter, Wanted};
use super::leave::Leave;
use super::refusal::refuse;
use super::schemas;
use super::shared::Shared;
use cachekeeper_engine::history::Touch;

/// What happened to entries.
#[derive(Serialize, JsonSchema)]
pub(super) struct Touches<'a> {
    /// The oldest first.
    #[schemars(with = "Vec<schemas::Touch>")]
    touches: Vec<&'a Touch>,
    /// The number of the last touch that there is.
    last: u64,
    /// There are more, and these are the newest.
    is_sampled: bool,
    /// Since when the worker remembers everything, in Unix milliseconds.
    since_ms: u64,
    namespace: String,
}

/// The data of an event of the stream.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its shape is of use: events are rendered once for all who follow")]
pub(super) enum Event {
    /// `event: touches`
    Touches {
        /// The oldest first.
        touches: Vec<schemas::Touch>,
        /// The number up to which everything was looked through.
        last: u64,
        /// There were more, and these are the newest.
        is_sampled: bool,
    },
    /// `event: lost`
    Lost {
        /// So many touches went by, because they were not read in time.
        lost: u64,
    },
}

pub(super) async fn touches(State(shared): State<Shared>, Asked(wanted): Asked<Wanted>) -> Response {
    let Some(history) = &shared.engine().history else { return nothing_kept() };
    let after = wanted.after.unwrap_or_default();
    let filter = match Filter::new(wanted) {
        Ok(filter) => filter,
        Err(problem) => return refuse(StatusCode::BAD_REQUEST, format!("key: {problem}")),
    };
    // One more than is told says whether there are more.
    let (found, last) = history.since(after, filter.limit + 1, |touch| filter.wants(touch));
    let is_sampled = filter.limit < found.len();
    let body = Touches {
        touches: found.iter().skip(usize::from(is_sampled)).map(|touch| &**touch).collect(),
        last,
        is_sampled,
        since_ms: history.since_ms(),
        namespace: shared.tasks.config.service.namespace.clone(),
    };
    axum::Json(body).into_response()
}

/// The same as server-sent events.
pub(super) async fn live(
    State(shared): State<Shared>,
    Extension(leave): Extension<Leave>,
    Asked(wanted): Asked<Wanted>,
) -> Response {
    let after = wanted.after;
    let filter = match Filter::new(wanted) {
        Ok(filter) => filter,
        Err(problem) => return refuse(StatusCode::BAD_REQUEST, format!("key: {problem}")),
    };
    let Some(followed) = shared.live.follow(filter, after, leave) else { return nothing_kept() };
    let events = stream::unfold(followed, async |mut followed| {
        let event = followed.next().await?;
        Some((Ok::<_, Infallible>(event), followed))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

fn nothing_kept() -> Response {
    refuse(StatusCode::NOT_FOUND, "this process keeps no history")
}
