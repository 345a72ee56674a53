//! `cachekeeper writes`: the stream of write commands, and what was rejected.

use chrono::DateTime;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{Exit, Output};
use cachekeeper_config::Config;
use cachekeeper_engine::commands::group_of;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::dead_letters::{Rejected, hex, rejected, replay};
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::stores::redis::{CacheError, LeaseAttempt, StreamState};

/// More than are ever kept.
const ALL: usize = 1_000_000;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show the state of the stream, and who carries out its commands
    Status,
    /// Show the commands that were rejected, the oldest first
    DeadLetters {
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Put rejected commands back into the stream, behind what is there, to be tried again
    Replay(Chosen),
}

/// Which rejected commands.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Chosen {
    /// Ids of commands, or of entries as `writes dead-letters` shows them
    ids: Vec<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

/// Looks at the stream of write commands, or puts commands back.
pub async fn writes(
    context: &Context,
    config: &Config,
    action: &Action,
    out: &Output,
) -> Result<Exit, EngineError> {
    let Some(stream) = config.writes.stream.as_deref() else {
        let text = "there is no stream of write commands: [writes] stream is empty";
        if matches!(action, Action::Status) {
            out.result(text, &json!({ "stream": null }));
            return Ok(Exit::Ok);
        }
        out.failure(text);
        return Ok(Exit::Configuration);
    };
    match action {
        Action::Status => status(context, stream, out).await,
        Action::DeadLetters { limit } => dead_letters(context, stream, *limit, out).await,
        Action::Replay(chosen) => put_back(context, stream, chosen, out).await,
    }
}

/// The state of a stream, and of its group.
pub async fn look(context: &Context, stream: &str) -> Result<(StreamState, String), CacheError> {
    let group = group_of(context.redis.keys().namespace());
    Ok((context.redis.stream_state(stream, &group).await?, group))
}

async fn status(context: &Context, stream: &str, out: &Output) -> Result<Exit, EngineError> {
    let (state, group) = look(context, stream).await?;
    let consumers = context.redis.stream_consumers(stream, &group).await?;
    let leader = context.redis.lock_holder(&[LeaseName::COMMANDS.name.into_owned()]).await?;
    let leader = leader.and_then(|held| match held {
        LeaseAttempt::Held { owner, .. } => Some(owner),
        LeaseAttempt::Granted(_) => None,
    });
    let age = state.oldest.as_ref().map(|_| u64::try_from(state.oldest_age.as_millis()).unwrap_or(u64::MAX));
    let is_wanted = context.catalog.iter().any(|dataset| dataset.settings.write.is_some());
    let mut lines = vec![
        format!("stream        {stream}"),
        format!("length        {}", state.length),
        format!("pending       {}", state.pending),
    ];
    if let (Some(oldest), Some(age)) = (&state.oldest, age) {
        lines.push(format!("oldest        {oldest}, {} old", age_of(age)));
    }
    for one in &consumers {
        let idle = age_of(u64::try_from(one.idle.as_millis()).unwrap_or(u64::MAX));
        lines.push(format!("consumer      {}: {} pending, last took some {idle} ago", one.name, one.pending));
    }
    lines.push(match (&leader, is_wanted) {
        (Some(owner), _) => format!("leader        {owner}"),
        (None, true) => "leader        none: no worker carries out commands at the moment".to_owned(),
        (None, false) => "leader        none: no dataset has a write statement".to_owned(),
    });
    let hint = if state.dead == 0 { "" } else { ", see `cachekeeper writes dead-letters`" };
    lines.push(format!("dead letters  {}{hint}", state.dead));
    let consumers: Vec<Value> = consumers
        .iter()
        .map(|one| json!({ "name": one.name, "pending": one.pending, "idle_ms": u64::try_from(one.idle.as_millis()).ok() }))
        .collect();
    let facts = json!({
        "stream": stream,
        "group": group,
        "length": state.length,
        "pending": state.pending,
        "oldest": state.oldest,
        "oldest_age_ms": age,
        "consumers": consumers,
        "leader": leader,
        "dead_letters": state.dead,
    });
    out.result(&lines.join("\n"), &facts);
    Ok(Exit::Ok)
}

