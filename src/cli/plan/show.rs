//! A plan as people and programs read it.

use std::time::Duration;

use serde_json::{Value, json};

use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::decoded::decoded;
use cachekeeper_engine::plan::{DatasetPlan, MemoryPlan, PathVerdict};
use cachekeeper_engine::stores::redis::MemoryFacts;
use cachekeeper_protocol::entry::Shape;
use cachekeeper_protocol::units::show_duration;

/// The longest value that is shown, in characters.
const VALUE_MAX: usize = 400;
/// Tags of an entry that are shown.
const TAGS_MAX: usize = 20;

/// What Redis keeps for a namespace, whatever is in it: three tables, the metadata.
pub const TABLES: u64 = 3 * 1_048_576 + 65_536;

/// A plan as lines, the name of each before it.
pub fn text(dataset: &Dataset, plan: &DatasetPlan, facts: Option<&MemoryFacts>) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("  {name:<10}{text}"));
    line("rows", rows(plan));
    line("values", values(plan));
    for (reason, (count, key)) in &plan.sample.refused {
        let key = key.as_ref().map_or(String::new(), |key| format!(", such as {key}"));
        line("refused", format!("{} of those looked at{key}: {reason}", number(*count as u64)));
    }
    line("lifetimes", lifetimes(dataset, plan));
    line("backfill", backfill(plan));
    if let Some(memory) = &plan.memory {
        line("memory", memory_text(memory, plan, facts));
    }
    if let Some(present) = plan.present {
        let asked = plan.sample.keys.len();
        line(
            "in Redis",
            format!("{} of {} keys that were looked for", number(present as u64), number(asked as u64)),
        );
    }
    path(plan).into_iter().for_each(|text| line("load", text));
    triggers(plan).into_iter().for_each(|text| line("triggers", text));
    example(dataset, plan).into_iter().for_each(|text| line("entry", text));
    if let Some((life, bytes)) = plan.negative {
        let life = life.as_millis();
        line(
            "no row",
            format!("a key that was asked for and has none: SET KEY <{bytes} bytes: null> PX {life}"),
        );
    }
    plan.limits.iter().for_each(|limit| line("limit", limit.clone()));
    format!("dataset {}\n{}\n", dataset.name(), lines.join("\n"))
}

fn rows(plan: &DatasetPlan) -> String {
    let Some(counted) = plan.counted else {
        return format!(
            "about {} (an estimate of the planner's)",
            number(plan.estimated_rows.unwrap_or_default())
        );
    };
    let mut text = format!("{}, {} keys", number(counted.rows), number(plan.keys));
    if counted.rows != plan.keys && 1 < counted.rows_max {
        text.push_str(&format!(", at most {} rows a key", number(counted.rows_max)));
    }
    if 0 < counted.keyless_rows {
        text.push_str(&format!(
            "; {} rows have a null in the key, and no entry",
            number(counted.keyless_rows)
        ));
    }
    text
}

fn values(plan: &DatasetPlan) -> String {
    let Some((least, sum, most)) = plan.sample.values() else {
        return "no row was looked at".to_owned();
    };
    let count = plan.sample.sizes.len();
    let all = scaled(sum, plan.keys, count);
    let how = match (plan.sample.is_random, plan.keys <= count as u64) {
        (true, true) => "all of them read".to_owned(),
        (true, false) => format!("{} read at random", number(count as u64)),
        (false, _) => format!("the first {} read", number(count as u64)),
    };
    let mean = scaled(sum, 1, count);
    format!(
        "{} bytes each ({} to {}), {} in all; {how}",
        number(mean),
        number(least as u64),
        number(most as u64),
        bytes(all)
    )
}

fn lifetimes(dataset: &Dataset, plan: &DatasetPlan) -> String {
    if let Some(column) = &dataset.settings.ttl_column {
        return own_lifetimes(column, dataset, plan);
    }
    let (shortest, longest) = lives(dataset);
    let span = match shortest == longest {
        true => show_duration(longest),
        false => format!("{} to {}", show_duration(shortest), show_duration(longest)),
    };
    let rate = expiry_rate(dataset, plan);
    let kept = match dataset.lifetimes.max_stale {
        Duration::ZERO => String::new(),
        kept => format!(", {} longer while Postgres is down", show_duration(kept)),
    };
    format!("{span}{kept}; with all keys in Redis {rate:.1} expire a second")
}

