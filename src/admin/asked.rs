//! What a request says in its query or its body. What cannot be read is answered as every refusal is.

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use super::refusal::refuse;

/// What the query says.
pub(super) struct Asked<T>(pub T);

/// What the body says, as JSON.
pub(super) struct Told<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        // A key that is no text would be read as another one.
        if !is_text(parts.uri.query().unwrap_or_default()) {
            return Err(refuse(StatusCode::BAD_REQUEST, "the query is no UTF-8"));
        }
        match Query::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(rejection) => Err(refuse(rejection.status(), rejection.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Told<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(told)) => Ok(Self(told)),
            Err(rejection) => Err(refuse(rejection.status(), rejection.body_text()).into_response()),
        }
    }
}

/// Whether a query is UTF-8 once what is written in hexadecimal is read.
fn is_text(query: &str) -> bool {
    let mut plain = Vec::with_capacity(query.len());
    let mut bytes = query.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let mut digit = || ahead.next().and_then(|digit| char::from(digit).to_digit(16));
        match (byte, digit(), digit()) {
            (b'%', Some(high), Some(low)) => {
                plain.extend(u8::try_from(high * 16 + low));
                bytes = ahead;
            }
            _ => plain.push(byte),
        }
    }
    String::from_utf8(plain).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_hexadecimal_must_be_text_too() {
        for text in ["", "key=a", "key=%c3%bc", "key=ü%25ff", "key=%", "key=%zz"] {
            assert!(is_text(text), "{text}");
        }
        for other in ["key=%ff", "%c3", "key=a%C3b"] {
            assert!(!is_text(other), "{other}");
        }
    }
}
