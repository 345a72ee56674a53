//! The admin listener: the page, the API, health, metrics. Which paths there are stands here; what they answer, and what stands before them
//! all ([`guard`]), in the files below.

mod action_log;
mod asked;
mod attention;
mod backfill;
mod caller;
mod connections;
mod control;
mod dataset_state;
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
mod on_cluster;
mod origin;
mod page;
mod problem;
mod refusal;
mod routes;
mod schemas;
mod server;
mod setting;
mod shared;
mod status;
mod tls;
mod tokens;
mod touches;
mod watermark;
mod write_limit;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;
use tracing::warn;

use self::action_log::InWords;
use self::attention::Since;
use self::connections::Connections;
use self::files::Files;
use self::guard::Guard;
use self::live::Live;
use self::refusal::refuse;
use self::routes::{Operation, Routes};
use self::shared::Shared;
use crate::actors::clock::now_ms;
use crate::actors::context::TaskContext;
use crate::control::Reloaded;
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
    let guard = Guard {
        files: Arc::clone(&files),
        connections: Arc::clone(&connections),
        metrics,
        actions: tasks.control.actions.clone(),
    };
    let since = Since::default();
    let live = Arc::new(Live::new(tasks.engine.history.clone()));
    let shared =
        Shared { tasks: tasks.clone(), started_ms: now_ms(), since: since.clone(), live: Arc::clone(&live) };
    let router = router(shared.clone(), guard);
    let router = match shared.tasks.of_cluster {
        Some(_) => router.layer(from_fn(on_cluster::only_what_works)),
        None => router,
    };
    tokio::select! {
        () = live.run() => Ok(()),
        ended = server::accept(listener, router, Arc::clone(&files), connections, &tasks.leaving.begun) => ended,
        () = files.follow() => Ok(()),
        () = since.follow(tasks.clone()) => Ok(()),
    }
}

/// Everything that is served: the page and the probes, and the API.
fn router(shared: Shared, guard: Guard) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .route("/livez", get(health::livez))
        .route("/healthz", get(health::livez))
        .route("/readyz", get(health::readyz))
        .merge(
            Router::new()
                .route("/metrics", get(health::metrics))
                .route_layer(from_fn_with_state(guard::turns(), guard::in_turn)),
        )
        .merge(routes().with_document())
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(guard, guard::guard))
        .with_state(shared)
}

async fn nowhere(uri: Uri) -> Response {
    refuse(
        StatusCode::NOT_FOUND,
        format!("there is no {}; /api/v1/openapi.json says what there is", uri.path()),
    )
}

async fn other_method(method: Method, uri: Uri) -> Response {
    let error = format!("{} takes no {method}: /api/v1/openapi.json says what it takes", uri.path());
    refuse(StatusCode::METHOD_NOT_ALLOWED, error)
}

/// The description of the API: `OpenAPI` 3.1.
#[must_use]
pub fn openapi() -> serde_json::Value {
    routes().document()
}

/// The paths of the API. One that is added costs much if it asks the servers or renders much: then it belongs among the costly ones of its
/// kind. What only renders never waits for a server that others have asked.
fn routes() -> Routes {
    use Operation as O;
    let rendering = Routes::default()
        .add(
            O::read::<now::Now>("/api/v1/now", "How fresh the whole is, what needs somebody, totals"),
            now::now,
        )
        .add(
            O::read::<touches::Touches<'_>>("/api/v1/touches", "What happened to entries")
                .asks::<filter::Wanted>(),
            touches::touches,
        )
        .add(O::read::<machine::Machine>("/api/v1/machine", "Tasks, servers, epoch"), machine::machine)
        .add(
            O::read::<control::Settings>("/api/v1/settings", "The settings, and how the last reload ended"),
            control::settings,
        )
        .add(
            O::read::<control::Done>("/api/v1/actions", "Who did what over this listener"),
            control::actions,
        );
    let plain = Routes::default()
        .add(
            O::read::<watermark::Reached>("/api/v1/watermark", "Whether a token's write is in Redis")
                .asks::<watermark::Asked>(),
            watermark::watermark,
        )
        .add(
            O::read::<touches::Event>(guard::LIVE, "What happens to entries, as server-sent events")
                .asks::<filter::Wanted>()
                .streams(),
            touches::live,
        )
        .merge(orders());
    rendering.in_turn().merge(asking().in_turn()).merge(plain)
}

