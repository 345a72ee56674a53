//! One sentence of truth, what needs somebody, and the totals of what is done.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::refusal::refuse;
use super::shared::Shared;
use crate::actors::clock::now_ms;
use crate::actors::health::Facts;
use cachekeeper_protocol::units::show_duration;

/// What needs somebody.
#[derive(Debug, Serialize)]
pub(super) struct Attention {
    what: String,
    consequence: &'static str,
    next: &'static str,
}

pub(super) async fn now(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let reasons = shared.health().reasons();
    let Ok(text) = shared.engine().metrics.render() else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be rendered");
    };
    let age = facts.watermark.as_ref().and_then(|(watermark, _)| watermark.age());
    let body = json!({
        "at_ms": now_ms(),
        "ready": reasons.is_empty(),
        "sentence": sentence(&shared, &facts, age, reasons.is_empty()),
        "attention": attention(&facts, &reasons),
        "notes": facts.notes(),
        "watermark_age_ms": age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        "totals": totals(&text),
        "read_only": shared.tasks.config.admin.is_read_only,
        "version": env!("CARGO_PKG_VERSION"),
        "namespace": shared.tasks.config.service.namespace,
    });
    axum::Json(body).into_response()
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

/// Each reason of readiness, with what it means for who reads the cache, and what to do.
fn attention(facts: &Facts, reasons: &[String]) -> Vec<Attention> {
    let mut attention: Vec<Attention> = reasons
        .iter()
        .filter(|reason| *reason != "stopping")
        .map(|reason| {
            let (consequence, next) = meaning(reason);
            Attention { what: reason.clone(), consequence, next }
        })
        .collect();
    for (dataset, reason) in &facts.uncovered {
        if !facts.unmet.contains_key(dataset) {
            let (consequence, next) = UNCOVERED;
            attention.push(Attention {
                what: format!("dataset {dataset}: not covered: {reason}"),
                consequence,
                next,
            });
        }
    }
    for (dataset, reason) in &facts.pending {
        attention.push(Attention {
            what: format!("dataset {dataset}: being revalidated: {reason}"),
            consequence: "Its entries are readable and may be old until they were compared.",
            next: "Nothing: it ends by itself. The datasets show how far it is.",
        });
    }
    attention
}

const UNCOVERED: (&str, &str) = (
    "Changes of its tables may be missed; entries are renewed by events, schedules and the end of their lifetime.",
    "`cachekeeper check` names what is missing; often it is `cachekeeper migrate` by the owner of the tables.",
);

fn meaning(reason: &str) -> (&'static str, &'static str) {
    let begins = |start: &str| reason.starts_with(start);
    if begins("postgres") {
        let consequence = "Entries stay readable and grow old; misses cannot be loaded.";
        (consequence, "See to the database or its address; the worker goes on by itself once it answers.")
    } else if begins("redis") {
        let consequence = "Applications may not reach their entries; changes wait in the outbox.";
        (consequence, "See to Redis or its address; the worker goes on by itself once it answers.")
    } else if begins("subscription") {
        let consequence = "Events may have been missed; where changes are captured nothing is lost.";
        (consequence, "Nothing, if it ends soon. `cachekeeper check` names missing rights.")
    } else if begins("feed") {
        let consequence = "Entries grow old: changes are not followed, or not fast enough.";
        (
            consequence,
            "Look for long transactions and locks in Postgres, and at the log of the worker that leads.",
        )
    } else if reason.contains("not warmed") {
        ("Entries are missing until the backfill has come to them.", "Nothing: the backfill runs.")
    } else {
        let consequence = "The dataset is not kept as it is configured.";
        (consequence, "`cachekeeper check` says what to correct, and where.")
    }
}

/// The names that the totals have here, with those of the metrics that they add up.
const TOTALS: [(&str, &str, &str); 11] = [
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
    ("hits", "cachekeeper_reads_total", "outcome=\"hit\""),
];

fn totals(text: &str) -> BTreeMap<&'static str, u64> {
    let mut totals: BTreeMap<&'static str, u64> = TOTALS.iter().map(|(name, ..)| (*name, 0)).collect();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (metric, labels) = series.split_once('{').unwrap_or((series, ""));
        let of = TOTALS.iter().filter(|(_, known, label)| *known == metric && labels.contains(label));
        for (name, ..) in of {
            *totals.entry(name).or_default() += value.parse::<u64>().unwrap_or_default();
        }
    }
    totals
}
