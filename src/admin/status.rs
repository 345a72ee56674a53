//! What the running worker knows of its datasets.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::shared::Shared;
use super::{schemas, watermark};
use crate::actors::context::FollowedShard;
use cachekeeper_engine::stores::redis::Watermark;

/// What the running worker knows of its datasets.
#[derive(Serialize, JsonSchema)]
pub(super) struct Status {
    ready: bool,
    /// Why not; empty: it is ready.
    reasons: Vec<String>,
    epoch: Option<String>,
    datasets: Vec<DatasetStatus>,
    /// On a cluster that of all shards together.
    #[schemars(with = "Option<schemas::Watermark>")]
    watermark: Option<Watermark>,
    /// On a cluster, its shards as this worker follows them.
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<Vec<ShardStatus>>,
}

/// What it knows of one shard.
#[derive(Serialize, JsonSchema)]
struct ShardStatus {
    /// Its number.
    shard: u32,
    /// Host and port of its master.
    address: String,
    /// The cluster slots that the master serves, as ranges.
    serves: String,
    epoch: Option<String>,
    /// Datasets whose entries are being revalidated there, each with why.
    pending: BTreeMap<String, String>,
    #[schemars(with = "Option<schemas::Watermark>")]
    watermark: Option<Watermark>,
}

fn of_shard(shard: &FollowedShard) -> ShardStatus {
    let (placed, facts) = (&shard.placed, shard.tasks.health.facts());
    ShardStatus {
        shard: placed.number,
        address: format!("{}:{}", placed.node.address.0, placed.node.address.1),
        serves: placed.node.serves.to_string(),
        epoch: facts.epoch.clone(),
        watermark: facts.watermark.map(|(watermark, _)| watermark),
        pending: facts.pending,
    }
}

/// What it knows of one.
#[derive(Serialize, JsonSchema)]
struct DatasetStatus {
    name: String,
    /// The template of its keys.
    key: String,
    /// The hash of its definition.
    definition: String,
    /// Why it is being revalidated; null: it is not.
    pending: Option<String>,
    /// Why its changes may be missed; null: they are captured.
    not_covered: Option<String>,
    /// Its first backfill since the start has ended.
    warmed: bool,
    /// Why it cannot work; null: it can.
    broken: Option<String>,
}

pub(super) async fn status(State(shared): State<Shared>) -> Response {
    let (watermark, shards) = match &shared.tasks.of_cluster {
        Some(of) => {
            let shards = of.shards.all();
            (watermark::least(of).await.ok().flatten(), Some(shards.values().map(of_shard).collect()))
        }
        None => (shared.health().facts().watermark.map(|(watermark, _)| watermark), None),
    };
    let facts = shared.health().all_facts();
    let reasons = shared.health().reasons();
    let datasets = shared.engine().catalog.iter().map(|dataset| {
        let name = dataset.name();
        DatasetStatus {
            name: name.to_owned(),
            key: dataset.settings.key.as_str().to_owned(),
            definition: dataset.definition.clone(),
            pending: facts.pending.get(name).cloned(),
            not_covered: facts.uncovered.get(name).or(facts.renamed.get(name)).cloned(),
            warmed: !facts.not_warmed.contains(name),
            broken: facts.broken.get(name).cloned(),
        }
    });
    let body = Status {
        ready: reasons.is_empty(),
        datasets: datasets.collect(),
        reasons,
        epoch: facts.epoch.clone(),
        watermark,
        shards,
    };
    axum::Json(body).into_response()
}
