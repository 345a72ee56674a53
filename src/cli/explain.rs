//! `cachekeeper explain`

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::admin_client::get;
use super::output::{Exit, Output};
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::explain::{Explanation, State, explain as explain_key};
use cachekeeper_protocol::units::show_duration;

/// Says why a key has the value that it has. A running worker is asked what happened to it.
pub async fn explain(
    context: &Context,
    config: &Config,
    key: &str,
    out: &Output,
) -> Result<Exit, EngineError> {
    // The query's types decide to which dataset a key belongs. One that cannot work has no keys.
    for dataset in context.catalog.iter() {
        if let Err(error @ EngineError::Cache(_)) = dataset.source(&context.postgres).await {
            return Err(error);
        }
    }
    let explained = explain_key(context, key).await?;
    let touches = touches_of_worker(config, key).await;
    let mut json = serde_json::to_value(&explained).unwrap_or_default();
    if let (Some(Value::Array(touches)), Some(json)) = (&touches, json.as_object_mut()) {
        let newest_first = touches.iter().rev().cloned().collect();
        json.insert("touches".to_owned(), Value::Array(newest_first));
    }
    out.result(&text(&explained, touches.as_ref()), &json);
    Ok(if explained.verdict.state == State::Wrong { Exit::Failed } else { Exit::Ok })
}

/// None: no worker of this configuration answers, or it is of an earlier version.
async fn touches_of_worker(config: &Config, key: &str) -> Option<Value> {
    // What is special in a pattern or a query stands for itself.
    let pattern = cachekeeper_protocol::glob::escape(key);
    let pattern: String = pattern.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let answer = get(&config.admin, &format!("/api/v1/touches?limit=20&key={pattern}")).await.ok()?;
    let mut body: Value = serde_json::from_str(&answer.body).ok()?;
    (answer.code == 200).then(|| body.get_mut("touches").map(Value::take)).flatten()
}

fn text(explained: &Explanation, touches: Option<&Value>) -> String {
    let mut text = format!("{}\n\n", explained.verdict.sentence);
    let mut line = |name: &str, value: &str| {
        text.push_str(&format!("{name:<10} {value}\n"));
    };
    line("key", &explained.key);
    if let Some(dataset) = &explained.dataset {
        let parts = explained.placeholders.iter().map(|(column, value)| format!("{column} = {value}"));
        line("dataset", &format!("{dataset} ({})", parts.collect::<Vec<_>>().join(", ")));
    }
    line("redis", &entry(explained));
    if explained.dataset.is_some() {
        line("postgres", &row(explained));
        for difference in &explained.differences {
            let shown =
                |value: &Option<Value>| value.as_ref().map_or("(missing)".to_owned(), Value::to_string);
            let column = if difference.column.is_empty() { "value" } else { &difference.column };
            let (redis, postgres) = (shown(&difference.redis), shown(&difference.postgres));
            line("", &format!("{column}: {redis} in Redis, {postgres} in Postgres"));
        }
        if !explained.row.tags.is_empty() {
            line("tags", &explained.row.tags.join(", "));
        }
        line("watermark", &watermark(explained));
        line("coverage", explained.not_covered.as_deref().unwrap_or("changes are captured"));
        let pending = explained.pending.join("; ");
        line("pending", if pending.is_empty() { "nothing" } else { &pending });
    }
    let slot = &explained.slot;
    let touched = slot
        .stamp
        .as_deref()
        .map_or("not touched yet".to_owned(), |stamp| format!("last touched at {stamp}"));
    let floor = slot
        .floor
        .as_deref()
        .map_or(String::new(), |floor| format!("; nothing older than {floor} is stored"));
    line("slot", &format!("{}, {touched}{floor}", slot.number));
    match touches.and_then(Value::as_array) {
        None => {
            line("history", "no worker was asked: none answers on the admin listener of this configuration");
        }
        Some(touches) if touches.is_empty() => line("history", "nothing, as far as the worker remembers"),
        Some(touches) => {
            for (at, touch) in touches.iter().rev().enumerate() {
                line(if at == 0 { "history" } else { "" }, &touched_at(touch));
            }
        }
    }
    text.trim_end().to_owned()
}

fn entry(explained: &Explanation) -> String {
    let Some(entry) = &explained.entry else { return "(no entry)".to_owned() };
    let left = entry.left_ms.map_or_else(
        || "without end".to_owned(),
        |left| format!("{} left", show_duration(Duration::from_secs(left / 1000))),
    );
    let value = match (&entry.value, &entry.undecodable) {
        (Some(value), _) => value.to_string(),
        (None, reason) => format!("(cannot be decoded: {})", reason.as_deref().unwrap_or_default()),
    };
    format!("{value}  ({} bytes, {left})", entry.bytes)
}

fn row(explained: &Explanation) -> String {
    let row = &explained.row;
    match (&row.not_asked, &row.refused, &row.value) {
        (Some(reason), ..) => format!("(not asked: {reason})"),
        (_, Some(reason), _) => format!("(the row has no entry: {reason})"),
        (_, _, Some(value))
            if explained.entry.as_ref().and_then(|entry| entry.value.as_ref()) == Some(value) =>
        {
            "the same".to_owned()
        }
        (_, _, Some(value)) => value.to_string(),
        _ => "(no row)".to_owned(),
    }
}

fn watermark(explained: &Explanation) -> String {
    match &explained.watermark {
        None => "none: no feed has run".to_owned(),
        Some(watermark) => match watermark.age_ms {
            Some(age) => format!("{age} ms old"),
            None => format!("{}, but not for this dataset", watermark.as_of),
        },
    }
}

fn touched_at(touch: &Value) -> String {
    let word = |name: &str| touch.get(name).and_then(Value::as_str).unwrap_or_default();
    let at = touch.get("at_ms").and_then(Value::as_i64).and_then(DateTime::<Utc>::from_timestamp_millis);
    let at = at.map_or(String::new(), |at| at.format("%Y-%m-%d %H:%M:%S%.3fZ").to_string());
    let reason = word("reason");
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{at}  {} ({}){reason}", word("what"), word("cause"))
}
