//! How the listener says no: a code, and a reason that says what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

/// Why not.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(super) struct WhyNot {
    /// Why, and what to do.
    error: String,
}

pub(super) fn refuse(code: StatusCode, error: impl Into<String>) -> Response {
    (code, axum::Json(WhyNot { error: error.into() })).into_response()
}

/// There is too much to do at the moment.
pub(super) fn busy(error: &str) -> Response {
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
