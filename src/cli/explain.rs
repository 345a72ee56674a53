//! `cachekeeper explain`

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::output::{Exit, Output};
use super::worker_asked::ask;
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::explain::{Explanation, State, explain as explain_key};
use cachekeeper_engine::shown::escaped;
use cachekeeper_protocol::units::show_duration;

/// Says why a key has the value that it has. A running worker is asked what happened to it.
pub async fn explain(
    context: &Context,
    config: &Config,
    key: &str,
    out: &Output,
) -> Result<Exit, EngineError> {
    let explained = explain_key(context, key).await?;
    let history = history_of_worker(config, explained.dataset.as_deref(), key).await;
    let mut json = serde_json::to_value(&explained).unwrap_or_default();
    if let (History::Told { touches, since_ms }, Some(json)) = (&history, json.as_object_mut()) {
        json.insert("touches".to_owned(), Value::Array(touches.clone()));
        json.insert("touches_since_ms".to_owned(), since_ms.clone());
    }
    out.result(&text(&explained, &history), &json);
    Ok(match &explained.row.not_asked {
        Some(not_asked) if not_asked.is_of_configuration => Exit::Configuration,
        Some(_) => Exit::Unavailable,
        None if explained.verdict.state == State::Wrong => Exit::Failed,
        None => Exit::Ok,
    })
}

/// What the worker of this configuration remembers.
enum History {
    /// It tells nothing; why.
    NotTold(String),
    /// What answers there belongs to another installation.
    OfAnother(String),
    /// The newest first.
    Told { touches: Vec<Value>, since_ms: Value },
}

/// Touches that are told.
const TOUCHES_MAX: usize = 20;

async fn history_of_worker(config: &Config, dataset: Option<&str>, key: &str) -> History {
    // What is special in a pattern or a query stands for itself.
    let plain = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02x}")).collect() };
    let of_key = format!("key={}", plain(&cachekeeper_protocol::glob::escape(key)));
    // A backfill is told once, and not with each key.
    let of_all = dataset.map(|dataset| format!("what=filled&dataset={}", plain(dataset)));
    let mut told = Vec::new();
    let mut begins = Value::Null;
    for filter in std::iter::once(of_key).chain(of_all) {
        let path = format!("/api/v1/touches?limit={TOUCHES_MAX}&{filter}");
        let mut body = match ask(config, &path).await {
            Ok(body) => body,
            Err(refused) => return History::NotTold(refused.error),
        };
        let namespace = body.get("namespace").and_then(Value::as_str).unwrap_or_default();
        if namespace != config.service.namespace {
            return History::OfAnother(namespace.to_owned());
        }
        begins = body.get_mut("since_ms").map(Value::take).unwrap_or_default();
        let Some(Value::Array(touches)) = body.get_mut("touches").map(Value::take) else {
            return History::NotTold("its answer has another form than agreed".to_owned());
        };
        told.extend(touches);
    }
    let number = |touch: &Value| touch.get("number").and_then(Value::as_u64).unwrap_or_default();
    told.sort_by_key(|touch| std::cmp::Reverse(number(touch)));
    told.truncate(TOUCHES_MAX);
    History::Told { touches: told, since_ms: begins }
}

fn text(explained: &Explanation, history: &History) -> String {
    let mut text = format!("{}\n\n", escaped(&explained.verdict.sentence));
    let mut line = |name: &str, value: &str| {
        text.push_str(&format!("{name:<10} {}\n", escaped(value)));
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
    for (at, told) in told(history).iter().enumerate() {
        line(if at == 0 { "history" } else { "" }, told);
    }
    text.trim_end().to_owned()
}

/// The history in lines.
fn told(history: &History) -> Vec<String> {
    match history {
        History::NotTold(why) => vec![format!("what touched it is not told: {why}")],
        History::OfAnother(namespace) => vec![format!(
            "another installation's worker answers there (namespace {namespace}): see [admin] listen"
        )],
        History::Told { touches, since_ms } if touches.is_empty() => {
            vec![format!("nothing since {}, when the worker's memory begins", moment(Some(since_ms)))]
        }
        History::Told { touches, .. } => touches.iter().map(touched_at).collect(),
    }
}

fn entry(explained: &Explanation) -> String {
    let Some(entry) = &explained.entry else { return "(no entry)".to_owned() };
    let left = entry.left_ms.map_or_else(
        || "without end".to_owned(),
        |left| format!("{} left", show_duration(Duration::from_secs(left / 1000))),
    );
    let value = match (&entry.value, &entry.undecodable) {
        (Some(value), _) => value.to_string(),
        (None, reason) => format!("(not shown: {})", reason.as_deref().unwrap_or_default()),
    };
    format!("{value}  ({}, {} bytes, {left})", entry.kind, entry.bytes)
}

fn row(explained: &Explanation) -> String {
    let row = &explained.row;
    match (&row.not_asked, &row.refused, &row.value) {
        (Some(reason), ..) => format!("(not asked: {reason})"),
        _ if row.impossible.is_some() => "(no row can have this key)".to_owned(),
        _ if row.not_shown.is_some() => {
            format!("(not shown: {})", row.not_shown.as_deref().unwrap_or_default())
        }
        (_, Some(reason), _) => format!("(the row has no entry: {reason})"),
        (_, _, Some(value))
            if explained.entry.as_ref().and_then(|entry| entry.value.as_ref()) == Some(value) =>
        {
            "the same".to_owned()
        }
        (_, _, Some(value)) => value.to_string(),
        _ => match (&row.spelled, &row.hidden) {
            (Some(spelled), _) => format!("(a row whose key is {spelled})"),
            (None, Some(hidden)) => format!("(no row that the role sees; row security of {hidden} decides)"),
            (None, None) => "(no row)".to_owned(),
        },
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
    let at = moment(touch.get("at_ms"));
    let reason = word("reason");
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{at}  {} ({}){reason}", word("what"), word("cause"))
}

fn moment(at_ms: Option<&Value>) -> String {
    let at = at_ms.and_then(Value::as_i64).and_then(DateTime::<Utc>::from_timestamp_millis);
    at.map_or(String::new(), |at| at.format("%Y-%m-%d %H:%M:%S%.3fZ").to_string())
}
