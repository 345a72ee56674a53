//! What the listener of a worker on a Redis Cluster serves: health, numbers, what happens to entries, the watermark of all shards, and
//! orders to the process. The rest asks one Redis, and is refused in one sentence.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;

use super::refusal::refuse;

const SERVED: [&str; 15] = [
    "/livez",
    "/healthz",
    "/readyz",
    "/metrics",
    "/api/v1/status",
    "/api/v1/watermark",
    "/api/v1/settings",
    "/api/v1/actions",
    "/api/v1/machine",
    "/api/v1/touches",
    "/api/v1/live",
    "/api/v1/reload",
    "/api/v1/drain",
    "/api/v1/log-level",
    "/api/v1/openapi.json",
];

pub(super) async fn only_what_works(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if SERVED.contains(&path) {
        return next.run(request).await;
    }
    let error = format!(
        "{path} does not work on a Redis Cluster yet: docs/cluster.md lists what does, and `cachekeeper status` shows the shards"
    );
    refuse(StatusCode::NOT_IMPLEMENTED, error)
}
