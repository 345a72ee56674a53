//! The datasets: in which state each is and why, what it is made of, the rows without an entry; and a backfill that somebody wants.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::action_log::done;
use super::refusal::refuse;
use super::shared::Shared;
use crate::actors::clock::now_ms;
use crate::actors::health::Facts;
use crate::actors::inbox::Since;
use cachekeeper_config::{Format, Rows, Scope};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::stores::redis::Metadata;

pub(super) async fn datasets(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let metadata = metadata(&shared).await;
    let one = |dataset: &_| Value::Object(overview(&shared, dataset, &facts, metadata.as_ref()));
    let all: Vec<Value> = shared.engine().catalog.iter().map(|dataset| one(dataset)).collect();
    axum::Json(json!({ "datasets": all })).into_response()
}

pub(super) async fn dataset(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let Some(dataset) = shared.engine().catalog.get(&name) else { return unknown(&name) };
    let facts = shared.health().facts();
    let mut all = overview(&shared, dataset, &facts, metadata(&shared).await.as_ref());
    let refused = shared.engine().history.as_ref().map(|history| history.refused_rows(&name));
    all.insert("refused".to_owned(), json!(refused.unwrap_or_default()));
    let Value::Object(made_of) = made_of(dataset) else { return unknown(&name) };
    all.extend(made_of);
    axum::Json(Value::Object(all)).into_response()
}

/// Wants a backfill. It begins as soon as no other one runs, in this worker or another.
pub(super) async fn warm(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    if shared.engine().catalog.get(&name).is_none() {
        return unknown(&name);
    }
    shared.tasks.backfills.want(&name, Since::now());
    let when = match shared.health().facts().paused.contains_key(&name) {
        true => "the dataset is resumed",
        false => "no other one runs",
    };
    let what = format!("a backfill of {name} is wanted; it begins when {when}");
    done((StatusCode::ACCEPTED, axum::Json(json!({ "done": what }))).into_response(), what)
}

fn unknown(name: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, format!("no dataset is named {name}"))
}

/// What Redis records; none: it does not answer, and readiness says so.
async fn metadata(shared: &Shared) -> Option<Metadata> {
    shared.engine().redis.metadata("").await.ok()
}

fn overview(
    shared: &Shared,
    dataset: &Dataset,
    facts: &Facts,
    metadata: Option<&Metadata>,
) -> Map<String, Value> {
    let name = dataset.name();
    let (state, reason) = state(name, facts);
    let progress = metadata.and_then(|metadata| metadata.progress.get(name));
    let backfilled = metadata.and_then(|metadata| metadata.backfilled.get(name));
    let refused = shared.engine().history.as_ref().map_or(0, |history| history.count_refused(name));
    let about = json!({
        "name": name,
        "key": dataset.settings.key.as_str(),
        "state": state,
        "reason": reason,
        "progress": progress.map(|progress| json!({ "done": progress.done, "total": progress.entries })),
        "last_backfill_ms": backfilled.map(|backfilled| backfilled.began_ms),
        "last_backfill_entries": shared.backfill_entries(name),
        "refused_rows": refused,
        "paused_since_ms": facts.paused.get(name),
        "backfills": shared.engine().history.as_ref().map(|history| history.backfills(name)),
    });
    match about {
        Value::Object(about) => about,
        _ => Map::new(),
    }
}

pub(super) async fn pause(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    if shared.engine().catalog.get(&name).is_none() {
        return unknown(&name);
    }
    match shared.engine().redis.pause(&name, now_ms()).await {
        Ok(()) => {
            shared.tasks.epoch_keeper.now();
            let what = format!("{name} is paused for all workers; changes are applied all the same");
            done(axum::Json(json!({ "done": what })).into_response(), what)
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.told()),
    }
}

pub(super) async fn resume(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    match shared.engine().redis.resume(&name).await {
        Ok(was_paused) => {
            shared.tasks.epoch_keeper.now();
            let what = format!("{name} {}", if was_paused { "goes on" } else { "was not paused" });
            done(axum::Json(json!({ "done": what })).into_response(), what)
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.told()),
    }
}

/// The state in a word, and why. The worst comes first.
fn state<'f>(name: &str, facts: &'f Facts) -> (&'static str, Option<&'f str>) {
    let of = |map: &'f std::collections::BTreeMap<String, String>| map.get(name).map(String::as_str);
    let states = [
        ("broken", of(&facts.broken)),
        ("left_out", of(&facts.left_out)),
        ("not_covered", of(&facts.uncovered).or(of(&facts.renamed)).or(of(&facts.unmet))),
        ("pending", of(&facts.pending)),
    ];
    if facts.superseded.contains(name) {
        return ("superseded", Some("another worker has a newer definition of it, which is served"));
    }
    if let Some((state, reason)) = states.into_iter().find(|(_, reason)| reason.is_some()) {
        return (state, reason);
    }
    if facts.paused.contains_key(name) {
        return (
            "paused",
            Some(
                "a person has paused its backfills, its refreshing ahead and its audit; changes are applied",
            ),
        );
    }
    if facts.not_warmed.contains(name) {
        return ("not_warmed", Some("its first backfill since the start has not ended"));
    }
    ("fresh", None)
}

/// How it is configured, as it is in effect.
fn made_of(dataset: &Dataset) -> Value {
    let settings = &dataset.settings;
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let format = match settings.format {
        Format::MessagePack { .. } => "msgpack",
        Format::Json { .. } => "json",
        Format::Raw { .. } => "raw",
    };
    let warm = settings.warm.as_ref();
    json!({
        "query": settings.query,
        "tags": settings.tags.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "watch": settings.watch.iter().map(|rule| rule.table.to_string()).collect::<Vec<_>>(),
        "format": format,
        "scope": if settings.scope == Scope::All { "all" } else { "cached" },
        "ttl_ms": millis(settings.ttl),
        "settings": {
            "rows": if matches!(settings.rows, Rows::One) { "one" } else { "many" },
            "ttl_ms": millis(settings.ttl),
            "negative_ttl_ms": settings.negative_ttl.map(millis),
            "revalidation_rate": settings.revalidation_rate,
            "batch": settings.batch,
            "definition": dataset.definition,
            "write": settings.write,
            "warm_on_start": warm.map(|warm| warm.on_start),
            "warm_limit": warm.and_then(|warm| warm.limit),
            "warm_order_by": warm.and_then(|warm| warm.order_by.clone()),
            "warm_rate": warm.and_then(|warm| warm.rate),
        },
    })
}
