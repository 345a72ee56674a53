//! The admin listener: the page, the API, health, metrics. Which paths there are stands here; what they answer, and what stands before them
//! all ([`guard`]), in the files below.

mod action_log;
mod asked;
mod attention;
mod caller;
mod connections;
mod control;
mod datasets;
mod dead_letters;
mod files;
mod filter;
mod guard;
mod health;
mod held;
mod keys;
mod leases;
mod leave;
mod live;
mod look;
mod machine;
mod now;
mod origin;
mod page;
mod problem;
mod refusal;
mod server;
mod shared;
mod status;
mod tls;
mod tokens;
mod touches;
mod watermark;
mod write_limit;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tracing::warn;

use self::attention::Since;
use self::connections::Connections;
use self::files::Files;
use self::guard::Guard;
use self::live::Live;
use self::shared::Shared;
use crate::actors::clock::now_ms;
use crate::actors::context::TaskContext;
use cachekeeper_config::Admin;
use cachekeeper_engine::process::open_files_limit;

pub use self::files::problems;
pub use self::problem::FileProblem;
pub(crate) use self::tls::certificates;

/// Serves until the task is aborted, or the listener is left to another worker: then what was asked is answered first.
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: TcpListener, tasks: &TaskContext) -> std::io::Result<()> {
    let admin = &tasks.config.admin;
    let metrics = Arc::clone(&tasks.engine.metrics);
    let connections = Connections::new(most_connections(admin), Arc::clone(&metrics));
    let files = Arc::new(Files::open(admin));
    let guard = Guard { files: Arc::clone(&files), connections: Arc::clone(&connections), metrics };
    let since = Since::default();
    let live = Arc::new(Live::new(tasks.engine.history.clone()));
    let shared =
        Shared { tasks: tasks.clone(), started_ms: now_ms(), since: since.clone(), live: Arc::clone(&live) };
    let router = router(shared, guard);
    tokio::select! {
        () = live.run() => Ok(()),
        ended = server::accept(listener, router, Arc::clone(&files), connections, &tasks.leaving.begun) => ended,
        () = files.follow() => Ok(()),
        () = since.follow(tasks.clone()) => Ok(()),
    }
}

/// A path that is added costs much if it asks the servers or renders much: then it belongs among the costly ones of its kind. What
/// only renders never waits for a server that others have asked.
fn router(shared: Shared, guard: Guard) -> Router {
    let rendering = Router::new()
        .route("/metrics", get(health::metrics))
        .route("/api/v1/now", get(now::now))
        .route("/api/v1/touches", get(touches::touches))
        .route("/api/v1/machine", get(machine::machine))
        .route("/api/v1/settings", get(control::settings))
        .route_layer(from_fn_with_state(guard::turns(), guard::in_turn));
    let asking = Router::new()
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/datasets", get(datasets::datasets))
        .route("/api/v1/datasets/{name}", get(datasets::dataset))
        .route("/api/v1/datasets/{name}/relations", get(look::relations))
        .route("/api/v1/datasets/{name}/lifetimes", get(look::lifetimes))
        .route("/api/v1/datasets/{name}/rows", get(look::rows))
        .route("/api/v1/leases", get(leases::leases))
        .route("/api/v1/dead-letters", get(dead_letters::list))
        .route("/api/v1/dead-letters/replay", post(dead_letters::replay))
        .route("/api/v1/dead-letters/discard", post(dead_letters::discard))
        .route("/api/v1/explain", get(keys::explain))
        .route("/api/v1/keys/refresh", post(keys::refresh))
        .route("/api/v1/keys/delete", post(keys::delete))
        .route_layer(from_fn_with_state(guard::turns(), guard::in_turn));
    Router::new()
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .route("/livez", get(health::livez))
        .route("/healthz", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/api/v1/watermark", get(watermark::watermark))
        .route(guard::LIVE, get(touches::live))
        .route("/api/v1/datasets/{name}/warm", post(datasets::warm))
        .route("/api/v1/reload", post(control::reload))
        .route("/api/v1/drain", post(control::drain))
        .route("/api/v1/log-level", post(control::log_level))
        .route("/api/v1/datasets/{name}/pause", post(datasets::pause))
        .route("/api/v1/datasets/{name}/resume", post(datasets::resume))
        .merge(rendering)
        .merge(asking)
        .layer(from_fn_with_state(guard, guard::guard))
        .with_state(shared)
}

/// As configured, but never so many that the process has no files left for its servers.
fn most_connections(admin: &Admin) -> usize {
    /// That of the file.
    const DEFAULT: usize = 512;
    let wanted = if admin.max_connections == 0 { DEFAULT } else { admin.max_connections };
    let Some(open_files) = open_files_limit() else { return wanted };
    let possible = open_files / 2;
    if possible < wanted {
        warn!(
            wanted,
            possible,
            open_files,
            "fewer connections to the admin listener than configured; raise the limit of open files"
        );
    }
    wanted.min(possible)
}
