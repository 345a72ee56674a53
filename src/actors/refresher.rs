//! Keeps what is read from expiring, fills what applications missed, and has entries end as early as a changed `ttl` says.
//!
//! On its timer it scans Redis and loads again what is due and was read; while Postgres is down it extends such entries
//! instead. A scan that is broken off costs nothing but time: the next one sees the same entries.

use std::time::Duration;

use tracing::{debug, info, warn};

use super::background::Background;
use super::clock::now_ms;
use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::log_limit;
use cachekeeper_engine::refresh::{Missed, Outage, RefreshReport, RefreshScan, fill_missed};
use cachekeeper_engine::shorten::{Due, due, note, shorten};

const SCAN_EVERY_MIN: Duration = Duration::from_millis(500);
const SCAN_EVERY_MAX: Duration = Duration::from_secs(300);
/// Between two tries to shorten lifetimes.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long a worker that a newer one replaces may still store.
const PREDECESSOR_LEAVES: Duration = Duration::from_secs(10);

/// Refreshes ahead, and fills misses.
#[derive(Debug)]
pub struct Refresher;

impl Task for Refresher {
    const NAME: &'static str = "refresher";

    fn wake(context: &TaskContext) -> Wake {
        context.misses.wake.clone()
    }

    async fn run(context: TaskContext, wake: Wake) {
        tokio::join!(
            scan_forever(&context.engine),
            fill_forever(&context, &wake),
            shorten_where_due(&context.engine)
        );
    }
}

async fn scan_forever(context: &Context) {
    // Several scans fall into the last part of every lifetime.
    let due = context.catalog.iter().map(|dataset| dataset.lifetimes.due_within() / 4).min();
    let scan_every = due.unwrap_or(SCAN_EVERY_MAX).clamp(SCAN_EVERY_MIN, SCAN_EVERY_MAX);
    loop {
        // Several workers do not scan at the same moment.
        tokio::time::sleep(scan_every.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
        let context = context.clone();
        match Background::spawn(async move { scan(&context, scan_every).await }).result().await {
            Some(Ok(looked)) if looked == RefreshReport::default() => {}
            Some(Ok(looked)) if 0 < looked.extended => {
                let what = "entries kept while postgres is down";
                if let Some(extended) = log_limit::due(what, "", looked.extended) {
                    info!(extended, "{what}");
                }
            }
            Some(Ok(looked)) => debug!(refreshed = looked.refreshed, unread = looked.unread, "scan done"),
            Some(Err(error)) => debug!(error = %chain(&error), "scan broken off, the next one looks again"),
            None => warn!("the scan panicked, the next one looks again"),
        }
    }
}

async fn fill_forever(context: &TaskContext, wake: &Wake) {
    loop {
        let keys = context.misses.take();
        if keys.is_empty() {
            wake.requested().await;
            continue;
        }
        let engine = context.engine.clone();
        match Background::spawn(async move { fill_missed(&engine, keys).await }).result().await {
            Some(missed) => missed.into_iter().for_each(|missed| note_missed(context, missed)),
            None => warn!("filling misses panicked"),
        }
    }
}

/// Whoever reads sees nothing but misses: people are told.
fn note_missed(context: &TaskContext, Missed { dataset, keys, filled }: Missed) {
    let name = dataset.name();
    context.health.note_unfilled(name, filled.as_ref().err().map(EngineError::told));
    if let Err(error) = &filled {
        let what = "misses cannot be filled, the next miss tries again";
        if let Some(keys) = log_limit::due(what, name, keys) {
            warn!(dataset = name, keys, error = error.told(), "{what}");
        }
    }
}

/// Sees to it that no entry lives longer than its dataset's `ttl` says now, if that was longer before. Once: what is stored from
/// then on has the new lifetime.
async fn shorten_where_due(context: &Context) {
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    loop {
        let context = context.clone();
        match Background::spawn(async move { shorten_all(&context).await }).result().await {
            Some(Ok(())) => return,
            Some(Err(error)) => debug!(error = %chain(&error), "lifetimes are shortened later"),
            None => warn!("shortening lifetimes panicked, trying again"),
        }
        backoff.wait().await;
    }
}

async fn shorten_all(context: &Context) -> Result<(), EngineError> {
    let metadata = context.redis.metadata("").await?;
    let mut passes = Vec::new();
    // A newer process has the lifetimes of what is superseded.
    for dataset in context.catalog.iter().filter(|dataset| !dataset.is_superseded()) {
        match due(context, &metadata, dataset).await? {
            Due::Nothing => {}
            Due::Note => note_if_there_is_room(context, dataset).await,
            Due::Shorten => passes.extend(shortened(context, dataset).await?.map(|count| (dataset, count))),
        }
    }
    if passes.is_empty() {
        return Ok(());
    }
    // A worker that this one follows stores with the former lifetime until it has left.
    tokio::time::sleep(PREDECESSOR_LEAVES).await;
    for (dataset, first) in passes {
        let Some(second) = shortened(context, dataset).await? else { continue };
        let shortened = first + second;
        note_if_there_is_room(context, dataset).await;
        info!(dataset = dataset.name(), shortened, "entries had longer to live than counts now");
    }
    Ok(())
}

/// How many were shortened; none: the dataset has become another process's.
async fn shortened(context: &Context, dataset: &Dataset) -> Result<Option<u64>, EngineError> {
    match shorten(context, dataset).await {
        Ok(count) => Ok(Some(count)),
        Err(EngineError::Superseded { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A full Redis takes no note: then the next start looks at some entries once more, and nothing else is lost.
async fn note_if_there_is_room(context: &Context, dataset: &Dataset) {
    if let Err(error) = note(context, dataset).await {
        debug!(error = %chain(&error), "the longest lifetime is not noted");
    }
}

async fn scan(context: &Context, next_scan: Duration) -> Result<RefreshReport, EngineError> {
    let facts = context.redis.facts().await?;
    let outage = match context.postgres.ping().await {
        Ok(()) => None,
        Err(error) if error.is_transient() => {
            let metadata = context.redis.metadata("").await?;
            match Outage::read(&metadata, now_ms()) {
                Some(outage) => Some(outage),
                None => return Err(error.into()),
            }
        }
        Err(error) => return Err(error.into()),
    };
    let mut scan = RefreshScan::new(&facts, next_scan);
    while !scan.step(context, outage.clone()).await? {}
    Ok(scan.report)
}
