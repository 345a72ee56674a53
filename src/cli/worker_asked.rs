//! Whether the worker that a verb asks is there, is the one of the configuration, and answers; where not, what to do.

use serde_json::Value;

use super::admin_client::{Answer, get};
use super::output::Exit;
use cachekeeper_config::Config;

/// Why nothing is told.
pub(super) struct Refused {
    pub error: String,
    pub exit: Exit,
}

/// What the worker says of itself (`/api/v1/machine`), if it is that of this configuration.
pub(super) async fn found(config: &Config) -> Result<Value, Refused> {
    let machine = ask(config, "/api/v1/machine").await?;
    // One of an earlier version does not say it.
    let namespace = machine.get("namespace").and_then(Value::as_str).unwrap_or(&config.service.namespace);
    if namespace == config.service.namespace {
        return Ok(machine);
    }
    Err(Refused { error: of_another(config, namespace), exit: Exit::Configuration })
}

/// That a worker of another namespace answers.
pub(super) fn of_another(config: &Config, namespace: &str) -> String {
    let (listen, own) = (config.admin.listen.as_deref().unwrap_or_default(), &config.service.namespace);
    format!(
        "the worker on {listen} is of namespace {namespace}, this configuration of {own}: name the worker's configuration with -c, or \
         set [admin] listen to the address of this one's"
    )
}

/// Asks for a path that answers in JSON.
pub(super) async fn ask(config: &Config, path: &str) -> Result<Value, Refused> {
    let Some(listen) = &config.admin.listen else {
        let error = "the admin listener is off: set [admin] listen, and start the worker again".to_owned();
        return Err(Refused { error, exit: Exit::Configuration });
    };
    let answer = get(&config.admin, path).await.map_err(|error| Refused {
        error: format!("no worker answers on {listen}: {error}; start it with `cachekeeper run`, or name its configuration with -c"),
        exit: Exit::Unavailable,
    })?;
    if answer.code != 200 {
        return Err(refused(config, &answer));
    }
    serde_json::from_str(&answer.body).map_err(|_no_json| Refused {
        error: format!("what answers on {listen} is no worker: its answer is not JSON"),
        exit: Exit::Configuration,
    })
}

/// Why the worker does not tell.
pub(super) fn refused(config: &Config, answer: &Answer) -> Refused {
    let listen = config.admin.listen.as_deref().unwrap_or_default();
    let said = serde_json::from_str::<Value>(&answer.body).unwrap_or_default();
    let said = said.get("error").and_then(Value::as_str);
    let Some(said) = said else {
        let error = format!(
            "what answers on {listen} is no worker, or one of another version: it answers {}",
            answer.code
        );
        return Refused { error, exit: Exit::Configuration };
    };
    let exit = match answer.code {
        400 => Exit::Usage,
        401 | 403 | 421 => Exit::Configuration,
        429 | 503 => Exit::Unavailable,
        _ => Exit::Failed,
    };
    let error = match answer.code {
        401 => format!(
            "the worker on {listen} asks for a token, and this configuration gives no right one: {said}"
        ),
        _ => said.to_owned(),
    };
    Refused { error, exit }
}
