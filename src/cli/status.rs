//! `cachekeeper status`

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use serde_json::{Value, json};

use super::choose::exit_of;
use super::healthcheck::readiness;
use super::output::{Exit, Output};
use super::worker_asked::{ask, found};
use super::writes::look;
use cachekeeper_config::{Config, FeedNeed};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::coverage;
use cachekeeper_engine::definitions::renamed;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::rights;
use cachekeeper_engine::shown::few;
use cachekeeper_engine::stores::redis::{LeaseAttempt, Metadata, Watermark};
use cachekeeper_protocol::revision::Revision;

/// Between two looks of `status --watch`.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Moves to the beginning of the terminal and empties it.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Shows it again and again, until Ctrl-C; the code is that of the last look.
pub async fn watch(context: &Context, config: &Config, out: &Output) -> Result<Exit, EngineError> {
    let mut exit = Exit::Ok;
    let looks = async {
        loop {
            if !out.json && std::io::stdout().is_terminal() {
                out.line(CLEAR);
            }
            // What cannot be shown now may be the next time.
            exit = status(context, config, out).await.unwrap_or_else(|error| {
                out.failure(&error.told());
                exit_of(&error)
            });
            tokio::time::sleep(WATCH_EVERY).await;
        }
    };
    tokio::select! {
        () = looks => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(exit)
}

/// Something that keeps a dataset from being what it is to be.
struct Trouble {
    text: String,
    /// Whether it is more than the configuration allows.
    is_broken: bool,
}

/// Shows what stands in both servers. Nothing is changed. The code is 1 where something is broken: the stamp tables, a dataset, the
/// readiness of the worker, or where nobody follows the changes.
pub async fn status(context: &Context, config: &Config, out: &Output) -> Result<Exit, EngineError> {
    let facts = context.redis.facts().await?;
    let metadata = context.redis.metadata("").await?;
    let keys = context.redis.key_count().await?;
    let poll = context.postgres.poll().await;
    let missing = rights::missing(context, config).await?;
    if !missing.needed.is_empty() {
        let lacking = few(&missing.needed);
        out.failure(&format!(
            "the user in Redis lacks {lacking}; `cachekeeper acl --for worker` prints all that it needs"
        ));
        return Ok(Exit::Configuration);
    }
    let mut lines = vec![if facts.is_hidden() {
        format!("redis      {} {}, {keys} keys; the rest is hidden", facts.version, facts.role)
    } else {
        let (memory, policy) = (facts.used_memory >> 20, &facts.maxmemory_policy);
        format!("redis      {} {}, {keys} keys, {memory} MiB, {policy}", facts.version, facts.role)
    }];
    lines.extend(facts.full().map(|full| format!("full       {full}")));
    let weaker = missing.weaker.iter();
    lines.extend(weaker.map(|(what, means)| format!("rights     lacking in redis: {what}: {means}")));
    lines.push(match &poll {
        Ok(poll) => {
            format!("postgres   snapshot {}, incarnation {}", poll.snapshot.as_str(), poll.incarnation)
        }
        Err(error) => format!("postgres   {}", error.told()),
    });
    lines.push(epoch_line(&metadata));
    let worker = worker(context, config, &mut lines).await?;
    let watermark = context.redis.watermark().await?;
    lines.push(watermark_line(watermark.as_ref()));
    let streams = streams(context, config, &mut lines).await?;
    let mut troubles = if poll.is_ok() { troubles(context).await } else { BTreeMap::new() };
    let not_covered = watermark.as_ref().map_or(&[][..], |watermark| watermark.not_covered.as_slice());
    let renamed = renamed::reasons(context, &metadata.revisions, not_covered).await?;
    troubles.extend(
        renamed.into_iter().map(|(name, reason)| {
            (name, Trouble { text: format!("not covered: {reason}"), is_broken: false })
        }),
    );
    let is_ready = worker.get("ready").and_then(Value::as_bool) != Some(false);
    // Where nobody follows the changes, entries grow old however well all the rest is.
    let is_followed = !context.feed.is_on || worker.get("leader").is_some_and(|leader| !leader.is_null());
    let is_right =
        metadata.is_whole && is_ready && is_followed && !troubles.values().any(|trouble| trouble.is_broken);
    let datasets = datasets(context, &metadata, &troubles, &mut lines);
    out.result(
        &lines.join("\n"),
        &json!({
            "redis": { "version": facts.version, "role": facts.role, "keys": keys, "used_memory": facts.used_memory, "maxmemory_policy": facts.maxmemory_policy, "lacking": missing.weaker },
            "postgres": match &poll {
                Ok(poll) => json!({ "up": true, "snapshot": poll.snapshot.as_str(), "incarnation": poll.incarnation }),
                Err(error) => json!({ "up": false, "reason": error.told() }),
            },
            "epoch": metadata.epoch.map(|epoch| epoch.to_string()),
            "whole": metadata.is_whole,
            "worker": worker,
            "watermark": watermark,
            "writes": streams.first(),
            "events": streams.get(1),
            "datasets": datasets,
        }),
    );
    Ok(match poll {
        // What the whole is worth is told already; the code says which kind of trouble it is.
        Err(error) => exit_of(&error.into()),
        Ok(_) if is_right => Exit::Ok,
        Ok(_) => Exit::Failed,
    })
}

fn epoch_line(metadata: &Metadata) -> String {
    match (&metadata.epoch, metadata.is_whole) {
        (Some(epoch), true) => format!("epoch      {epoch}, floor {}", metadata.floor.unwrap_or_default()),
        (Some(epoch), false) => format!("epoch      {epoch}, but the stamp tables are not whole"),
        (None, _) => "epoch      none yet: no worker has run here".to_owned(),
    }
}

/// Who leads, and whether the worker of this configuration is ready.
async fn worker(context: &Context, config: &Config, lines: &mut Vec<String>) -> Result<Value, EngineError> {
    let held = context.redis.lock_holder(&[LeaseName::FEED.name.into_owned()]).await?;
    let leader = held.and_then(|held| match held {
        LeaseAttempt::Held { owner, .. } => Some(owner),
        LeaseAttempt::Granted(_) => None,
    });
    let said = readiness(config).await;
    lines.push(match &said {
        Ok(said) if said.is_ready => format!("worker     {}", with("ready", &said.notes)),
        Ok(said) => {
            let reasons = format!("not ready: {}", said.reasons.join("; "));
            format!("worker     {}", with(&reasons, &said.notes))
        }
        Err(why) => format!("worker     {why}"),
    });
    let said = said.ok();
    lines.push(match (&leader, context.feed.is_on) {
        (Some(owner), _) => format!("leader     {owner} follows the changes"),
        (None, true) => "leader     none: no worker follows the changes".to_owned(),
        (None, false) => "leader     none is needed: the feed is off".to_owned(),
    });
    let (tasks, without_entry) = match &said {
        Some(_) => (tasks(config, lines).await, rows_without_entry(config, lines).await),
        None => (Value::Null, Value::Null),
    };
    let ready = said.as_ref().map(|said| said.is_ready);
    let (reasons, notes) = said.map(|said| (said.reasons, said.notes)).unzip();
    Ok(
        json!({ "leader": leader, "ready": ready, "reasons": reasons, "notes": notes, "tasks": tasks, "rows_without_entry": without_entry }),
    )
}

/// The worker's tasks, as it tells them itself; null: it does not.
async fn tasks(config: &Config, lines: &mut Vec<String>) -> Value {
    let Ok(mut machine) = found(config).await else { return Value::Null };
    let tasks = machine.get_mut("tasks").map(Value::take).unwrap_or_default();
    let all = tasks.as_array().map(Vec::as_slice).unwrap_or_default();
    let odd: Vec<String> = all.iter().filter_map(trouble_of_task).collect();
    lines.push(match odd.is_empty() {
        true => format!("tasks      {} run, none was restarted", all.len()),
        false => format!("tasks      {} in all; {}", all.len(), odd.join("; ")),
    });
    tasks
}

/// Datasets with rows that have no entry, as far as the worker has met them since it started; null: it does not tell.
async fn rows_without_entry(config: &Config, lines: &mut Vec<String>) -> Value {
    let Ok(now) = ask(config, "/api/v1/now").await else { return Value::Null };
    let attention = now.get("attention").and_then(Value::as_array);
    let is_of_rows = |item: &&Value| {
        let subject = item.get("subject").and_then(Value::as_str).unwrap_or_default();
        subject.starts_with("rows without an entry")
    };
    let items = attention.into_iter().flatten().filter(is_of_rows);
    let told: Vec<&str> = items.filter_map(|item| item.get("what")?.as_str()).collect();
    lines.extend(told.iter().map(|what| format!("no entry   {what}")));
    json!(told)
}

fn trouble_of_task(task: &Value) -> Option<String> {
    let name = task.get("name")?.as_str()?;
    let is_up = task.get("is_up")?.as_bool()?;
    let restarts = match task.get("restarts")?.as_u64()? {
        0 => None,
        1 => Some("was restarted once".to_owned()),
        times => Some(format!("was restarted {times} times")),
    };
    let down = (!is_up).then(|| "is down".to_owned());
    let told: Vec<String> = down.into_iter().chain(restarts).collect();
    (!told.is_empty()).then(|| format!("{name} {}", told.join(" and ")))
}

fn with(state: &str, notes: &[String]) -> String {
    if notes.is_empty() { state.to_owned() } else { format!("{state}; {}", notes.join("; ")) }
}

/// Datasets that cannot work or whose changes may be missed, each with the reason.
async fn troubles(context: &Context) -> BTreeMap<String, Trouble> {
    let mut troubles = BTreeMap::new();
    if let Ok(coverage) = coverage::look(context, false).await {
        let is_required = |name: &str| {
            context.catalog.get(name).is_some_and(|dataset| dataset.settings.feed == FeedNeed::Required)
        };
        troubles.extend(coverage.gaps().map(|(name, reason)| {
            let text = format!("not covered: {reason}");
            (name.clone(), Trouble { text, is_broken: is_required(name) })
        }));
    }
    for dataset in context.catalog.iter() {
        if let Err(EngineError::Dataset { problem, .. }) = dataset.source(&context.postgres).await {
            let text = format!("cannot work: {}", problem.message);
            troubles.insert(dataset.name().to_owned(), Trouble { text, is_broken: true });
        }
    }
    troubles
}

fn watermark_line(watermark: Option<&Watermark>) -> String {
    match watermark {
        Some(watermark) if watermark.not_covered.is_empty() => {
            format!("watermark  {}, snapshot {}", watermark.as_of, watermark.snapshot)
        }
        Some(watermark) => format!(
            "watermark  {}, snapshot {}, but not for {}",
            watermark.as_of,
            watermark.snapshot,
            watermark.not_covered.join(", ")
        ),
        None => "watermark  none: no feed has run here".to_owned(),
    }
}

/// The streams of write commands and of events, in this order; null: not configured.
async fn streams(
    context: &Context,
    config: &Config,
    lines: &mut Vec<String>,
) -> Result<Vec<Value>, EngineError> {
    let mut streams = Vec::new();
    for (word, stream) in [("writes", &config.writes.stream), ("events", &config.invalidation.stream)] {
        let Some(stream) = stream else {
            streams.push(Value::Null);
            continue;
        };
        let (state, _) = look(context, stream).await?;
        let (length, pending, dead) = (state.length, state.pending, state.dead);
        lines.push(format!("{word}     {stream}: {length} entries, {pending} pending, {dead} dead letters"));
        streams.push(json!({ "stream": stream, "length": length, "pending": pending, "dead_letters": dead }));
    }
    Ok(streams)
}

fn datasets(
    context: &Context,
    metadata: &Metadata,
    troubles: &BTreeMap<String, Trouble>,
    lines: &mut Vec<String>,
) -> Vec<Value> {
    let mut datasets = Vec::new();
    for dataset in context.catalog.iter() {
        let revision = metadata.revisions.get(dataset.name());
        let definition = match revision {
            Some(known) if known.definition() == dataset.definition => "as configured",
            Some(_) => "another definition than this file's",
            None => "not known to any worker yet",
        };
        let pending =
            metadata.reasons().find(|(name, _)| *name == dataset.name()).map(|(_, reason)| reason.to_owned());
        let progress = metadata.progress.get(dataset.name()).filter(|_| pending.is_some());
        // Where it goes on follows: that is the worker's.
        let backfill = metadata.backfills.get(dataset.name()).and_then(|place| place.split(' ').next());
        let trouble = troubles.get(dataset.name()).map(|trouble| &trouble.text);
        let paused = metadata.paused.get(dataset.name());
        lines.push(format!(
            "dataset    {} ({}): {definition}{}{}{}{}{}",
            dataset.name(),
            dataset.settings.key,
            trouble.map_or(String::new(), |trouble| format!(", {trouble}")),
            if paused.is_some() { ", paused" } else { "" },
            pending.as_ref().map_or(String::new(), |reason| format!(", pending: {reason}")),
            progress.map_or(String::new(), |progress| format!(" ({progress})")),
            backfill.map_or(String::new(), |entries| format!(
                ", a backfill is at {entries} entries, or was interrupted there"
            ))
        ));
        datasets.push(json!({ "name": dataset.name(), "revision_known": revision.map(Revision::as_str), "definition": dataset.definition, "trouble": trouble, "paused_since_ms": paused, "pending": pending, "progress": progress, "backfill": backfill }));
    }
    datasets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_is_down_or_was_restarted_is_named() {
        let task = |is_up: bool, restarts: u64| {
            trouble_of_task(&json!({ "name": "warmer", "is_up": is_up, "restarts": restarts }))
        };
        assert_eq!(task(true, 0), None);
        assert_eq!(task(true, 1).as_deref(), Some("warmer was restarted once"));
        assert_eq!(task(false, 3).as_deref(), Some("warmer is down and was restarted 3 times"));
    }
}
