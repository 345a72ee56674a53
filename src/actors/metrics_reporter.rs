//! Exports the numbers: `/metrics`, `/livez`, `/readyz` on the admin listener, and a line of the debug log now and then.
//!
//! A port that is taken is a warning, and tried again. While the task is down, scrapes fail.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{debug, info, warn};

use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;
use crate::{admin, telemetry};
use cachekeeper_engine::backoff::every;
use cachekeeper_engine::definitions::renamed;
use cachekeeper_engine::error::chain;
use cachekeeper_engine::metrics::Unlabelled;
use cachekeeper_engine::{log_limit, namespaces, rights};

const REPORT_EVERY: Duration = Duration::from_secs(5);
/// So many changes that wait are counted: of more it is known that they are many.
const WAITING_MAX: u32 = 100_000;
const LOG_EVERY: Duration = Duration::from_secs(5);
/// How soon rights that were taken away are noticed, and those that were given.
const RIGHTS_EVERY: Duration = Duration::from_secs(5);
const LACKING_EVERY: Duration = Duration::from_secs(1);
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// How soon it is noticed that another worker has the keys of a dataset.
const NAMES_EVERY: Duration = Duration::from_secs(1);

/// Serves the admin listener, and reports.
#[derive(Debug)]
pub struct MetricsReporter;

impl Task for MetricsReporter {
    const NAME: &'static str = "metrics_reporter";

    async fn run(context: TaskContext, _wake: Wake) {
        if context.of_cluster.is_some() {
            // The rest is reported of each shard.
            tokio::join!(listen_forever(&context), log_forever());
            return;
        }
        tokio::join!(
            listen_forever(&context),
            report_forever(&context),
            look_at_rights_forever(&context),
            look_at_names_forever(&context),
            log_forever()
        );
    }
}

pub(super) async fn report_forever(context: &TaskContext) {
    let mut ticks = every(REPORT_EVERY);
    // The first tick is at once: there is nothing to report yet.
    ticks.tick().await;
    loop {
        // Again and again: Redis may have been down at the start, or have been flushed since.
        if let Err(error) = namespaces::register(&context.engine, &context.config).await {
            debug!(error = %chain(&error), "what this namespace uses is made known later");
        }
        ticks.tick().await;
        report(context).await;
        count_waiting(context).await;
    }
}

async fn report(context: &TaskContext) {
    match context.engine.redis.facts().await {
        Ok(facts) => {
            context.engine.metrics.redis_used_memory.set(facts.used_memory);
            context.engine.metrics.redis_max_memory.set(facts.maxmemory);
            context.health.update(|known| known.full = facts.full());
            context.engine.metrics.redis_evicted.inner().store(facts.evicted_keys, Ordering::Relaxed);
            let reasons = context.health.reasons();
            debug!(ready = reasons.is_empty(), not_ready = %reasons.join("; "), redis.bytes = facts.used_memory,
                redis.evicted = facts.evicted_keys, "still running");
        }
        Err(error) => debug!(error = %chain(&error), "no report this time"),
    }
}

/// How far the feed is behind, whoever leads it. What is not known is no number.
async fn count_waiting(context: &TaskContext) {
    let engine = &context.engine;
    let known = match engine.redis.metadata("").await {
        Ok(metadata) if engine.feed.is_on => metadata.cursor,
        Ok(_) | Err(_) => None,
    };
    let counted = match known {
        Some(cursor) => engine.postgres.changes_behind(&cursor, WAITING_MAX).await.ok(),
        None => None,
    };
    let gauge = &engine.metrics.changes_waiting;
    match counted.and_then(|counted| i64::try_from(counted).ok()) {
        Some(counted) => {
            gauge.get_or_create(&Unlabelled).set(counted);
        }
        None => {
            gauge.remove(&Unlabelled);
        }
    }
}

