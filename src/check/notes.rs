//! What is worth knowing of a configuration although it is no problem.

use std::time::Duration;

use chrono::Utc;

use crate::schedule;
use cachekeeper_config::{Config, FeedMode, OnMiss, Warm};
use cachekeeper_protocol::parameters::ParameterizedSql;
use cachekeeper_protocol::units::show_duration;

/// All of it.
pub fn notes(config: &Config) -> Vec<String> {
    let mut notes: Vec<String> = config.datasets.iter().filter_map(ends_early).collect();
    notes.extend(config.datasets.iter().filter_map(|dataset| begins_never(config, dataset)));
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

/// A dataset of which Redis is to hold every row, and that only events bring there. (Where not even they do, that is a problem.)
fn begins_never(config: &Config, dataset: &cachekeeper_config::Dataset) -> Option<String> {
    let warm = dataset.warm.as_ref().filter(|warm| !warm.on_start && warm.schedule.is_none())?;
    let is_followed = config.feed.mode != FeedMode::Off && !dataset.watch.is_empty();
    let is_filled = is_followed || dataset.on_miss == OnMiss::Load || dataset.write.is_some();
    (!is_filled && warm.limit.is_none()).then(|| {
        format!(
            "dataset {}: no backfill begins by itself (`on_start` is false, there is no `schedule`), so only events and `cachekeeper warm` \
             bring its entries",
            dataset.name
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
