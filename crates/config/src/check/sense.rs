//! What is allowed, and hardly meant: warnings. Each says what follows from it.

use std::time::Duration;

use super::reader::Reader;
use crate::raw::join;
use crate::{Dataset, Feed, FeedMode, OnMiss, Scope};
use cachekeeper_protocol::units::{show_duration, show_size};

/// Lives below it are those of a jitter that nobody reckoned: the shortest `ttl` is a second.
const LIFE_MIN: Duration = Duration::from_millis(500);

/// Of `[feed]`, and of all datasets together.
pub(super) fn of_feed(reader: &mut Reader<'_>, feed: &Feed, datasets: &[Dataset]) {
    let watching = datasets.iter().filter(|dataset| !dataset.watch.is_empty()).count();
    if feed.mode == FeedMode::Off && 0 < watching {
        let plural = if watching == 1 { "dataset" } else { "datasets" };
        let message = format!("mode = \"off\", so the watch rules of {watching} {plural} have no effect");
        let help = "set mode = \"outbox\"; or leave the rules out, and publish events";
        reader.warning("feed.mode", message, help);
    }
    if feed.max_outbox < feed.max_rows {
        let path = if reader.has("feed.max_outbox") { "feed.max_outbox" } else { "feed.max_rows" };
        let message = format!(
            "one statement may change {} rows, and the outbox holds {} KiB: what does not fit is left out, and its entries are \
             revalidated",
            feed.max_rows, feed.max_outbox
        );
        reader.warning(path, message, "raise max_outbox above max_rows, by far");
    }
}

/// Of `warm` where nothing begins a backfill, and nothing else brings entries either.
pub(super) fn of_filling(reader: &mut Reader<'_>, dataset: &Dataset, follows: bool, hears: bool) {
    let Some(warm) = &dataset.warm else { return };
    let own = |key: &str| format!("dataset.{}.{key}", dataset.name);
    // A wrong schedule was meant.
    let has_backfill = warm.on_start || reader.has(&own("warm.schedule"));
    // What changes, or is named by an event, is loaded where Redis is to hold every row.
    let is_told = dataset.scope == Scope::All && (hears || follows && !dataset.watch.is_empty());
    let is_filled = dataset.on_miss == OnMiss::Load || dataset.write.is_some();
    if !has_backfill && !is_told && !is_filled {
        let message = "nothing fills this dataset: `on_start` is false, there is no `schedule`, and no event, change or miss brings entries";
        let help = "add a schedule, on_start = true or on_miss = \"load\"; else only `cachekeeper warm` and the library fill it";
        reader.warning(&own("warm.on_start"), message, help);
    }
}

/// Of a dataset.
pub(super) fn of_dataset(reader: &mut Reader<'_>, dataset: &Dataset) {
    let own = |key: &str| format!("dataset.{}.{key}", dataset.name);
    doubles(reader, dataset);
    let shortest = dataset.ttl.mul_f64(1.0 - dataset.ttl_jitter);
    if shortest < LIFE_MIN {
        let shown = Duration::from_millis(u64::try_from(shortest.as_millis()).unwrap_or(u64::MAX));
        let message = format!(
            "jitter leaves some entries a life of {} ({} less {:.0}%)",
            show_duration(shown),
            show_duration(dataset.ttl),
            dataset.ttl_jitter * 100.0
        );
        let path = inherited(reader, dataset, "ttl_jitter");
        reader.warning(
            &path,
            message,
            "a smaller jitter, or a longer ttl: such entries are hardly ever read",
        );
    }
    if dataset.key.as_str().contains("${") {
        let message = "the `$` before the brace stands in every key";
        reader.warning(&own("key"), message, "a placeholder is written {column}");
    }
    let limit = dataset.warm.as_ref().and_then(|warm| warm.limit);
    if let Some(limit) = limit {
        if dataset.scope == Scope::All {
            let message = format!("scope = \"all\", but a backfill ends after {limit} entries");
            let help = "leave `limit` out, or `scope`: Redis then holds what was warmed or asked for";
            reader.warning(&own("scope"), message, help);
        }
        let order_by = own("warm.order_by");
        if !reader.has(&order_by) {
            let message = format!("which {limit} entries are filled is not defined");
            reader.warning(&own("warm.limit"), message, "say which come first, with `order_by`");
        }
    }
    if let Some(negative) = dataset.negative_ttl.filter(|negative| dataset.ttl < *negative) {
        let message = format!(
            "that a row is not there is kept for {}, longer than a row ({})",
            show_duration(negative),
            show_duration(dataset.ttl)
        );
        let path = inherited(reader, dataset, "negative_ttl");
        reader.warning(&path, message, "a shorter one: new rows are then found without an event or a change");
    }
    if dataset.compression.is_some_and(|compression| dataset.max_value_size <= compression.min_size) {
        let most = u64::try_from(dataset.max_value_size).unwrap_or(u64::MAX);
        let message = format!(
            "no value is compressed: larger ones than {} are refused (`max_value_size`)",
            show_size(most)
        );
        let path = join(&inherited(reader, dataset, "compression"), "min_size");
        reader.warning(&path, message, "a smaller one, for example \"1KiB\"");
    }
}

fn inherited(reader: &Reader<'_>, dataset: &Dataset, key: &str) -> String {
    let own = format!("dataset.{}.{key}", dataset.name);
    if reader.has(&own) { own } else { format!("defaults.{key}") }
}

fn doubles(reader: &mut Reader<'_>, dataset: &Dataset) {
    for (at, tag) in dataset.tags.iter().enumerate() {
        if dataset.tags.iter().take(at).any(|earlier| earlier == tag) {
            let path = format!("dataset.{}.tags.{at}", dataset.name);
            reader.warning(&path, format!("the tag {tag} stands twice"), "once is enough");
        }
    }
    for (at, rule) in dataset.watch.iter().enumerate() {
        if dataset.watch.iter().take(at).any(|earlier| earlier == rule) {
            let path = format!("dataset.{}.watch", dataset.name);
            let message = format!("a watch rule of {} stands twice", rule.table);
            reader.warning(&path, message, "once is enough");
        }
    }
}

/// Of a write statement with named parameters.
pub(super) fn of_statement(reader: &mut Reader<'_>, path: &str, statement: &str) {
    let lower = statement.trim_start().to_ascii_lowercase();
    let words = || lower.split(|one: char| !one.is_alphanumeric() && one != '_');
    if matches!(words().next(), Some("update" | "delete")) && !words().any(|word| word == "where") {
        let message = "the write statement has no `where`, so each write touches every row of the table";
        reader.warning(path, message, "choose the row: where id = :id");
    }
    let quoted = statement.match_indices("':").find(|(at, _)| {
        let rest = statement.get(at + 2..).unwrap_or_default();
        let name = rest.find(|one: char| !one.is_ascii_alphanumeric() && one != '_').unwrap_or_default();
        let is_name = rest.starts_with(|one: char| one.is_ascii_alphabetic());
        is_name && rest.get(name..).is_some_and(|rest| rest.starts_with('\''))
    });
    if quoted.is_some() {
        let message = "a name with a colon stands in quotes here, where it is text and no parameter";
        reader.warning(path, message, "write :name without quotes");
    }
}