/// Rights may be taken away, and given, at any time.
pub(super) async fn look_at_rights_forever(context: &TaskContext) {
    let mut is_told = false;
    loop {
        // Where Redis does not answer, others say so.
        if let Ok(missing) = rights::missing(&context.engine, &context.config).await {
            let known = context.health.facts().lacking;
            if !missing.needed.is_empty() && missing.needed != known {
                warn!(
                    lacking = missing.needed.join(", "),
                    "the user in redis lacks rights that the worker needs"
                );
            } else if missing.needed.is_empty() && !known.is_empty() {
                info!("the user in redis has the rights that the worker needs");
            }
            for (what, means) in missing.weaker.iter().filter(|_| !is_told) {
                warn!(lacking = what, "the user in redis lacks a right: {means}");
            }
            is_told = true;
            context.health.update(|facts| facts.lacking = missing.needed);
        }
        let is_lacking = !context.health.facts().lacking.is_empty();
        tokio::time::sleep(if is_lacking { LACKING_EVERY } else { RIGHTS_EVERY }).await;
    }
}

/// Why the watermark does not name datasets that have another name than before.
pub(super) async fn look_at_names_forever(context: &TaskContext) {
    let (engine, health) = (&context.engine, &context.health);
    loop {
        tokio::time::sleep(NAMES_EVERY).await;
        let facts = health.facts();
        let not_covered =
            facts.watermark.as_ref().map_or(&[][..], |(watermark, _)| watermark.not_covered.as_slice());
        // Where Redis does not answer, others say so.
        let Ok(found) = renamed::reasons(engine, &engine.registered().revisions, not_covered).await else {
            continue;
        };
        for (dataset, reason) in found.iter().filter(|(dataset, _)| !facts.renamed.contains_key(*dataset)) {
            warn!(dataset, reason, "the watermark does not cover the dataset yet");
        }
        for dataset in facts.renamed.keys().filter(|dataset| !found.contains_key(*dataset)) {
            info!(dataset, "nobody else has the keys of the dataset any more");
        }
        health.update(|facts| facts.renamed = found);
    }
}

async fn log_forever() {
    let mut ticks = every(LOG_EVERY);
    loop {
        ticks.tick().await;
        telemetry::say_left_out(log_limit::EVERY);
    }
}

/// The socket of this address: the one that is open already, or a new one.
fn open(
    slot: &mut Option<(SocketAddr, std::net::TcpListener)>,
    listen: &str,
) -> std::io::Result<tokio::net::TcpListener> {
    let address: SocketAddr = listen.parse().map_err(std::io::Error::other)?;
    if slot.as_ref().is_none_or(|(open, _)| *open != address) {
        // The old one first: both may be of the same port.
        *slot = None;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        *slot = Some((address, listener));
    }
    let Some((_, listener)) = slot else { return Err(std::io::ErrorKind::NotFound.into()) };
    tokio::net::TcpListener::from_std(listener.try_clone()?)
}

async fn listen_forever(context: &TaskContext) {
    if let Some(listen) = &context.config.admin.listen {
        tokio::select! {
            () = listen_until_left(context, listen) => {}
            () = context.leaving.done.cancelled() => {}
        }
    }
    context.leaving.done.cancel();
}

/// Opens the listener, again where it fails, until it is left to another worker.
async fn listen_until_left(context: &TaskContext, listen: &str) {
    let leaving = &context.leaving.begun;
    // Whoever was served by the worker before is served by it until it has let go.
    let mut slot = context.listener.lock().await;
    while !leaving.is_cancelled() {
        match open(&mut slot, listen) {
            Ok(listener) => {
                say_open(context, &listener);
                let served = admin::serve(listener, context).await;
                let what = "admin listener ended, opening it again";
                if let Err(error) = served {
                    *slot = None;
                    if let Some(times) = log_limit::due(what, "", 1) {
                        warn!(%error, times, "{what}");
                    }
                }
            }
            Err(error) => {
                let what = "admin listener could not open, trying again";
                if let Some(attempts) = log_limit::due(what, "", 1) {
                    warn!(listen, %error, attempts, "{what}");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LISTEN_AGAIN) => {}
            () = leaving.cancelled() => {}
        }
    }
}

fn say_open(context: &TaskContext, listener: &tokio::net::TcpListener) {
    let Ok(address) = listener.local_addr() else { return };
    let admin = &context.config.admin;
    let scheme = if admin.tls.is_some() { "https" } else { "http" };
    info!(%address, tls = admin.tls.is_some(), token = admin.asks_for_token(), read_only = admin.is_read_only,
        "admin listener is open: {scheme}://{address}/ is the page; /livez /readyz /metrics /api/v1");
}
