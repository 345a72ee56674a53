//! One sentence of truth, what needs somebody, and the totals of what is done.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::attention::Attention;
use super::caller::Caller;
use super::refusal::refuse;
use super::shared::Shared;
use super::tokens::Role;
use crate::actors::clock::now_ms;
use crate::actors::health::Facts;
use cachekeeper_protocol::units::show_duration;

/// How fresh the whole is, and what needs somebody.
#[derive(Serialize, JsonSchema)]
pub(super) struct Now {
    /// The worker's clock, in Unix milliseconds.
    at_ms: u64,
    ready: bool,
    /// How fresh the whole is.
    sentence: String,
    attention: Vec<Attention>,
    /// What is worth knowing, of a worker that may be ready all the same.
    notes: Vec<String>,
    /// How long ago the database was as every covered entry is now; null: there is no watermark.
    watermark_age_ms: Option<u64>,
    /// Counts since the worker started.
    totals: BTreeMap<&'static str, u64>,
    /// What waits to be done.
    waiting: BTreeMap<&'static str, u64>,
    /// Why whoever asks may not act; null: they may.
    may_not_act: Option<&'static str>,
    version: &'static str,
    namespace: String,
}

pub(super) async fn now(State(shared): State<Shared>, Extension(caller): Extension<Caller>) -> Response {
    let facts = shared.health().facts();
    let reasons = shared.health().reasons();
    let Ok(text) = shared.engine().metrics.render() else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered");
    };
    let age = facts.watermark.as_ref().and_then(|(watermark, _)| watermark.age());
    let body = Now {
        at_ms: now_ms(),
        ready: reasons.is_empty(),
        sentence: sentence(&shared, &facts, age, reasons.is_empty()),
        attention: shared.since.look(&shared.tasks),
        notes: shared.health().notes(),
        watermark_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        totals: sums(&text, &TOTALS),
        waiting: sums(&text, &WAITING),
        may_not_act: may_not_act(&shared, caller.role),
        version: env!("CARGO_PKG_VERSION"),
        namespace: shared.tasks.config.service.namespace.clone(),
    };
    axum::Json(body).into_response()
}

/// Why whoever asks can do nothing here; the guard refuses it all the same.
fn may_not_act(shared: &Shared, role: Role) -> Option<&'static str> {
    match role {
        _ if shared.tasks.config.admin.is_read_only => {
            Some("nothing can be done over this listener: [admin] read_only = true")
        }
        Role::Read => Some("this token may only read; the one of [admin] token_file may act"),
        Role::Act => None,
    }
}

/// How fresh the whole is, in one sentence.
fn sentence(shared: &Shared, facts: &Facts, age: Option<Duration>, is_ready: bool) -> String {
    let all = shared.engine().catalog.iter().count();
    let plural = |count: usize| if count == 1 { "dataset" } else { "datasets" };
    if all == 0 {
        return "No dataset is configured: add one as [dataset.NAME] to the file.".to_owned();
    }
    let Some(((watermark, _), age)) = facts.watermark.as_ref().zip(age) else {
        return match shared.engine().feed.is_on {
            false => {
                format!("{all} {} live by events, schedules and lifetimes: the feed is off.", plural(all))
            }
            true => "Nothing is promised yet: no change was followed so far.".to_owned(),
        };
    };
    let own = |name: &&String| shared.engine().catalog.get(name).is_some();
    let left_out = watermark.not_covered.iter().filter(own).count();
    let age = show_age(age);
    let covered = all - left_out;
    let rest = if is_ready { "" } else { " The worker is not ready." };
    match left_out {
        0 if all == 1 => format!("The dataset is at least as fresh as {age} ago.{rest}"),
        0 => format!("All {all} {} are at least as fresh as {age} ago.{rest}", plural(all)),
        _ if covered == 0 => format!("The watermark covers none of {all} {}.{rest}", plural(all)),
        _ => format!(
            "{covered} of {all} {} are at least as fresh as {age} ago; {left_out} may be older.{rest}",
            plural(all)
        ),
    }
}

fn show_age(age: Duration) -> String {
    match age.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{:.1} s", age.as_secs_f64()),
        _ => show_duration(Duration::from_secs(age.as_secs())),
    }
}

/// The names that the totals have here, with those of the metrics that they add up. A worker reads no entry for anybody: hits are in the
/// metrics of applications.
const TOTALS: [(&str, &str, &str); 10] = [
    ("changes", "cachekeeper_changes_total", ""),
    ("changed_keys", "cachekeeper_changed_keys_total", ""),
    ("stored", "cachekeeper_entries_stored_total", ""),
    ("deleted", "cachekeeper_entries_deleted_total", ""),
    ("refused", "cachekeeper_entries_refused_total", ""),
    ("failed", "cachekeeper_entries_failed_total", ""),
    ("events", "cachekeeper_events_total", ""),
    ("misses", "cachekeeper_misses_filled_total", ""),
    ("refreshed", "cachekeeper_entries_refreshed_total", ""),
    ("written", "cachekeeper_write_commands_total", "reason=\"done\""),
];

/// What waits to be done, likewise.
const WAITING: [(&str, &str, &str); 3] = [
    ("changes", "cachekeeper_changes_waiting", ""),
    ("events", "cachekeeper_events_pending", ""),
    ("writes", "cachekeeper_write_commands_waiting", ""),
];

fn sums(text: &str, wanted: &[(&'static str, &str, &str)]) -> BTreeMap<&'static str, u64> {
    let mut sums: BTreeMap<&'static str, u64> = wanted.iter().map(|(name, ..)| (*name, 0)).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (metric, labels) = series.split_once('{').unwrap_or((series, ""));
        let of = wanted.iter().filter(|(_, known, label)| *known == metric && labels.contains(label));
        for (name, ..) in of {
            *sums.entry(name).or_default() += value.parse::<u64>().unwrap_or_default();
        }
    }
    sums
}
