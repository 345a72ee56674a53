//! The workers of the namespace that live, and which of them does what only one may do.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use schemars::JsonSchema;
use serde::Serialize;

use super::refusal::refuse;
use super::shared::Shared;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::stores::redis::{CacheError, LeaseAttempt, LivingWorker};

/// The workers that live, and the leases that are held.
#[derive(Serialize, JsonSchema)]
pub(super) struct Leases {
    workers: Vec<Living>,
    leases: Vec<Held>,
}

/// A worker that lives.
#[derive(Serialize, JsonSchema)]
struct Living {
    name: String,
    /// Whether it is the one that was asked.
    is_own: bool,
    /// For how long it has been registered without a gap, in milliseconds.
    registered_ms: u64,
    /// The datasets of its configuration.
    datasets: Vec<String>,
}

/// A lease that is held.
#[derive(Serialize, JsonSchema)]
struct Held {
    /// What only its holder does.
    name: String,
    /// The worker that holds it.
    owner: String,
    /// Whether that is the worker that was asked.
    is_own: bool,
    /// For how much longer, unless it is renewed, in milliseconds.
    left_ms: u64,
}

pub(super) async fn leases(State(shared): State<Shared>) -> Response {
    let fixed = [LeaseName::FEED, LeaseName::COMMANDS, LeaseName::REVALIDATION, LeaseName::AUDIT];
    let datasets = shared.engine().catalog.iter();
    let of_datasets =
        datasets.flat_map(|one| [LeaseName::backfill(one.name()), LeaseName::revalidation(one.name())]);
    let held = fixed.into_iter().chain(of_datasets).map(|lease| held(&shared, lease.name.into_owned()));
    match tokio::try_join!(shared.engine().redis.living_workers(), try_join_all(held)) {
        Ok((workers, held)) => {
            let living = |LivingWorker { name, registered_ms, datasets }| {
                let is_own = *name == *shared.tasks.owner;
                Living { name, is_own, registered_ms, datasets }
            };
            let workers = workers.into_iter().map(living).collect();
            axum::Json(Leases { workers, leases: held.into_iter().flatten().collect() }).into_response()
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.told()),
    }
}

async fn held(shared: &Shared, name: String) -> Result<Option<Held>, CacheError> {
    let holder = shared.engine().redis.lock_holder(&[name]).await?;
    Ok(holder.and_then(|holder| match holder {
        LeaseAttempt::Held { name, owner, left } => {
            let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let is_own = *owner == *shared.tasks.owner;
            Some(Held { name, owner, is_own, left_ms })
        }
        LeaseAttempt::Granted(_) => None,
    }))
}
