//! The directory: what applications in any language are told of a namespace, so that nothing is configured twice. It stands in
//! Redis and is a stable interface (docs/directory.md): later versions add to it, and a number tells what has another meaning.

use serde::Serialize;

use cachekeeper_config::{Codec, Config, Dataset, Format, Rows};

/// Grows when what stands there means something else. What is merely added needs no new number.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Service<'a> {
    version: u32,
    events: Events<'a>,
    writes: Writes<'a>,
}

#[derive(Serialize)]
struct Events<'a> {
    channels: &'a [String],
    stream: Option<&'a str>,
}

#[derive(Serialize)]
struct Writes<'a> {
    stream: Option<&'a str>,
    reply_prefix: &'a str,
}

#[derive(Serialize)]
struct Entries<'a> {
    key: &'a str,
    format: &'static str,
    rows: &'static str,
    compression: Option<&'static str>,
    /// Whether a key without a row may hold an explicit null.
    negative: bool,
    /// Whether commands can write it.
    write: bool,
}

/// What is the whole namespace's: where events and write commands go.
#[must_use]
pub(crate) fn of_service(config: &Config) -> String {
    let service = Service {
        version: VERSION,
        events: Events {
            channels: &config.invalidation.channels,
            stream: config.invalidation.stream.as_deref(),
        },
        writes: Writes { stream: config.writes.stream.as_deref(), reply_prefix: &config.writes.reply_prefix },
    };
    serde_json::to_string(&service).unwrap_or_default()
}

/// How the entries of a dataset are named and read.
#[must_use]
pub(crate) fn of_dataset(dataset: &Dataset) -> String {
    let entries = Entries {
        key: dataset.key.as_str(),
        format: dataset.format.name(),
        rows: match dataset.rows {
            Rows::One => "one",
            Rows::Many => "many",
        },
        compression: dataset.compression.map(|compression| match compression.codec {
            Codec::Zstd => "zstd",
            Codec::Lz4 => "lz4",
        }),
        // The bytes of a column have no null of their own, and neither has a hash.
        negative: dataset.negative_ttl.is_some()
            && !matches!(dataset.format, Format::Raw { .. } | Format::Hash),
        write: dataset.write.is_some(),
    };
    serde_json::to_string(&entries).unwrap_or_default()
}
