//! `cachekeeper status`

use serde_json::{Value, json};

use super::output::{Exit, Output};
use super::writes::look;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::{EngineError, chain};

/// Shows what stands in both servers. Nothing is changed.
pub async fn status(context: &Context, config: &Config, out: &Output) -> Result<Exit, EngineError> {
    let facts = context.redis.facts().await?;
    let head = context.redis.metadata("").await?;
    let keys = context.redis.key_count().await?;
    let poll = context.postgres.poll().await;
    let mut lines = vec![format!(
        "redis      {} {}, {} keys, {} MiB, {}",
        facts.version,
        facts.role,
        keys,
        facts.used_memory >> 20,
        facts.maxmemory_policy
    )];
    match &poll {
        Ok(poll) => lines.push(format!(
            "postgres   snapshot {}, incarnation {}",
            poll.snapshot.as_str(),
            poll.incarnation
        )),
        Err(error) => lines.push(format!("postgres   {}", chain(error))),
    }
    match (&head.epoch, head.is_whole) {
        (Some(epoch), true) => {
            lines.push(format!("epoch      {epoch}, floor {}", head.floor.unwrap_or_default()));
        }
        (Some(epoch), false) => lines.push(format!("epoch      {epoch}, but the stamp tables are not whole")),
        (None, _) => lines.push("epoch      none yet: no worker has run here".to_owned()),
    }
    let watermark = context.redis.watermark().await?;
    lines.push(match &watermark {
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
    });
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
    let mut datasets = Vec::new();
    for dataset in context.catalog.iter() {
        let revision = head.revisions.get(dataset.name());
        let definition = match revision {
            Some(known) if *known == dataset.revision => "as configured",
            Some(_) => "another definition than this file's",
            None => "not known to any worker yet",
        };
        let pending = head.pending.get(dataset.name()).map(|pending| pending.reason().to_owned());
        let pass = head.backfills.get(dataset.name());
        lines.push(format!(
            "dataset    {} ({}): {definition}{}{}",
            dataset.name(),
            dataset.settings.key,
            pending.as_ref().map_or(String::new(), |reason| format!(", pending: {reason}")),
            pass.map_or(String::new(), |pass| format!(", a pass stands at {pass}"))
        ));
        datasets.push(json!({ "name": dataset.name(), "revision_known": revision, "revision": dataset.revision, "pending": pending, "pass": pass }));
    }
    out.result(
        &lines.join("\n"),
        &json!({
            "redis": { "version": facts.version, "role": facts.role, "keys": keys, "used_memory": facts.used_memory, "maxmemory_policy": facts.maxmemory_policy },
            "postgres": match &poll {
                Ok(poll) => json!({ "up": true, "snapshot": poll.snapshot.as_str(), "incarnation": poll.incarnation }),
                Err(error) => json!({ "up": false, "reason": chain(error) }),
            },
            "epoch": head.epoch.map(|epoch| epoch.to_string()),
            "whole": head.is_whole,
            "watermark": watermark,
            "writes": streams.first(),
            "events": streams.get(1),
            "datasets": datasets,
        }),
    );
    Ok(if poll.is_ok() && head.is_whole { Exit::Ok } else { Exit::Failed })
}
