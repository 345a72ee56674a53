//! `cachekeeper check`

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::choose::{exit_of, with_reason};
use super::output::{Exit, Output};
use super::{file, listener};
use crate::check::{Askable, Unasked, notes, of_admin, of_cluster, of_servers};
use crate::{schedule, telemetry};
use cachekeeper_config::check::{PartialConfig, in_order};
use cachekeeper_config::diagnostic::{Diagnostic, Severity};
use cachekeeper_config::{Config, Redis, Secret};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;

/// Checks the file, then what only the servers know. What is wrong keeps nothing that is right from being checked.
pub async fn check(
    explicit: Option<PathBuf>,
    environment: &BTreeMap<String, String>,
    offline: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    let (path, text) = match file::read(explicit, environment) {
        Ok(read) => read,
        Err(problem) => {
            out.problems(&[*problem]);
            return Ok(Exit::Configuration);
        }
    };
    let PartialConfig { config, mut problems } =
        Config::load_partly(&path, text, environment, schedule::check);
    if let Err(message) = telemetry::start(&config.log) {
        problems.push(Diagnostic::error(message, None));
    }
    problems.extend(of_admin(&config));
    problems.extend(of_cluster(&config));
    let mut unasked = Vec::new();
    if !offline {
        problems.extend(listener::obstacle(&config).await);
        let askable = Askable::by(&config, &problems);
        let context = Context::new(&reachable(&config, askable))?;
        let found = of_servers(&config, &context, askable, &mut problems).await;
        for Unasked { setting, error } in found {
            unasked.push(Unasked { setting, error: with_reason(&context, error).await });
        }
    }
    Ok(tell(&config, problems, &unasked, offline, out))
}

/// The same with an address that nobody asks in the place of one that is wrong.
fn reachable(config: &Config, askable: Askable) -> Config {
    let mut config = config.clone();
    if !askable.postgres {
        config.postgres.url = Secret::new("postgres://localhost/unknown".to_owned());
        (config.postgres.url_file, config.postgres.password_file) = (None, None);
    }
    if !askable.redis {
        config.redis = Redis::new(Secret::new("redis://localhost".to_owned()));
    }
    config
}

/// Says what was found.
fn tell(
    config: &Config,
    problems: Vec<Diagnostic>,
    unasked: &[Unasked],
    offline: bool,
    out: &Output,
) -> Exit {
    let is_error = |problem: &Diagnostic| problem.severity == Severity::Error;
    let is_wrong = problems.iter().any(is_error);
    let failed = unasked.iter().map(|unasked| not_asked(config, unasked));
    let problems = in_order(problems.into_iter().chain(failed).collect());
    let errors = problems.iter().filter(|problem| is_error(problem)).count();
    let notes = notes(config);
    if out.json {
        let mut told = json!({ "ok": errors == 0, "datasets": config.datasets.len(), "problems": problems, "notes": notes });
        if let (Some(first), Some(fields)) = (unasked.first(), told.as_object_mut()) {
            fields.insert("error".to_owned(), first.error.told().into());
        }
        out.line(&told.to_string());
    } else {
        if !problems.is_empty() {
            out.problems(&problems);
        }
        if errors == 0 {
            let how = if offline { "servers not asked" } else { "servers asked" };
            let plural = if config.datasets.len() == 1 { "dataset" } else { "datasets" };
            out.line(&format!("configuration is right: {} {plural}, {how}", config.datasets.len()));
        }
        notes.iter().for_each(|note| out.note(&format!("note: {note}")));
    }
    let is_of_configuration = |unasked: &Unasked| exit_of(&unasked.error) == Exit::Configuration;
    match unasked {
        _ if is_wrong || unasked.iter().any(is_of_configuration) => Exit::Configuration,
        [] => Exit::Ok,
        _ => Exit::Unavailable,
    }
}

/// What could not be asked, as a problem of its setting.
fn not_asked(config: &Config, Unasked { setting, error }: &Unasked) -> Diagnostic {
    let help = match setting.as_str() {
        "postgres.url" => format!("postgres is {}", config.postgres.url.redacted()),
        "redis.url" => format!("redis is {}", config.redis.url.redacted()),
        _ => "this could not be checked; try again".to_owned(),
    };
    config.source.problem(setting, error.told(), help)
}
