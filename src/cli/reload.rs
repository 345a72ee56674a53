//! `cachekeeper reload`, `drain` and `log-level`: what a running worker is asked over its admin listener.

use serde_json::{Value, json};

use super::admin_client::{Answer, post};
use super::output::{Exit, Output};
use super::worker_asked::{Refused, found};
use cachekeeper_config::Config;

/// Has the worker load its configuration again, and says what changed.
pub async fn reload(config: &Config, is_dry: bool, out: &Output) -> Exit {
    let path = if is_dry { "/api/v1/reload?dry_run=true" } else { "/api/v1/reload" };
    let answer = match ask(config, path, &json!({}), out).await {
        Ok(answer) => answer,
        Err(exit) => return exit,
    };
    if out.json {
        out.line(&answer.to_string());
        return Exit::Ok;
    }
    let list = |name: &str| answer.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    for warning in list("warnings") {
        out.note(warning.as_str().unwrap_or_default());
    }
    let (changes, needs_restart) = (list("changes"), list("needs_restart"));
    changes.iter().for_each(|change| out.line(&told(change)));
    needs_restart.iter().for_each(|change| out.line(&format!("{} (after a restart only)", told(change))));
    out.line(match (changes.is_empty() && needs_restart.is_empty(), is_dry) {
        (true, _) => "nothing has changed",
        (false, true) => "nothing was done: this is what a reload would change",
        (false, false) => "the worker works with the new configuration",
    });
    Exit::Ok
}

/// Has the worker take no more work.
pub async fn drain(config: &Config, out: &Output) -> Exit {
    done(ask(config, "/api/v1/drain", &json!({}), out).await, out)
}

/// Has the worker log at another level.
pub async fn log_level(config: &Config, level: &str, out: &Output) -> Exit {
    done(ask(config, "/api/v1/log-level", &json!({ "level": level }), out).await, out)
}

fn done(answer: Result<Value, Exit>, out: &Output) -> Exit {
    match answer {
        Ok(answer) => {
            out.result(answer.get("done").and_then(Value::as_str).unwrap_or_default(), &answer);
            Exit::Ok
        }
        Err(exit) => exit,
    }
}

fn told(change: &Value) -> String {
    serde_json::from_value::<cachekeeper_config::Change>(change.clone())
        .map_or_else(|_| change.to_string(), |change| change.to_string())
}

/// Asks for an action; an error has been told.
async fn ask(config: &Config, path: &str, body: &Value, out: &Output) -> Result<Value, Exit> {
    let Some(listen) = &config.admin.listen else {
        out.failure("the admin listener is off: set [admin] listen, or send the worker a signal (SIGHUP loads again, SIGUSR1 drains)");
        return Err(Exit::Configuration);
    };
    // What stands in this file may be of another namespace than the worker that has its address.
    if let Err(Refused { error, exit: Exit::Configuration }) = found(config).await {
        out.failure(&error);
        return Err(Exit::Configuration);
    }
    let Answer { code, body } = post(&config.admin, path, body).await.map_err(|error| {
        out.failure(&format!(
            "no worker answers on {listen}: {error}; where [admin] listen was changed, send the worker a signal (SIGHUP loads again, SIGUSR1 drains)"
        ));
        Exit::Unavailable
    })?;
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    if (200..300).contains(&code) {
        return Ok(answer);
    }
    out.failure(answer.get("error").and_then(Value::as_str).unwrap_or(&body));
    Err(match code {
        401 | 403 | 422 => Exit::Configuration,
        503 => Exit::Unavailable,
        _ => Exit::Failed,
    })
}
