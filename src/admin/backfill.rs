//! The backfill that is under way: how far it is, how fast, and how to end it.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::action_log::in_words;
use super::refusal::refuse;
use super::shared::Shared;
use crate::actors::under_way::Cancelled;

/// A backfill of this worker that is under way.
#[derive(Serialize, JsonSchema)]
pub(super) struct BackfillState {
    /// How long it has run, in milliseconds.
    took_ms: u64,
    /// Entries stored so far, those of an interrupted run included.
    entries: u64,
    /// It goes on where another was interrupted.
    is_resumed: bool,
    /// Entries a second; null: it has just begun.
    rate: Option<u64>,
    /// Entries of the last one, which this one is about to store too; null: there was none, or this one has stored more.
    expected: Option<u64>,
    /// What is left at this rate, in milliseconds; null: not known.
    left_ms: Option<u64>,
}

/// That of a dataset; none: this worker runs none of it.
pub(super) fn under_way(shared: &Shared, dataset: &str) -> Option<BackfillState> {
    let seen = shared.tasks.backfills.under_way.look(dataset)?;
    let before = shared.backfill_entries(dataset);
    // There are more rows now than there were.
    let expected = before.filter(|before| seen.entries <= *before);
    let left = expected.map(|expected| expected.saturating_sub(seen.entries));
    let left_ms = left.zip(seen.rate).and_then(|(left, rate)| left.saturating_mul(1_000).checked_div(rate));
    Some(BackfillState {
        took_ms: u64::try_from(seen.took.as_millis()).unwrap_or(u64::MAX),
        entries: seen.entries,
        is_resumed: seen.is_resumed,
        rate: seen.rate,
        expected,
        left_ms,
    })
}

/// Ends the backfill of a dataset that this worker runs. What it has stored stays.
pub(super) async fn cancel(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    if shared.engine().catalog.get(&name).is_none() {
        return refuse(StatusCode::NOT_FOUND, format!("no dataset is named {name}"));
    }
    match shared.tasks.backfills.under_way.cancel(&name) {
        Cancelled::Done => {
            let what = format!("the backfill of {name} is cancelled; what it has stored stays");
            in_words(StatusCode::ACCEPTED, what)
        }
        Cancelled::Required => {
            let error = format!(
                "the backfill of {name} cannot be cancelled: entries may be missing or old until it has ended"
            );
            refuse(StatusCode::CONFLICT, error)
        }
        Cancelled::NoneRuns => {
            refuse(StatusCode::CONFLICT, format!("this worker runs no backfill of {name}"))
        }
    }
}
