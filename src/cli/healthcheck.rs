//! `cachekeeper healthcheck`: for containers without curl.

use serde_json::{Value, json};

use super::admin_client::get;
use super::output::{Exit, Output};
use super::worker_asked::of_another;
use cachekeeper_config::Config;

/// Asks the admin listener.
pub async fn healthcheck(config: &Config, ready: bool, out: &Output) -> Exit {
    let Some(listen) = &config.admin.listen else {
        out.failure("the admin listener is off: set [admin] listen");
        return Exit::Configuration;
    };
    let path = if ready { "/readyz" } else { "/livez" };
    let live = get(&config.admin, path).await;
    // Whose worker it is, only readiness says.
    if !ready
        && live.is_ok()
        && let Ok(answer) = get(&config.admin, "/readyz").await
        && let Some(other) = other_namespace(config, &serde_json::from_str(&answer.body).unwrap_or_default())
    {
        out.failure(&of_another(config, other));
        return Exit::Configuration;
    }
    match live {
        Ok(answer) => {
            let said: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_text| json!(answer.body));
            if let Some(other) = other_namespace(config, &said) {
                out.failure(&of_another(config, other));
                return Exit::Configuration;
            }
            let is_ok = answer.code == 200;
            out.result(&answer.body, &json!({ "ok": is_ok, "path": path, "answer": said }));
            if is_ok { Exit::Ok } else { Exit::Failed }
        }
        Err(error) => {
            out.failure(&format!("{listen} does not answer: {error}"));
            Exit::Unavailable
        }
    }
}

/// The namespace that an answer names, if it is not that of the configuration. Without a token none is named.
fn other_namespace<'a>(config: &Config, said: &'a Value) -> Option<&'a str> {
    said.get("namespace")?.as_str().filter(|namespace| *namespace != config.service.namespace)
}

/// What a running worker says of its readiness.
pub struct Readiness {
    pub is_ready: bool,
    /// Why it is not.
    pub reasons: Vec<String>,
    /// What is worth knowing all the same.
    pub notes: Vec<String>,
}

/// Asks a running worker.
///
/// # Errors
/// Why nobody tells it, in words.
pub async fn readiness(config: &Config) -> Result<Readiness, String> {
    let Some(listen) = &config.admin.listen else { return Err("its admin listener is off".to_owned()) };
    let nobody = || format!("nobody answers on {listen}");
    let answer = get(&config.admin, "/readyz").await.map_err(|_silent| nobody())?;
    let body: Value = serde_json::from_str(&answer.body).map_err(|_no_json| nobody())?;
    if let Some(other) = other_namespace(config, &body) {
        return Err(of_another(config, other));
    }
    let texts = |name: &str| -> Option<Vec<String>> {
        let texts = body.get(name)?.as_array()?.iter();
        Some(texts.filter_map(|one| Some(one.as_str()?.to_owned())).collect())
    };
    let is_ready = body.get("ready").and_then(Value::as_bool).ok_or_else(nobody)?;
    let hidden =
        || if is_ready { Vec::new() } else { vec!["it tells the reason only with a token".to_owned()] };
    Ok(Readiness {
        is_ready,
        reasons: texts("reasons").unwrap_or_else(hidden),
        // A worker of an earlier version has none.
        notes: texts("notes").unwrap_or_default(),
    })
}
