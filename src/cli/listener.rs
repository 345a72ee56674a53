//! Whether a worker could open its admin listener here. A worker waits for its address and works meanwhile, but nobody can ask it.

use std::io::{Error, ErrorKind};

use serde_json::Value;
use tokio::net::TcpListener;

use super::admin_client::get;
use cachekeeper_config::Config;
use cachekeeper_config::diagnostic::Diagnostic;

/// What keeps this machine from listening there; none: nothing, or the worker of this configuration listens there.
pub(super) async fn obstacle(config: &Config) -> Option<Diagnostic> {
    let listen = config.admin.listen.as_ref()?;
    // A wrong one is told by the file's check.
    let address: std::net::SocketAddr = listen.parse().ok()?;
    let error = TcpListener::bind(address).await.err()?;
    let (reason, help) = match error.kind() {
        ErrorKind::AddrInUse => (in_use(config).await?, "free the port, or choose another".to_owned()),
        ErrorKind::AddrNotAvailable => (
            format!("{} is no address of this machine", address.ip()),
            format!(
                "give one that it has, such as \"127.0.0.1:{}\"; where the worker runs on another machine, check there",
                address.port()
            ),
        ),
        ErrorKind::PermissionDenied => (
            format!("this user may not listen on port {}", address.port()),
            "choose one above 1023, or give the right (CAP_NET_BIND_SERVICE)".to_owned(),
        ),
        _ => (error.to_string(), "choose another address".to_owned()),
    };
    let message = format!("the admin listener could not open on {listen}: {reason}");
    Some(config.source.problem("admin.listen", message, help).into_warning())
}

/// Who is there already; none: the worker of this configuration.
async fn in_use(config: &Config) -> Option<String> {
    let answer = get(&config.admin, "/api/v1/machine").await;
    let told = |body: &str| serde_json::from_str::<Value>(body).ok();
    match answer {
        Ok(answer) if answer.code == 200 => {
            let machine = told(&answer.body).unwrap_or_default();
            match machine.get("namespace").and_then(Value::as_str) {
                Some(namespace) if namespace == config.service.namespace => None,
                Some(namespace) => Some(format!("a worker of the namespace {namespace} listens there")),
                None => Some("another program listens there".to_owned()),
            }
        }
        // It asks for a token that this configuration does not have, or for another name: a worker in any case.
        Ok(answer) if told(&answer.body).is_some_and(|body| body.get("error").is_some()) => None,
        Ok(_) => Some("another program listens there".to_owned()),
        Err(error) => Some(silent(&error)),
    }
}

fn silent(error: &Error) -> String {
    format!("somebody listens there who does not answer as a worker does ({error})")
}
