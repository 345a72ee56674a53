//! How the listener says no: a code, and a reason that says what to do.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

pub(super) fn refuse(code: StatusCode, error: impl Into<String>) -> Response {
    let error: String = error.into();
    (code, axum::Json(json!({ "error": error }))).into_response()
}

/// There is too much to do at the moment.
pub(super) fn busy(error: &str) -> Response {
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}
