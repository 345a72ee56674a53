//! The datasets: in which state each is and why, what it is made of, the rows without an entry; and a backfill that somebody wants.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use schemars::JsonSchema;
use serde::Serialize;

use super::action_log::in_words;
use super::backfill::{BackfillState, under_way};
use super::dataset_state::{DatasetState, age_of, state};
use super::refusal::refuse;
use super::schemas;
use super::setting::{Origin, origin_of_dataset};
use super::shared::Shared;
use crate::actors::clock::now_ms;
use crate::actors::health::Facts;
use crate::actors::inbox::Since;
use crate::schedule::next_fire;
use cachekeeper_config::{Codec, FeedNeed, OnChange, OnMiss, Rows, Scope};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::history::{EndedBackfill, RefusedRows};
use cachekeeper_engine::stores::redis::Metadata;

/// All datasets.
#[derive(Serialize, JsonSchema)]
pub(super) struct Datasets {
    datasets: Vec<DatasetOverview>,
}

/// In which state a dataset is, and why.
#[derive(Serialize, JsonSchema)]
struct DatasetOverview {
    name: String,
    /// The template of its keys.
    key: String,
    state: DatasetState,
    /// Why it is in that state.
    reason: Option<String>,
    /// How far its revalidation is; null: none runs.
    progress: Option<RevalidationState>,
    /// When the last backfill began, in Unix milliseconds.
    last_backfill_ms: Option<u64>,
    /// How many entries the last backfill that this worker knows of stored.
    last_backfill_entries: Option<u64>,
    /// How many rows have no entry, of those that this worker has met.
    rows_without_entry: u64,
    /// Since when somebody has paused it, in Unix milliseconds.
    paused_since_ms: Option<u64>,
    /// When its schedule has a backfill run next, in Unix milliseconds; null: there is none.
    next_run_ms: Option<u64>,
    /// The backfill that this worker runs; null: none.
    backfill: Option<BackfillState>,
    /// How old its entries may be, in milliseconds: the age of the watermark; null: it does not speak for the dataset.
    age_ms: Option<u64>,
    /// The last 30 that this worker did, the oldest first.
    #[schemars(with = "Option<Vec<schemas::EndedBackfill>>")]
    backfills: Option<Vec<EndedBackfill>>,
}

/// How far a revalidation is.
#[derive(Serialize, JsonSchema)]
struct RevalidationState {
    done: u64,
    /// Entries in Redis when it began.
    total: u64,
}

/// A dataset with what it is made of.
#[derive(Serialize, JsonSchema)]
pub(super) struct WholeDataset {
    #[serde(flatten)]
    overview: DatasetOverview,
    #[schemars(with = "schemas::RowsWithoutEntry")]
    without_entry: RefusedRows,
    #[serde(flatten)]
    made_of: MadeOf,
}

/// What a dataset is made of.
#[derive(Serialize, JsonSchema)]
struct MadeOf {
    query: String,
    tags: Vec<String>,
    /// The tables that its rules watch.
    watch: Vec<String>,
    format: &'static str,
    scope: &'static str,
    ttl_ms: u64,
    settings: DatasetSettings,
    /// Where each setting comes from that can be given.
    origins: BTreeMap<&'static str, Origin>,
}

/// Settings of a dataset that are in effect; null: there is none.
#[derive(Serialize, JsonSchema)]
struct DatasetSettings {
    rows: &'static str,
    ttl_ms: u64,
    ttl_jitter: f64,
    ttl_column: Option<String>,
    max_stale_ms: u64,
    on_change: &'static str,
    on_miss: &'static str,
    feed: &'static str,
    /// The part of the lifetime that is left when an entry is loaded again.
    refresh_ahead: Option<f64>,
    compression: Option<&'static str>,
    warm_schedule: Option<String>,
    negative_ttl_ms: Option<u64>,
    revalidation_rate: Option<u64>,
    batch: usize,
    /// The hash of its definition.
    definition: String,
    write: Option<String>,
    warm_on_start: Option<bool>,
    warm_limit: Option<u64>,
    warm_order_by: Option<String>,
    warm_rate: Option<u64>,
}

pub(super) async fn datasets(State(shared): State<Shared>) -> Response {
    let facts = shared.health().facts();
    let metadata = metadata(&shared).await;
    let catalog = shared.engine().catalog.iter();
    let datasets = catalog.map(|dataset| overview(&shared, dataset, &facts, metadata.as_ref())).collect();
    axum::Json(Datasets { datasets }).into_response()
}

