//! The admin listener: health, metrics, status. Which paths there are stands here; what they answer, in the files below.

mod health;
mod shared;
mod status;
mod watermark;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use self::shared::Shared;
use crate::actors::health::Health;
use cachekeeper_engine::context::Context;

/// Serves until the task is aborted.
///
/// # Errors
/// When the socket fails.
pub async fn serve(listener: TcpListener, context: Context, health: Health) -> std::io::Result<()> {
    axum::serve(listener, router(Shared { context, health })).await
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/healthz", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/watermark", get(watermark::watermark))
        .with_state(shared)
}
