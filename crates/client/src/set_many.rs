//! Many values at once: chunks in parallel, every reply looked at, and a report of what was stored.

use std::fmt::Display;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::codec::Codec;
use super::core::{Cache, Core};
use super::error::ClientError;
use super::policy::Lifetime;
use cachekeeper_engine::log_limit;
use cachekeeper_protocol::entry::EntryBatch;

/// How many values are stored.
#[derive(Debug, Clone, Copy)]
pub struct SetManyOptions {
    /// How long they live.
    pub life: Lifetime,
    /// Values of one script (default 250: Redis serves others in between; more is not faster).
    pub chunk: usize,
    /// Chunks on their way at the same time (default 8).
    pub parallel: usize,
    /// Whether fills of the same keys that began before are refused (default). Without it a plain pipeline of `SET` is
    /// sent: right for keys that nobody loads.
    pub refuses_older_fills: bool,
}

impl SetManyOptions {
    /// Values live this long.
    #[must_use]
    pub fn ttl(life: impl Into<Lifetime>) -> Self {
        Self { life: life.into(), chunk: 250, parallel: 8, refuses_older_fills: true }
    }
}

/// What became of them.
#[derive(Debug, Clone, Default)]
pub struct SetReport {
    /// How many were stored.
    pub stored: usize,
    /// The others, each with its reason.
    pub failed: Vec<(String, String)>,
    /// In how many chunks they were sent.
    pub chunks: usize,
    /// How long it took.
    pub elapsed: Duration,
}

impl SetReport {
    /// Whether all were stored.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty()
    }
}

/// A value that knows its own id.
pub trait Identified {
    /// The id, as it stands in the key.
    fn id(&self) -> impl Display;
}

/// From so many values on they are encoded by all cores: below that, starting threads costs more than it saves.
const PARALLEL_FROM: usize = 1_000;

/// Values as they go out, and those that could not be encoded.
#[derive(Default)]
struct Encoded {
    batch: EntryBatch,
    failed: Vec<(String, String)>,
}

impl Cache {
    /// Stores each value under its key. Does nothing where there is none.
    ///
    /// What fails, fails by key; its old value is deleted, or noted for deletion, since it is no longer right.
    pub async fn set_many<T: Serialize + Sync>(
        &self,
        items: &[(impl AsRef<str> + Sync, T)],
        options: SetManyOptions,
    ) -> SetReport {
        let life = options.life.millis();
        self.core.set_items(items, options, &|_key: &str| life, &[]).await
    }

    /// Stores each value under `prefix` and its id: `item:42`.
    pub async fn set_all<T: Serialize + Identified + Sync>(
        &self,
        prefix: &str,
        items: &[T],
        options: SetManyOptions,
    ) -> SetReport {
        let keyed: Vec<(String, &T)> =
            items.iter().map(|item| (format!("{prefix}{}", item.id()), item)).collect();
        self.set_many(&keyed, options).await
    }
}

impl Core {
    /// Stores each value under its key, for as long as `life_of` its key says (milliseconds), and under these tags.
    pub async fn set_items<T: Serialize + Sync>(
        &self,
        items: &[(impl AsRef<str> + Sync, T)],
        options: SetManyOptions,
        life_of: &(impl Fn(&str) -> u64 + Sync),
        tags: &[String],
    ) -> SetReport {
        let began = Instant::now();
        self.source.learn_types().await;
        let encode = |chunk: &[(_, T)]| encode_chunk(self, chunk, life_of, tags);
        let encoded = map_chunks(items, options.chunk.max(1), encode);
        let mut report = SetReport { chunks: encoded.len(), ..SetReport::default() };
        let mut sent = stream::iter(encoded.into_iter().map(async |encoded: Encoded| {
            let done = store_chunk(self, &encoded.batch, options.refuses_older_fills).await;
            (encoded, done)
        }))
        .buffer_unordered(options.parallel.max(1));
        while let Some((encoded, failed)) = sent.next().await {
            report.stored += encoded.batch.len() - failed.len();
            report.failed.extend(encoded.failed);
            report.failed.extend(failed);
        }
        report.elapsed = began.elapsed();
        log(&report, items.len());
        report
    }
}