pub(super) async fn dataset(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    let Some(dataset) = shared.engine().catalog.get(&name) else { return unknown(&name) };
    let facts = shared.health().facts();
    let metadata = metadata(&shared).await;
    let history = shared.engine().history.as_ref();
    let whole = WholeDataset {
        overview: overview(&shared, dataset, &facts, metadata.as_ref()),
        without_entry: history.map(|history| history.refused_rows(&name)).unwrap_or_default(),
        made_of: made_of(&shared, dataset),
    };
    axum::Json(whole).into_response()
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
    in_words(StatusCode::ACCEPTED, what)
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
) -> DatasetOverview {
    let name = dataset.name();
    let (state, reason) = state(name, facts);
    let progress = metadata.and_then(|metadata| metadata.progress.get(name));
    let backfilled = metadata.and_then(|metadata| metadata.backfilled.get(name));
    let history = shared.engine().history.as_ref();
    DatasetOverview {
        name: name.to_owned(),
        key: dataset.settings.key.as_str().to_owned(),
        state,
        reason,
        progress: progress.map(|progress| RevalidationState { done: progress.done, total: progress.entries }),
        last_backfill_ms: backfilled.map(|backfilled| backfilled.began_ms),
        last_backfill_entries: shared.backfill_entries(name),
        rows_without_entry: history.map_or(0, |history| history.count_refused(name)),
        paused_since_ms: facts.paused.get(name).copied(),
        next_run_ms: dataset
            .settings
            .warm
            .as_ref()
            .and_then(|warm| next_fire(warm, Utc::now()))
            .and_then(|fire| u64::try_from(fire.timestamp_millis()).ok()),
        backfill: under_way(shared, name),
        age_ms: age_of(name, facts).and_then(|age| u64::try_from(age.as_millis()).ok()),
        backfills: history.map(|history| history.backfills(name)),
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
            in_words(StatusCode::OK, what)
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.told()),
    }
}

pub(super) async fn resume(State(shared): State<Shared>, Path(name): Path<String>) -> Response {
    match shared.engine().redis.resume(&name).await {
        Ok(was_paused) => {
            shared.tasks.epoch_keeper.now();
            let what = format!("{name} {}", if was_paused { "goes on" } else { "was not paused" });
            in_words(StatusCode::OK, what)
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.told()),
    }
}

/// The settings as they are called here and in the file.
const PATHS: [(&str, &str); 19] = [
    ("rows", "rows"),
    ("ttl_ms", "ttl"),
    ("ttl_jitter", "ttl_jitter"),
    ("ttl_column", "ttl_column"),
    ("max_stale_ms", "max_stale"),
    ("on_change", "on_change"),
    ("on_miss", "on_miss"),
    ("feed", "feed"),
    ("refresh_ahead", "refresh.ahead"),
    ("compression", "compression"),
    ("warm_schedule", "warm.schedule"),
    ("negative_ttl_ms", "negative_ttl"),
    ("revalidation_rate", "revalidation_rate"),
    ("batch", "batch"),
    ("write", "write.statement"),
    ("warm_on_start", "warm.on_start"),
    ("warm_limit", "warm.limit"),
    ("warm_order_by", "warm.order_by"),
    ("warm_rate", "warm.rate"),
];

/// How it is configured, as it is in effect.
fn made_of(shared: &Shared, dataset: &Dataset) -> MadeOf {
    let source = &shared.tasks.config.source;
    let origin = |setting| origin_of_dataset(source, dataset.name(), setting);
    let settings = &dataset.settings;
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let warm = settings.warm.as_ref();
    MadeOf {
        query: settings.query.clone(),
        tags: settings.tags.iter().map(ToString::to_string).collect(),
        watch: settings.watch.iter().map(|rule| rule.table.to_string()).collect(),
        format: settings.format.name(),
        scope: if settings.scope == Scope::All { "all" } else { "cached" },
        ttl_ms: millis(settings.ttl),
        settings: DatasetSettings {
            rows: if matches!(settings.rows, Rows::One) { "one" } else { "many" },
            ttl_ms: millis(settings.ttl),
            ttl_jitter: settings.ttl_jitter,
            ttl_column: settings.ttl_column.clone(),
            max_stale_ms: millis(settings.max_stale),
            on_change: if settings.on_change == OnChange::Delete { "delete" } else { "refresh" },
            on_miss: if settings.on_miss == OnMiss::Load { "load" } else { "ignore" },
            feed: if settings.feed == FeedNeed::Required { "required" } else { "wanted" },
            refresh_ahead: settings.refresh_ahead,
            compression: settings.compression.as_ref().map(|one| match one.codec {
                Codec::Zstd => "zstd",
                Codec::Lz4 => "lz4",
            }),
            warm_schedule: warm.and_then(|warm| Some(warm.schedule.as_ref()?.expression.clone())),
            negative_ttl_ms: settings.negative_ttl.map(millis),
            revalidation_rate: settings.revalidation_rate,
            batch: settings.batch,
            definition: dataset.definition.clone(),
            write: settings.write.clone(),
            warm_on_start: warm.map(|warm| warm.on_start),
            warm_limit: warm.and_then(|warm| warm.limit),
            warm_order_by: warm.and_then(|warm| warm.order_by.clone()),
            warm_rate: warm.and_then(|warm| warm.rate),
        },
        origins: PATHS.into_iter().map(|(name, path)| (name, origin(path))).collect(),
    }
}