async fn dead_letters(
    context: &Context,
    stream: &str,
    limit: u64,
    out: &Output,
) -> Result<Exit, EngineError> {
    let (state, _) = look(context, stream).await?;
    let found = rejected(context, stream, usize::try_from(limit).unwrap_or(ALL)).await?;
    let mut text: Vec<String> = found.iter().map(as_text).collect();
    if text.is_empty() {
        text.push("no command was rejected".to_owned());
    }
    let more = usize::try_from(state.dead).unwrap_or(ALL).saturating_sub(found.len());
    if 0 < more {
        text.push(format!("and {more} more; --limit shows more at once"));
    }
    let list: Vec<Value> = found.iter().map(as_json).collect();
    out.result(&text.join("\n\n"), &json!({ "dead_letters": list, "more": more }));
    Ok(Exit::Ok)
}

async fn put_back(
    context: &Context,
    stream: &str,
    chosen: &Chosen,
    out: &Output,
) -> Result<Exit, EngineError> {
    let mut found = rejected(context, stream, ALL).await?;
    if !chosen.all {
        let is_known = |id: &String| found.iter().any(|one| one.is_meant_by(id));
        let unknown: Vec<&str> = chosen.ids.iter().filter(|id| !is_known(id)).map(String::as_str).collect();
        if !unknown.is_empty() {
            out.failure(&format!(
                "no rejected command has the id {}; nothing was put back, see `cachekeeper writes dead-letters`",
                unknown.join(", ")
            ));
            return Ok(Exit::Failed);
        }
        found.retain(|one| chosen.ids.iter().any(|id| one.is_meant_by(id)));
    }
    let replayed = replay(context, stream, &found).await;
    let done = found.get(..replayed.count).unwrap_or_default();
    let list: Vec<Value> = done.iter().map(|one| json!({ "id": one.id, "letter": one.kept_as() })).collect();
    let text = match done.len() {
        0 if found.is_empty() => "no command was rejected".to_owned(),
        1 => format!("1 command put back into {stream}"),
        count => format!("{count} commands put back into {stream}"),
    };
    out.result(&text, &json!({ "replayed": list, "failed": found.len() - done.len() }));
    match replayed.error {
        None => Ok(Exit::Ok),
        Some(error) => {
            out.note("the others are still kept; run it again");
            Err(error)
        }
    }
}

fn rejected_at(rejected: &Rejected) -> String {
    let at = DateTime::from_timestamp_millis(rejected.rejected_ms());
    at.map_or_else(String::new, |at| at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

fn as_text(rejected: &Rejected) -> String {
    let none = || "(none)".to_owned();
    let params = match (rejected.command.field("params").map(std::str::from_utf8), rejected.parameters()) {
        // JSON as it came, so that numbers lose nothing, on one line: in its texts there are no raw line breaks.
        (Some(Ok(text)), Some(_)) if text.trim_start().starts_with('{') => {
            text.trim().replace(['\n', '\r', '\t'], " ")
        }
        (_, Some(params)) => params.to_string(),
        (Some(Ok(text)), None) => text.to_owned(),
        (Some(Err(_)), None) => hex(rejected.command.field("params").unwrap_or_default()),
        (None, None) => none(),
    };
    [
        format!("{}  rejected at {}", rejected.kept_as(), rejected_at(rejected)),
        format!("  id       {}", rejected.id.clone().unwrap_or_else(none)),
        format!("  dataset  {}", rejected.field("dataset").unwrap_or_else(none)),
        format!("  params   {params}"),
        format!("  entry    {}", rejected.command.id),
        format!("  reason   {}", rejected.reason),
    ]
    .map(|line| printable(&line))
    .join("\n")
}

fn as_json(rejected: &Rejected) -> Value {
    json!({
        "letter": rejected.kept_as(),
        "at": rejected_at(rejected),
        "id": rejected.id,
        "entry": rejected.command.id,
        "dataset": rejected.field("dataset"),
        "params": rejected.parameters().or_else(|| rejected.field("params").map(Value::from)),
        "reason": rejected.reason,
    })
}

/// A text that a producer chose, without what a terminal would act on.
fn printable(text: &str) -> String {
    let show = |one: char| if one.is_control() { one.escape_default().to_string() } else { one.to_string() };
    text.chars().map(show).collect()
}

/// An age as people say it: in the largest unit of which there are two.
fn age_of(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    let fitting = units.into_iter().find(|(_, unit)| 2 * unit <= ms);
    fitting.map_or_else(|| format!("{ms}ms"), |(name, unit)| format!("{}{name}", ms / unit))
}
