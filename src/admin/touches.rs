//! What happens to entries, as far as this worker does it: at once, or as it comes.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use super::refusal::refuse;
use super::shared::Shared;
use cachekeeper_engine::history::{History, Touch};
use cachekeeper_protocol::glob::Glob;

/// Touches of one answer.
const LIMIT: usize = 200;
const LIMIT_MAX: usize = 1_000;
/// Between two looks of somebody who follows: what comes faster than they can read is sampled.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Which touches somebody wants to see.
#[derive(Deserialize)]
pub(super) struct Asked {
    after: Option<u64>,
    limit: Option<usize>,
    dataset: Option<String>,
    what: Option<String>,
    /// A pattern of Redis.
    key: Option<String>,
}

struct Filter {
    dataset: Option<String>,
    what: Option<String>,
    key: Option<Glob>,
    limit: usize,
}

impl Filter {
    fn new(asked: Asked) -> Result<Self, &'static str> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let key = given(asked.key).map(|key| Glob::parse(&key)).transpose();
        Ok(Self {
            dataset: given(asked.dataset),
            what: given(asked.what),
            key: key?,
            limit: asked.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX),
        })
    }

    fn wants(&self, touch: &Touch) -> bool {
        let what = self.what.as_deref().is_none_or(|what| *what == *touch.what.as_str());
        let dataset = self.dataset.as_deref().is_none_or(|dataset| *dataset == *touch.dataset);
        what && dataset && self.key.as_ref().is_none_or(|glob| glob.matches(&touch.key))
    }

    /// What came after this number, and the number to go on from.
    fn look(&self, history: &History, after: u64) -> (Value, u64, bool) {
        // One more than is told says whether there are more.
        let (mut touches, last) = history.since(after, self.limit + 1, |touch| self.wants(touch));
        let is_sampled = self.limit < touches.len();
        if is_sampled {
            touches.remove(0);
        }
        let is_empty = touches.is_empty();
        (json!({ "touches": touches, "last": last, "is_sampled": is_sampled }), last, is_empty)
    }
}

pub(super) async fn touches(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let Some(history) = &shared.engine().history else { return nothing_kept() };
    let after = asked.after.unwrap_or_default();
    match Filter::new(asked) {
        Ok(filter) => axum::Json(filter.look(history, after).0).into_response(),
        Err(problem) => refuse(StatusCode::BAD_REQUEST, format!("key: {problem}")),
    }
}

/// The same as server-sent events.
pub(super) async fn live(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let Some(history) = shared.engine().history.clone() else { return nothing_kept() };
    let after = asked.after.unwrap_or_else(|| history.since(0, 0, |_| false).1);
    let filter = match Filter::new(asked) {
        Ok(filter) => filter,
        Err(problem) => return refuse(StatusCode::BAD_REQUEST, format!("key: {problem}")),
    };
    let looks = stream::unfold((history, filter, after), async |(history, filter, mut after)| {
        loop {
            let (body, last, is_empty) = filter.look(&history, after);
            after = last;
            tokio::time::sleep(LOOK_EVERY).await;
            if !is_empty {
                let event = Event::default().event("touches").data(body.to_string());
                return Some((Ok::<_, Infallible>(event), (history, filter, after)));
            }
        }
    });
    Sse::new(looks).keep_alive(KeepAlive::new().interval(Duration::from_secs(10))).into_response()
}

fn nothing_kept() -> Response {
    refuse(StatusCode::NOT_FOUND, "this process keeps no history")
}