fn encode_chunk<T: Serialize>(
    core: &Core,
    chunk: &[(impl AsRef<str>, T)],
    life_of: &impl Fn(&str) -> u64,
    tags: &[String],
) -> Encoded {
    let mut encoded = Encoded::default();
    for (key, value) in chunk {
        let key = key.as_ref();
        let codec: Codec = core.class_of(key).codec;
        let checked = core.check_own(key).map_err(|error| error.to_string());
        let pushed = checked.and_then(|()| {
            encoded.batch.push_with(life_of(key), |keys, values| {
                keys.push_str(key);
                codec.encode_into(value, values)
            })
        });
        match pushed {
            Ok(position) => tags.iter().for_each(|tag| encoded.batch.tag(position, tag)),
            Err(reason) => encoded.failed.push((key.to_owned(), reason)),
        }
    }
    encoded
}

/// Applies a function to chunks, on all cores where there are many items. Results are in order.
fn map_chunks<I: Sync, R: Send>(items: &[I], chunk: usize, work: impl Fn(&[I]) -> R + Sync) -> Vec<R> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let chunks: Vec<&[I]> = items.chunks(chunk).collect();
    if items.len() < PARALLEL_FROM || cores == 1 || chunks.len() == 1 {
        return chunks.into_iter().map(work).collect();
    }
    let share = chunks.len().div_ceil(cores);
    let work = &work;
    std::thread::scope(|scope| {
        let mut parts = chunks.chunks(share);
        let first = parts.next().unwrap_or_default();
        let threads: Vec<_> = parts
            .map(|part| scope.spawn(move || part.iter().map(|chunk| work(chunk)).collect::<Vec<R>>()))
            .collect();
        let mut results: Vec<R> = first.iter().map(|chunk| work(chunk)).collect();
        for thread in threads {
            match thread.join() {
                Ok(part) => results.extend(part),
                // A serializer that panics does so in its caller, as it would without threads.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    })
}

/// Stores one chunk; answers what failed.
async fn store_chunk(core: &Core, batch: &EntryBatch, refuses_older_fills: bool) -> Vec<(String, String)> {
    if batch.is_empty() {
        return Vec::new();
    }
    let keys: Vec<&str> = batch.iter().map(|entry| entry.key).collect();
    core.leave(&keys);
    let stored = store(core, batch, &keys, refuses_older_fills).await;
    core.near.remove(&keys);
    stored
}

async fn store(
    core: &Core,
    batch: &EntryBatch,
    keys: &[&str],
    refuses_older_fills: bool,
) -> Vec<(String, String)> {
    let all = |error: &ClientError| keys.iter().map(|key| ((*key).to_owned(), error.to_string())).collect();
    if refuses_older_fills {
        return core.set_now(batch).await.err().map(|error| all(&error)).unwrap_or_default();
    }
    match core.ask("store entries", core.backend.set_plain(batch)).await {
        Ok(failed) => {
            let named = failed.iter().filter_map(|(at, error)| Some((*keys.get(*at)?, error.to_string())));
            let named: Vec<(&str, String)> = named.collect();
            let wrong: Vec<&str> = named.iter().map(|(key, _)| *key).collect();
            let stored: Vec<&str> = keys.iter().copied().filter(|key| !wrong.contains(key)).collect();
            core.breaker.settle(&stored);
            if !wrong.is_empty() {
                core.forget_what_is_wrong(&wrong).await;
            }
            named.into_iter().map(|(key, reason)| (key.to_owned(), reason)).collect()
        }
        Err(error) => all(&core.not_replaced(error, keys).await),
    }
}

fn log(report: &SetReport, wanted: usize) {
    let elapsed_ms = u64::try_from(report.elapsed.as_millis()).unwrap_or(u64::MAX);
    let names: Vec<&str> = report.failed.iter().take(10).map(|(key, _)| key.as_str()).collect();
    let reason = report.failed.first().map_or("", |(_, reason)| reason);
    let what = match (report.stored, report.failed.len()) {
        (_, 0) => "values stored",
        (0, _) => "no value was stored",
        _ => "some values were not stored",
    };
    let Some(calls) = log_limit::due(what, "", 1) else { return };
    let chunks = report.chunks;
    match (report.stored, report.failed.len()) {
        (stored, 0) => info!(stored, chunks, elapsed_ms, calls, "{what}"),
        (0, failed) => error!(failed, wanted, chunks, ?names, reason, elapsed_ms, calls, "{what}"),
        (stored, failed) => {
            warn!(stored, failed, wanted, chunks, ?names, reason, elapsed_ms, calls, "{what}");
        }
    }
}