/// Lifetimes that a column says.
fn own_lifetimes(column: &str, dataset: &Dataset, plan: &DatasetPlan) -> String {
    let most = show_duration(dataset.lifetimes.ttl);
    let mut lives = plan.sample.lives.clone();
    lives.sort_unstable();
    let ended = match plan.sample.ended {
        0 => String::new(),
        ended => format!("; of {} more the life has ended, so they have no entry", number(ended as u64)),
    };
    let shown =
        |life: Option<&u64>| show_duration(Duration::from_secs(life.copied().unwrap_or_default() / 1_000));
    let seen = match lives.len() {
        0 => "no row of the sample has an entry".to_owned(),
        count => {
            let (first, middle, last) =
                (shown(lives.first()), shown(lives.get(count / 2)), shown(lives.last()));
            format!("in the sample {first} to {last}, half at most {middle}")
        }
    };
    format!("as {column} says, {most} at most: {seen}{ended}")
}

fn lives(dataset: &Dataset) -> (Duration, Duration) {
    let longest = dataset.lifetimes.ttl;
    let shortest = longest.mul_f64(1.0 - dataset.lifetimes.jitter);
    // Fractions of a second say nothing here.
    let round = |life: Duration| if life.as_secs() < 10 { life } else { Duration::from_secs(life.as_secs()) };
    (round(shortest), longest)
}

#[expect(clippy::cast_precision_loss, reason = "a rate that is shown with one digit")]
fn expiry_rate(dataset: &Dataset, plan: &DatasetPlan) -> f64 {
    let mean = dataset.lifetimes.ttl.mul_f64(1.0 - dataset.lifetimes.jitter / 2.0);
    plan.keys as f64 / mean.as_secs_f64().max(0.001)
}

fn backfill(plan: &DatasetPlan) -> String {
    match plan.backfilled {
        None => "none: entries come when they are asked for, or written".to_owned(),
        Some(count) if count < plan.keys => format!("{} entries, the most wanted first", number(count)),
        Some(count) => format!("{} entries, all", number(count)),
    }
}

fn memory_text(memory: &MemoryPlan, plan: &DatasetPlan, facts: Option<&MemoryFacts>) -> String {
    let server = facts.map_or(String::new(), |facts| {
        format!(" in {} {}.{}", facts.product, facts.version.0, facts.version.1)
    });
    let tags = match memory.different_tags {
        Some(count) => format!(", and {} for {} tags", bytes(memory.tags), number(count)),
        None => String::new(),
    };
    let each = memory.entries.checked_div(plan.keys).unwrap_or_default();
    format!(
        "about {} for all keys{server}: {} bytes an entry with its key{tags}",
        bytes(memory.entries + memory.tags),
        number(each)
    )
}

fn path(plan: &DatasetPlan) -> Vec<String> {
    let mut lines = Vec::new();
    for (table, verdict) in &plan.path.tables {
        lines.push(match verdict {
            PathVerdict::Indexes(indexes) => format!("{table} by index {}", few(indexes)),
            PathVerdict::Whole(Some(sql)) => {
                format!("reads the whole of {table} each time, for want of an index: {sql}")
            }
            PathVerdict::Whole(None) => {
                format!("reads the whole of {table} each time: {UNHELPED}")
            }
        });
    }
    if !plan.path.read_whole.is_empty() {
        lines.push(format!("reads the whole of {} besides, each time", few(&plan.path.read_whole)));
    }
    lines
}

/// Why no index can help.
pub const UNHELPED: &str = "the key is computed, or the query keeps its condition from the table (`limit`, `distinct`, a window): no index \
     helps as it is";

