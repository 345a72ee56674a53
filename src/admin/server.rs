//! Connections of the listener: TLS where it is asked for, HTTP/1 on them, and a limit for everything that a peer can leave undone.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::caller::Peer;
use super::connections::{Connection, Connections};
use super::files::Files;
use super::held::hold;
use super::write_limit::WriteLimited;
use cachekeeper_engine::log_limit;

/// How long a connection may take for a request's headers, the pause since the last answer included, and for the greeting of TLS.
const HEADERS_WITHIN: Duration = Duration::from_secs(20);
/// The longest headers, and what is read ahead of a body.
const BUFFER_MAX: usize = 32 * 1024;
/// How long answers may take once the listener is left to another worker.
const ANSWERED_WITHIN: Duration = Duration::from_millis(500);
/// How long a connection may take for its first request where the listener is left.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_millis(500);
/// Between two attempts to accept, where the process has no file left.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the listener is left to another worker. Connections end with it.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    files: Arc<Files>,
    connections: Arc<Connections>,
    leaving: &CancellationToken,
) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // What has ended is forgotten.
            Some(_) = tasks.join_next() => continue,
            () = leaving.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                settle(error, &connections)?;
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(connection) = connections.enter() else {
            let what = "the admin listener turned a connection away: all of them are busy";
            if let Some(times) = log_limit::due(what, "", 1) {
                warn!(times, "{what}");
            }
            continue;
        };
        let (router, files, leaving) = (router.clone(), Arc::clone(&files), leaving.clone());
        tasks.spawn(async move {
            let connection = Arc::new(connection);
            tokio::select! {
                served = serve(stream, peer, router, (&files, &connection, &leaving)) => {
                    if let Err(error) = served {
                        debug!(%peer, error, "a connection of the admin listener broke off");
                    }
                }
                () = connection.closed() => {}
            }
        });
    }
    let ended = async { while tasks.join_next().await.is_some() {} };
    drop(timeout(ANSWERED_WITHIN, ended).await);
    Ok(())
}

/// What goes on after an error of one connection, or for want of files; anything else ends the listener.
fn settle(error: io::Error, connections: &Connections) -> io::Result<()> {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        return Ok(());
    }
    // EMFILE and ENFILE.
    if !matches!(error.raw_os_error(), Some(23 | 24)) {
        return Err(error);
    }
    connections.close_oldest();
    let what = "the admin listener has no file left for a connection; raise the limit of open files";
    if let Some(times) = log_limit::due(what, "", 1) {
        warn!(%error, times, "{what}");
    }
    Ok(())
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    (files, connection, leaving): (&Files, &Arc<Connection>, &CancellationToken),
) -> Result<(), String> {
    // Answers are small; waiting to fill a packet helps nobody.
    drop(stream.set_nodelay(true));
    let stream = WriteLimited::new(stream);
    if files.admin.tls.is_none() {
        return speak(stream, peer, router, (connection, leaving)).await;
    }
    let Some(config) = files.tls() else {
        return Err("there is no certificate yet".to_owned());
    };
    let greeting = timeout(HEADERS_WITHIN, TlsAcceptor::from(config).accept(stream)).await;
    let stream = greeting.map_err(|_elapsed| "no greeting of TLS in time")?;
    speak(stream.map_err(|error| error.to_string())?, peer, router, (connection, leaving)).await
}

async fn speak<S>(
    stream: S,
    peer: SocketAddr,
    router: Router,
    (connection, leaving): (&Arc<Connection>, &CancellationToken),
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let asked = CancellationToken::new();
    let service = service_fn(|mut request: Request<Incoming>| {
        asked.cancel();
        let (router, busy) = (router.clone(), connection.busy());
        request.extensions_mut().insert(Peer(peer));
        async move {
            let response = router.oneshot(request).await?;
            Ok::<_, Infallible>(hold(response, busy))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(BUFFER_MAX);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = leaving.cancelled() => {
            // One that was accepted just now would be closed before its first request is read.
            let first = timeout(FIRST_REQUEST_WITHIN, asked.cancelled());
            tokio::select! {
                served = serving.as_mut() => return served.map_err(|error| error.to_string()),
                _first = first => {}
            }
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    served.map_err(|error| error.to_string())
}
