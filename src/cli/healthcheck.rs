//! `cachekeeper healthcheck`: for containers without curl.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::output::{Exit, Output};
use cachekeeper_config::Config;

const LIMIT: Duration = Duration::from_secs(5);

/// Asks the admin listener.
pub async fn healthcheck(config: &Config, ready: bool, out: &Output) -> Exit {
    let Some(listen) = &config.admin.listen else {
        out.error("the admin listener is off: set [admin] listen");
        return Exit::Configuration;
    };
    let path = if ready { "/readyz" } else { "/livez" };
    match tokio::time::timeout(LIMIT, ask(listen, path)).await {
        Ok(Ok(reply)) => {
            let is_ok = reply.split_whitespace().nth(1) == Some("200");
            let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            out.line(body.trim());
            if is_ok { Exit::Ok } else { Exit::Failed }
        }
        Ok(Err(error)) => {
            out.error(&format!("{listen} does not answer: {error}"));
            Exit::Unavailable
        }
        Err(_elapsed) => {
            out.error(&format!("{listen} does not answer in time"));
            Exit::Unavailable
        }
    }
}

async fn ask(listen: &str, path: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(listen).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}
