//! Write statements, and the streams' names: what can be told without the servers.

use super::reader::Reader;
use super::sense;
use crate::Dataset;
use crate::streams::{keys_of, used_keys};
use cachekeeper_protocol::parameters::ParameterizedSql;
use cachekeeper_protocol::template::Alphabet;

/// `[dataset.<name>.write] statement`
pub fn statement(reader: &mut Reader<'_>, dataset: &str) -> Option<String> {
    let path = format!("dataset.{dataset}.write.statement");
    let text = reader.optional_text(&path)?;
    let parsed = ParameterizedSql::parse(&text);
    match parsed.starts() {
        [] => {
            let help = "give the SQL that writes the dataset's rows, with :name where a value goes";
            reader.error(&path, "the write statement is empty", help);
            return None;
        }
        [_] => {}
        [_, second, ..] => reader.error_within(
            &path,
            *second,
            "a second statement begins here",
            "give one statement; `with … as (…)` holds several, or a function does",
        ),
    }
    if let Some(at) = parsed.numbered() {
        let help = "write :name, and give the value under this name";
        reader.error_within(&path, at, "a parameter has a number here instead of a name", help);
    } else if parsed.places().next().is_none() {
        let help = "write :name where a value goes";
        reader.warning(&path, "the write statement has no parameter, so every write does the same", help);
    }
    sense::of_statement(reader, &path, &text);
    Some(text)
}

/// Streams, what is kept beside them, and the entries of datasets may not have the same key. Types are not known yet: a
/// placeholder is taken to hold no `:`.
pub(crate) fn check_streams(
    reader: &mut Reader<'_>,
    datasets: &[Dataset],
    events: Option<&str>,
    writes: Option<&str>,
) {
    if let (Some(events), Some(writes)) = (events, writes) {
        let [own, own_dead] = keys_of(writes);
        let [other, other_dead] = keys_of(events);
        let shared = [&own, &own_dead].into_iter().find(|key| **key == other || **key == other_dead);
        if let Some(key) = shared {
            let is_default = !reader.source.has("writes.stream");
            let path = if is_default { "invalidation.stream" } else { "writes.stream" };
            let message = format!("events and write commands would both use the key {key}");
            reader.error(path, message, "give [invalidation] stream and [writes] stream names of their own");
        }
    }
    for dataset in datasets {
        for (setting, key) in used_keys(datasets, events, writes) {
            if dataset.key.could_be(|_| Alphabet::Segment, &key) {
                let message = format!("keys {} could coincide with {key}, which {setting} uses", dataset.key);
                let help = "give the stream another name, or the dataset's keys another prefix";
                reader.error(&format!("dataset.{}.key", dataset.name), message, help);
            }
        }
    }
}

/// Lists for replies are those of producers: neither a stream nor an entry may have such a name.
pub(crate) fn check_reply_prefix(
    reader: &mut Reader<'_>,
    datasets: &[Dataset],
    streams: [Option<&str>; 2],
    prefix: &str,
) {
    let path = "writes.reply_prefix";
    if prefix.is_empty() {
        return;
    }
    for stream in streams.into_iter().flatten().filter(|stream| stream.starts_with(prefix)) {
        let help = "give replies a prefix of their own, such as \"cache:reply:\"";
        reader.error(path, format!("the stream {stream} begins with the prefix of replies"), help);
    }
    for dataset in datasets.iter().filter(|dataset| dataset.key.prefix().starts_with(prefix)) {
        let message = format!("keys {} begin with {prefix}, as lists for replies do", dataset.key);
        let help = "give the dataset's keys another prefix, or set [writes] reply_prefix";
        reader.error(&format!("dataset.{}.key", dataset.name), message, help);
    }
}
