//! Keeps what is read from expiring, and fills what applications missed.
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
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::log_limit;
use cachekeeper_engine::refresh::{Outage, RefreshReport, RefreshScan, fill_missed};

const SCAN_EVERY_MIN: Duration = Duration::from_millis(500);
const SCAN_EVERY_MAX: Duration = Duration::from_secs(300);

/// Refreshes ahead, and fills misses.
#[derive(Debug)]
pub struct Refresher;

impl Task for Refresher {
    const NAME: &'static str = "refresher";

    fn wake(context: &TaskContext) -> Wake {
        context.misses.wake.clone()
    }

    async fn run(context: TaskContext, wake: Wake) {
        tokio::join!(scan_forever(&context.engine), fill_forever(&context, &wake));
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
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                debug!(error = %chain(&error), "misses not filled, the next miss tries again");
            }
            None => warn!("filling misses panicked"),
        }
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