fn few(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
    let rest = names.len().saturating_sub(3);
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

fn triggers(plan: &DatasetPlan) -> Vec<String> {
    let Some(triggers) = &plan.triggers else {
        return vec!["none: nothing is watched, or [feed] mode is off".to_owned()];
    };
    let mut lines = triggers.statements.clone();
    if let Some(obstacle) = &triggers.obstacle {
        lines.push(obstacle.clone());
    }
    match triggers.total {
        0 if lines.is_empty() => lines.push("all there: `migrate` has nothing to do".to_owned()),
        0 => {}
        total => {
            lines.push(format!("{} statements in all: `cachekeeper migrate --print`", number(total as u64)));
        }
    }
    lines
}

fn example(dataset: &Dataset, plan: &DatasetPlan) -> Vec<String> {
    let Some(example) = &plan.sample.example else { return Vec::new() };
    let size = number(example.value.len() as u64);
    let format = &dataset.settings.format;
    let mut lines = vec![match format.shape() {
        Shape::String => {
            format!("SET {} <{size} bytes: {}> PX {}", example.key, format.name(), example.life_ms)
        }
        Shape::Hash => format!("HSET {} <{size} bytes of fields>, PEXPIRE {}", example.key, example.life_ms),
    }];
    let tags: Vec<&str> = example.tags.iter().take(TAGS_MAX).map(String::as_str).collect();
    if !tags.is_empty() {
        lines.push(format!("tags {}", tags.join(", ")));
    }
    let value = decoded(&example.value, Some(format)).map(|value| value.to_string());
    if let Ok(value) = value {
        let cut: String = value.chars().take(VALUE_MAX).collect();
        lines.push(if cut.len() < value.len() { format!("{cut} …") } else { cut });
    }
    lines
}

/// What Redis has, and what it keeps for a namespace.
pub fn server(facts: &MemoryFacts) -> String {
    let limit = facts.limit.map_or("no maxmemory".to_owned(), |limit| format!("maxmemory {}", bytes(limit)));
    format!(
        "{} {}.{}: {} used, {limit}, {} keys; a namespace itself takes about {}",
        facts.product,
        facts.version.0,
        facts.version.1,
        bytes(facts.used),
        number(facts.keys),
        bytes(TABLES)
    )
}

/// The same for programs.
pub fn redis(facts: &MemoryFacts) -> Value {
    json!({
        "product": facts.product,
        "version": format!("{}.{}", facts.version.0, facts.version.1),
        "used_bytes": facts.used,
        "maxmemory_bytes": facts.limit,
        "keys": facts.keys,
        "namespace_bytes": TABLES,
    })
}

/// A plan for programs.
pub fn facts(dataset: &Dataset, plan: &DatasetPlan) -> Value {
    let (shortest, longest) = lives(dataset);
    let millis = |life: Duration| u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    let count = plan.sample.sizes.len();
    let values = plan.sample.values().map(|(least, sum, most)| {
        json!({ "min_bytes": least, "mean_bytes": scaled(sum, 1, count), "max_bytes": most, "all_bytes": scaled(sum, plan.keys, count) })
    });
    let refused: Vec<Value> = plan
        .sample
        .refused
        .iter()
        .map(|(reason, (count, key))| json!({ "reason": reason, "count": count, "key": key }))
        .collect();
    let paths: Vec<Value> = plan
        .path
        .tables
        .iter()
        .map(|(table, verdict)| match verdict {
            PathVerdict::Indexes(indexes) => {
                json!({ "table": table, "indexes": indexes, "create_index": null })
            }
            PathVerdict::Whole(sql) => json!({ "table": table, "indexes": [], "create_index": sql }),
        })
        .collect();
    let example = plan.sample.example.as_ref().map(|example| {
        let value = decoded(&example.value, Some(&dataset.settings.format)).ok();
        json!({ "key": example.key, "bytes": example.value.len(), "px": example.life_ms, "tags": example.tags, "value": value })
    });
    json!({
        "dataset": dataset.name(),
        "rows": { "estimated": plan.estimated_rows, "counted": plan.counted.map(|counted| counted.rows),
            "without_key": plan.counted.map(|counted| counted.keyless_rows), "most_of_a_key": plan.counted.map(|counted| counted.rows_max) },
        "keys": { "count": plan.keys, "is_counted": plan.counted.is_some(), "shared": plan.counted.map(|counted| counted.shared_keys) },
        "sample": { "keys": count, "rows": plan.sample.rows, "is_random": plan.sample.is_random, "tags": plan.sample.tags, "refused": refused },
        "values": values,
        "lifetime": { "shortest_ms": millis(shortest), "longest_ms": millis(longest), "max_stale_ms": millis(dataset.lifetimes.max_stale),
            "expire_per_second": expiry_rate(dataset, plan),
            "column": dataset.settings.ttl_column, "of_sample_ms": plan.sample.lives, "ended": plan.sample.ended },
        "negative": plan.negative.map(|(life, bytes)| json!({ "px": millis(life), "bytes": bytes })),
        "backfilled": plan.backfilled,
        "memory": plan.memory.map(|memory| json!({ "about_bytes": memory.entries + memory.tags, "entries_bytes": memory.entries,
            "tags_bytes": memory.tags, "different_tags": memory.different_tags })),
        "in_redis": plan.present.map(|present| json!({ "found": present, "asked": plan.sample.keys.len() })),
        "load": { "tables": paths, "read_whole": plan.path.read_whole },
        "triggers": plan.triggers.as_ref().map(|triggers| json!({ "statements": triggers.statements, "total": triggers.total,
            "obstacle": triggers.obstacle })),
        "example": example,
        "limits": plan.limits,
    })
}

/// What `all` have, if `some` have this.
fn scaled(of_some: usize, all: u64, some: usize) -> u64 {
    let product = u128::from(all) * of_some as u128;
    u64::try_from(product / (some as u128).max(1)).unwrap_or(u64::MAX)
}

/// A number with commas.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if 0 < position && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in a unit that suits them.
fn bytes(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = units.into_iter().find(|(_, shift)| (1_u64 << shift) <= bytes);
    let Some((unit, shift)) = fitting else { return format!("{bytes} bytes") };
    // One digit behind the point.
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(
            (number(0), number(999), number(1_000), number(1_234_567)),
            ("0".into(), "999".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!(
            (bytes(1023), bytes(1536), bytes(3 << 20)),
            ("1023 bytes".into(), "1.5 KiB".into(), "3.0 MiB".into())
        );
    }
}