/// What is asked of the servers.
fn asking() -> Routes {
    use Operation as O;
    Routes::default()
        .add(
            O::read::<status::Status>("/api/v1/status", "What the worker knows of its datasets"),
            status::status,
        )
        .add(
            O::read::<datasets::Datasets>("/api/v1/datasets", "The state of each dataset"),
            datasets::datasets,
        )
        .add(
            O::read::<datasets::WholeDataset>("/api/v1/datasets/{name}", "A dataset, and what it is made of"),
            datasets::dataset,
        )
        .add(
            O::read::<look::Relations>("/api/v1/datasets/{name}/relations", "What it reads and watches"),
            look::relations,
        )
        .add(
            O::read::<schemas::Lifetimes>(
                "/api/v1/datasets/{name}/lifetimes",
                "What is left to some entries",
            ),
            look::lifetimes,
        )
        .add(
            O::read::<look::FirstRows>(
                "/api/v1/datasets/{name}/rows",
                "Its first rows as they would be stored",
            ),
            look::rows,
        )
        .add(
            O::read::<schemas::Sample>("/api/v1/datasets/{name}/size", "What some of its entries take"),
            look::size,
        )
        .add(
            O::read::<leases::Leases>("/api/v1/leases", "Which worker does what only one may do"),
            leases::leases,
        )
        .add(
            O::read::<dead_letters::DeadLetters>("/api/v1/dead-letters", "Write commands that were rejected"),
            dead_letters::list,
        )
        .add(
            O::act::<dead_letters::ReplayDone>(
                "/api/v1/dead-letters/replay",
                "Put them back into the stream",
            )
            .takes::<dead_letters::Letters>(),
            dead_letters::replay,
        )
        .add(
            O::act::<dead_letters::DiscardDone>("/api/v1/dead-letters/discard", "Discard them for good")
                .takes::<dead_letters::Letters>(),
            dead_letters::discard,
        )
        .add(
            O::read::<keys::Explained>("/api/v1/explain", "Why a key has its value").asks::<keys::OneKey>(),
            keys::explain,
        )
        .add(
            O::act::<keys::KeysDone>("/api/v1/keys/refresh", "Load keys again").takes::<keys::Keys>(),
            keys::refresh,
        )
        .add(
            O::act::<keys::KeysDone>("/api/v1/keys/delete", "Delete keys").takes::<keys::Keys>(),
            keys::delete,
        )
}

/// What the worker is told to do.
fn orders() -> Routes {
    use Operation as O;
    Routes::default()
        .add(
            O::act::<InWords>("/api/v1/datasets/{name}/warm", "Have a backfill run").accepted(),
            datasets::warm,
        )
        .add(
            O::act::<InWords>("/api/v1/datasets/{name}/cancel", "Cancel its backfill that is under way")
                .accepted(),
            backfill::cancel,
        )
        .add(O::act::<InWords>("/api/v1/datasets/{name}/pause", "Pause it, for all workers"), datasets::pause)
        .add(O::act::<InWords>("/api/v1/datasets/{name}/resume", "Go on with it"), datasets::resume)
        .add(
            O::act::<Reloaded>("/api/v1/reload", "Load the configuration again")
                .asks::<control::HowToReload>(),
            control::reload,
        )
        .add(O::act::<InWords>("/api/v1/drain", "Take no more work").accepted(), control::drain)
        .add(
            O::act::<InWords>("/api/v1/log-level", "Log at another level").takes::<control::Level>(),
            control::log_level,
        )
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
