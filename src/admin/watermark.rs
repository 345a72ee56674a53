//! Whether what a token says is in Redis: read your own writes, for programs without the library.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use tokio::time::Instant;

use super::asked;
use super::refusal::refuse;
use super::schemas;
use super::shared::Shared;
use crate::actors::context::OfCluster;
use cachekeeper_engine::error::chain;
use cachekeeper_engine::stores::redis::{CacheError, Watermark};
use cachekeeper_engine::tokens::{self, WaitError};
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::token::Token;
use cachekeeper_protocol::units::parse_duration;

/// The watermark, and whether it is behind the token.
#[derive(Serialize, JsonSchema)]
pub(super) struct Reached {
    #[schemars(with = "Option<schemas::Watermark>")]
    watermark: Option<Watermark>,
    /// What the token says is in Redis; null: no token was asked about.
    fresh: Option<bool>,
}

/// `?token=…` (of `select cachekeeper.token()`), `&dataset=…`, `&wait=500ms`.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Of `select cachekeeper.token()`
    token: Option<String>,
    /// Whether it is so for this dataset
    dataset: Option<String>,
    /// How long to wait for it, such as 500ms; 30 s at most
    wait: Option<String>,
}

/// Nobody waits longer than this for one answer.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Between two looks at the watermarks of all shards, for who waits.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The same on a cluster: of all shards together. What it does not cover it does not hold for.
async fn of_all(of: &OfCluster, token: Option<&Token>, dataset: Option<&str>, wait: Duration) -> Response {
    let until = Instant::now() + wait;
    loop {
        let watermark = match least(of).await {
            Ok(watermark) => watermark,
            Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, error.told()),
        };
        let covers_all = watermark.as_ref().and_then(|watermark| watermark.covers.as_ref());
        let covers_all = covers_all.is_some_and(|covers| *covers == ClusterSlotSet::all());
        let satisfies = |token| covers_all && tokens::satisfies(watermark.as_ref(), token, dataset);
        let fresh = token.map(satisfies);
        if fresh != Some(false) || until <= Instant::now() {
            return axum::Json(Reached { watermark, fresh }).into_response();
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What all shards together are at least as fresh as.
pub(super) async fn least(of: &OfCluster) -> Result<Option<Watermark>, CacheError> {
    let map = of.cluster.look().await?.map.clone();
    let shards: Vec<_> = of.shards.all().into_values().map(|shard| shard.placed).collect();
    of.cluster.watermark(&map, &shards).await
}

pub(super) async fn watermark(
    State(shared): State<Shared>,
    asked::Asked(asked): asked::Asked<Asked>,
) -> Response {
    let token = match asked.token.as_deref().map(str::parse::<Token>).transpose() {
        Ok(token) => token,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let wait = match asked.wait.as_deref().map(parse_duration).transpose() {
        Ok(wait) => wait.unwrap_or_default().min(WAIT_MAX),
        Err(error) => return refuse(StatusCode::BAD_REQUEST, format!("wait: {error}")),
    };
    if let Some(name) = asked.dataset.as_deref()
        && shared.engine().catalog.get(name).is_none()
    {
        return refuse(StatusCode::NOT_FOUND, format!("no dataset is named {name}"));
    }
    if let Some(of_cluster) = &shared.tasks.of_cluster {
        return of_all(of_cluster, token.as_ref(), asked.dataset.as_deref(), wait).await;
    }
    let found = match &token {
        Some(token) => tokens::wait(shared.engine(), token, asked.dataset.as_deref(), wait).await,
        None => {
            let watermark = shared.engine().redis.watermark().await;
            watermark.map(|watermark| (watermark, false)).map_err(|error| WaitError::Flow(error.into()))
        }
    };
    match found {
        Ok((watermark, is_fresh)) => {
            axum::Json(Reached { watermark, fresh: token.as_ref().map(|_| is_fresh) }).into_response()
        }
        Err(error @ WaitError::TooMany) => refuse(StatusCode::TOO_MANY_REQUESTS, error.to_string()),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, chain(&error)),
    }
}
