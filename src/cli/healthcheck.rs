//! `cachekeeper healthcheck`: for containers without curl.

use serde_json::json;

use super::admin_client::get;
use super::output::{Exit, Output};
use cachekeeper_config::{Admin, Config};

/// Asks the admin listener.
pub async fn healthcheck(config: &Config, ready: bool, out: &Output) -> Exit {
    let Some(listen) = &config.admin.listen else {
        out.failure("the admin listener is off: set [admin] listen");
        return Exit::Configuration;
    };
    let path = if ready { "/readyz" } else { "/livez" };
    match get(&config.admin, path).await {
        Ok(answer) => {
            let is_ok = answer.code == 200;
            let said = serde_json::from_str(&answer.body).unwrap_or_else(|_text| json!(answer.body));
            out.result(&answer.body, &json!({ "ok": is_ok, "path": path, "answer": said }));
            if is_ok { Exit::Ok } else { Exit::Failed }
        }
        Err(error) => {
            out.failure(&format!("{listen} does not answer: {error}"));
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
pub async fn readiness(admin: &Admin) -> Option<Readiness> {
    let answer = get(admin, "/readyz").await.ok()?;
    let body: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
    let texts = |name: &str| -> Option<Vec<String>> {
        let texts = body.get(name)?.as_array()?.iter();
        Some(texts.filter_map(|one| Some(one.as_str()?.to_owned())).collect())
    };
    let is_ready = body.get("ready")?.as_bool()?;
    let hidden =
        || if is_ready { Vec::new() } else { vec!["it tells the reason only with a token".to_owned()] };
    Some(Readiness {
        is_ready,
        reasons: texts("reasons").unwrap_or_else(hidden),
        // A worker of an earlier version has none.
        notes: texts("notes").unwrap_or_default(),
    })
}
