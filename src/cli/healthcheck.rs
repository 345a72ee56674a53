//! `cachekeeper healthcheck`: for containers without curl.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::output::{Exit, Output};
use cachekeeper_config::Config;

const LIMIT: Duration = Duration::from_secs(5);

/// Asks the admin listener.
pub async fn healthcheck(config: &Config, ready: bool, out: &Output) -> Exit {
    let Some(listen) = &config.admin.listen else {
        out.failure("the admin listener is off: set [admin] listen");
        return Exit::Configuration;
    };
    let path = if ready { "/readyz" } else { "/livez" };
    match tokio::time::timeout(LIMIT, ask(listen, path)).await {
        Ok(Ok(reply)) => {
            let is_ok = reply.split_whitespace().nth(1) == Some("200");
            let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let said = serde_json::from_str(body.trim()).unwrap_or_else(|_text| json!(body.trim()));
            out.result(body.trim(), &json!({ "ok": is_ok, "path": path, "answer": said }));
            if is_ok { Exit::Ok } else { Exit::Failed }
        }
        Ok(Err(error)) => {
            out.failure(&format!("{listen} does not answer: {error}"));
            Exit::Unavailable
        }
        Err(_elapsed) => {
            out.failure(&format!("{listen} does not answer in time"));
            Exit::Unavailable
        }
    }
}

/// What a running worker says of its readiness.
pub struct Readiness {
    pub is_ready: bool,
    /// Why it is not.
    pub reasons: Vec<String>,
    /// What is worth knowing all the same.
    pub notes: Vec<String>,
}

/// Asks a running worker; none: nobody answers.
pub async fn readiness(listen: &str) -> Option<Readiness> {
    let reply = tokio::time::timeout(LIMIT, ask(listen, "/readyz")).await.ok()?.ok()?;
    let body: serde_json::Value = serde_json::from_str(reply.split_once("\r\n\r\n")?.1.trim()).ok()?;
    let texts = |name: &str| -> Option<Vec<String>> {
        let texts = body.get(name)?.as_array()?.iter();
        Some(texts.filter_map(|one| Some(one.as_str()?.to_owned())).collect())
    };
    Some(Readiness {
        is_ready: body.get("ready")?.as_bool()?,
        reasons: texts("reasons")?,
        // A worker of an earlier version has none.
        notes: texts("notes").unwrap_or_default(),
    })
}

async fn ask(listen: &str, path: &str) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(listen).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await?;
    Ok(String::from_utf8_lossy(&reply).into_owned())
}
