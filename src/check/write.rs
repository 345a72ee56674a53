//! The write statements of `cachekeeper check`.

use super::located::located;
use cachekeeper_config::diagnostic::Diagnostic;
use cachekeeper_config::{Config, OnMiss};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::Effect;
use cachekeeper_protocol::parameters::ParameterizedSql;
use cachekeeper_protocol::units::show_duration;

/// Whether the server accepts a dataset's write statement, and whether it writes anything. It is not carried out.
pub async fn check(
    config: &Config,
    context: &Context,
    dataset: &Dataset,
    problems: &mut Vec<Diagnostic>,
) -> Result<(), EngineError> {
    let Some(statement) = &dataset.settings.write else { return Ok(()) };
    let path = |setting: &str| format!("dataset.{}.{setting}", dataset.name());
    let setting = path("write.statement");
    match context.postgres.check_write(statement).await? {
        Ok(Effect::Rows) => {}
        Ok(Effect::Functions) => {
            let message = "the write statement writes only what the functions write that it calls";
            let help = "it must return a row where something was written, and none otherwise: a write of no row is refused";
            problems.push(config.source.problem(&setting, message, help.to_owned()).into_warning());
        }
        Ok(Effect::Nothing) => {
            let help = "use insert, update, delete or merge, or select a function that writes";
            let message = "the write statement writes nothing";
            problems.push(config.source.problem(&setting, message, help.to_owned()));
        }
        Err(problem) => {
            problems.push(located(config, dataset, problem));
        }
    }
    Ok(())
}

/// What is worth knowing although it is no problem.
pub fn notes(config: &Config) -> Vec<String> {
    let mut notes: Vec<String> = config.datasets.iter().filter_map(ends_early).collect();
    notes.extend(of_writes(config));
    notes
}

/// A dataset that is filled at the start only, and then grows empty.
fn ends_early(dataset: &cachekeeper_config::Dataset) -> Option<String> {
    let warm = dataset.warm.as_ref()?;
    let is_renewed =
        dataset.refresh_ahead.is_some() || warm.schedule.is_some() || dataset.on_miss == OnMiss::Load;
    (warm.on_start && !is_renewed).then(|| {
        format!(
            "dataset {}: what the start fills ends after its ttl ({}) and is not filled again; `refresh` keeps what is read, a `schedule` within \
             the ttl keeps everything",
            dataset.name,
            show_duration(dataset.ttl)
        )
    })
}

fn of_writes(config: &Config) -> Vec<String> {
    let Some(stream) = &config.writes.stream else { return Vec::new() };
    let note = |dataset: &cachekeeper_config::Dataset| {
        let statement = ParameterizedSql::parse(dataset.write.as_ref()?);
        let missing: Vec<&str> =
            dataset.key.columns().filter(|column| !statement.places().any(|name| name == *column)).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "dataset {}: its commands in {stream} are one queue, carried out one after the other, because the write statement has no parameter {}",
                dataset.name,
                missing.join(", ")
            )
        })
    };
    config.datasets.iter().filter_map(note).collect()
}
