//! The write statements of `cachekeeper check`.

use std::time::Duration;

use chrono::Utc;

use super::Check;
use super::located::located;
use crate::schedule;
use cachekeeper_config::{Config, OnMiss, Warm};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::stores::postgres::Effect;
use cachekeeper_protocol::parameters::ParameterizedSql;
use cachekeeper_protocol::units::show_duration;

impl Check<'_> {
    /// Whether the server accepts a dataset's write statement, and whether it writes anything. It is not carried out.
    pub(super) async fn check_write(&mut self, dataset: &Dataset) -> Result<(), EngineError> {
        let Some(statement) = &dataset.settings.write else { return Ok(()) };
        let setting = format!("dataset.{}.write.statement", dataset.name());
        match self.context.postgres.check_write(statement).await? {
            Ok(Effect::Rows) => {}
            Ok(Effect::Functions) => {
                let message = "the write statement writes only what the functions write that it calls";
                let help = "it must return a row where something was written, and none otherwise: a write of no row is refused";
                self.warning(&setting, message, help.to_owned());
            }
            Ok(Effect::Nothing) => {
                let help = "use insert, update, delete or merge, or select a function that writes";
                self.error(&setting, "the write statement writes nothing", help.to_owned());
            }
            Err(problem) => self.add(located(self.config, dataset, problem)),
        }
        Ok(())
    }
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
    // What a column lets end is to end.
    let is_renewed = dataset.refresh_ahead.is_some() || dataset.on_miss == OnMiss::Load;
    if is_renewed || dataset.ttl_column.is_some() {
        return None;
    }
    if warm.schedule.is_some() {
        let pause = longest_pause(warm).filter(|pause| dataset.ttl < *pause)?;
        return Some(format!(
            "dataset {}: up to {} pass between two backfills of its schedule, and entries end after their ttl ({}); `refresh` keeps what is \
             read, a longer ttl or a schedule within it keeps everything",
            dataset.name,
            show_duration(pause),
            show_duration(dataset.ttl)
        ));
    }
    warm.on_start.then(|| {
        format!(
            "dataset {}: what the start fills ends after its ttl ({}) and is not filled again; `refresh` keeps what is read, a `schedule` within \
             the ttl keeps everything",
            dataset.name,
            show_duration(dataset.ttl)
        )
    })
}

/// The longest pause among the next fires of a schedule. A few tell: days of the week, months of different lengths.
fn longest_pause(warm: &Warm) -> Option<Duration> {
    const FIRES: usize = 60;
    let fires = std::iter::successors(Some(Utc::now()), |last| schedule::next_fire(warm, *last));
    let fires: Vec<_> = fires.skip(1).take(FIRES).collect();
    let pauses = fires.iter().zip(fires.iter().skip(1)).map(|(one, next)| *next - *one);
    pauses.filter_map(|pause| pause.to_std().ok()).max()
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
