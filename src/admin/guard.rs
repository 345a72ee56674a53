//! What stands before every path, in this one place: the name that was asked for, who asks and what they may, where a browser's
//! request comes from, and how much is asked at a time. A path that is added needs to do nothing for it.
//!
//! A method other than GET and HEAD is an action. `/livez` is open to anybody, and nothing holds it up; so is `/readyz`, whose
//! reasons only who may read is told.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::action_log;
use super::caller::{Caller, Peer};
use super::connections::Connections;
use super::files::Files;
use super::held::hold;
use super::leave::Leave;
use super::origin::{is_own_host, is_same_origin};
use super::refusal::{busy, refuse};
use super::tokens::{Presented, Role};
use crate::actions::Actions;
use cachekeeper_engine::metrics::{ByReason, Metrics};

/// The longest body of an action, and how long it may take to come.
const BODY_MAX: usize = 64 * 1024;
const BODY_WITHIN: Duration = Duration::from_secs(10);
/// Costly requests that are answered at a time, and how long others wait for their turn.
const COSTLY_MAX: usize = 8;
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// The one path whose answer has no end.
pub(super) const LIVE: &str = "/api/v1/live";

/// What is asked before a path.
#[derive(Clone)]
pub(super) struct Guard {
    pub files: Arc<Files>,
    pub connections: Arc<Connections>,
    pub metrics: Arc<Metrics>,
    pub actions: Actions,
}

/// Why a request goes no further.
struct Refusal {
    /// For the metric.
    reason: &'static str,
    code: StatusCode,
    error: &'static str,
}

fn no(reason: &'static str, code: StatusCode, error: &'static str) -> Refusal {
    Refusal { reason, code, error }
}

impl Refusal {
    fn response(&self) -> Response {
        if self.code == StatusCode::SERVICE_UNAVAILABLE {
            return busy(self.error);
        }
        let mut response = refuse(self.code, self.error);
        if self.code == StatusCode::UNAUTHORIZED {
            for way in ["Basic realm=\"cachekeeper\", charset=\"UTF-8\"", "Bearer realm=\"cachekeeper\""] {
                response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_static(way));
            }
        }
        response
    }
}

/// Lets a request through to its path, or says why not.
pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let result = guard.pass(request, next).await;
    let mut response = result.unwrap_or_else(|refusal| {
        guard.metrics.admin_refusals.get_or_create(&ByReason::new(refusal.reason)).inc();
        refusal.response()
    });
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    response
}

impl Guard {
    async fn pass(&self, mut request: Request, next: Next) -> Result<Response, Refusal> {
        let is_action = !matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        if matches!(path, "/livez" | "/healthz") && !is_action {
            return Ok(next.run(request).await);
        }
        let is_readiness = path == "/readyz" && !is_action;
        self.check_host(&request)?;
        let caller = match self.caller(&request) {
            Some(caller) => caller,
            None if is_readiness => return Ok(next.run(request).await),
            None => return Err(unknown(&request, is_action)),
        };
        request.extensions_mut().insert(caller.clone());
        if is_readiness {
            return Ok(next.run(request).await);
        }
        let stream = if request.uri().path() == LIVE { Some(self.let_stay(&mut request)?) } else { None };
        let Some(permit) = self.connections.request() else {
            let error = "too many requests at a time; raise [admin] max_connections";
            return Err(no("busy", StatusCode::SERVICE_UNAVAILABLE, error));
        };
        let response =
            if is_action { self.act(request, next, &caller).await } else { Ok(next.run(request).await) };
        Ok(hold(response?, (permit, stream)))
    }

    /// A place for an answer without an end.
    fn let_stay(&self, request: &mut Request) -> Result<OwnedSemaphorePermit, Refusal> {
        let token = Presented::of(request.headers()).map(|presented| presented.token);
        request.extensions_mut().insert(Leave::new(&self.files, token));
        let error = "too many follow what happens: at most half of [admin] max_connections";
        self.connections.stream().ok_or(no("busy", StatusCode::SERVICE_UNAVAILABLE, error))
    }

    fn check_host(&self, request: &Request) -> Result<(), Refusal> {
        if is_own_host(request.uri(), request.headers(), &self.files.admin.hosts) {
            return Ok(());
        }
        let error = "this name is not one of the admin listener's: ask by address or localhost, or add the name to [admin] hosts";
        Err(no("host", StatusCode::MISDIRECTED_REQUEST, error))
    }

    /// None: a token is asked for, and this request has no right one.
    fn caller(&self, request: &Request) -> Option<Caller> {
        let presented = Presented::of(request.headers());
        let role = if self.files.admin.asks_for_token() {
            self.files.tokens().role(&presented.as_ref()?.token)?
        } else {
            Role::Act
        };
        let user = presented.and_then(|presented| presented.user);
        Some(Caller { role, user, peer: peer(request) })
    }

    async fn act(&self, request: Request, next: Next, caller: &Caller) -> Result<Response, Refusal> {
        let action = action_log::name(request.method(), request.uri());
        let result = match self.check_action(request.headers(), caller) {
            Ok(()) => with_body(request).await,
            Err(refusal) => Err(refusal),
        };
        let result = match result {
            Ok(request) => Ok(next.run(request).await),
            Err(refusal) => Err(refusal),
        };
        action_log::log(&self.actions, caller, &action, result.as_ref().map_err(|refusal| refusal.code));
        result
    }

    fn check_action(&self, headers: &HeaderMap, caller: &Caller) -> Result<(), Refusal> {
        if self.files.admin.is_read_only {
            let error = "nothing can be done over this listener: [admin] read_only = true";
            return Err(no("read_only", StatusCode::FORBIDDEN, error));
        }
        if caller.role != Role::Act {
            let error = "this token may only read; the one of [admin] token_file may act";
            return Err(no("role", StatusCode::FORBIDDEN, error));
        }
        if !is_same_origin(headers) {
            let error = "a page of another origin may not act here";
            return Err(no("origin", StatusCode::FORBIDDEN, error));
        }
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let error = "an action needs the header `Content-Type: application/json`, also without a body";
            return Err(no("content_type", StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
        }
        Ok(())
    }
}

/// The request with its whole body, which is bounded in size and time.
async fn with_body(request: Request) -> Result<Request, Refusal> {
    let (parts, body) = request.into_parts();
    match timeout(BODY_WITHIN, to_bytes(body, BODY_MAX)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Ok(Err(_too_long_or_broken_off)) => {
            Err(no("body", StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 64 KiB, or broke off"))
        }
        Err(_elapsed) => Err(no("body", StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

fn unknown(request: &Request, is_action: bool) -> Refusal {
    if is_action {
        let action = action_log::name(request.method(), request.uri());
        action_log::log_stranger(peer(request).map(|peer| peer.to_string()), &action);
    }
    let error = "a token is needed: `Authorization: Bearer …` with the one of [admin] token_file or read_token_file, or as the password of any user";
    no("token", StatusCode::UNAUTHORIZED, error)
}

fn peer(request: &Request) -> Option<std::net::SocketAddr> {
    request.extensions().get::<Peer>().map(|Peer(peer)| *peer)
}

/// The turns of costly requests, which are answered a few at a time.
pub(super) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(COSTLY_MAX))
}

/// For a path that costs the worker or its servers much: it waits for its turn.
pub(super) async fn in_turn(State(turns): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match timeout(TURN_WITHIN, turns.acquire()).await {
        Ok(Ok(_turn)) => next.run(request).await,
        Ok(Err(_)) | Err(_) => busy("too many costly requests at a time"),
    }
}
