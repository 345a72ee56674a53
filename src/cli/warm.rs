//! `cachekeeper warm`

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::choose::{choose, exit_of, with_reason};
use super::output::{Exit, Output};
use cachekeeper_engine::backfill::{BackfillOptions, Progress, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::error::EngineError;

/// Fills datasets, one after another; Ctrl-C ends it between two batches, and the next run goes on there.
pub async fn warm(
    context: &Context,
    names: &[String],
    resume: bool,
    out: &Output,
) -> Result<Exit, EngineError> {
    let chosen = match choose(context, names, out) {
        Ok(chosen) => chosen,
        Err(exit) => return Ok(exit),
    };
    let cancel = CancellationToken::new();
    let stopper = cancel.clone();
    let signal = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopper.cancel();
        }
    });
    let mut exit = Exit::Ok;
    for dataset in chosen {
        let (progress, told) = tokio::sync::watch::channel(Progress::default());
        let rate = dataset.backfill_rate();
        let options = BackfillOptions { cancel: cancel.clone(), rate, progress: Some(progress), resume };
        let began = Instant::now();
        let result = tokio::select! {
            result = with_current_epoch(context, || backfill(context, dataset, &options)) => result,
            () = show(dataset.name(), told) => Err(EngineError::Cancelled),
        };
        match result {
            Ok(report) => {
                let seconds = began.elapsed().as_secs_f64();
                let text = format!(
                    "{}: {} entries stored in {seconds:.1} s{}",
                    dataset.name(),
                    report.stored,
                    if report.failures.is_empty() {
                        String::new()
                    } else {
                        format!(", {} rows failed", report.failures.len())
                    }
                );
                let failed: Vec<_> = report
                    .failures
                    .iter()
                    .map(|one| json!({ "key": one.key, "reason": one.reason }))
                    .collect();
                out.result(&text, &json!({ "dataset": dataset.name(), "stored": report.stored, "seconds": seconds, "failed": failed }));
                for failure in report.failures.iter().take(10) {
                    out.note(&format!(
                        "  {}: {}",
                        failure.key.as_deref().unwrap_or("(no key)"),
                        failure.reason
                    ));
                }
                if !report.failures.is_empty() {
                    exit = Exit::Failed;
                }
            }
            Err(EngineError::Cancelled) => {
                out.note(&format!("{}: stopped; run it again to go on where it ended", dataset.name()));
                return Ok(Exit::Failed);
            }
            Err(error) => {
                let error = with_reason(context, error).await;
                out.failure(&format!("dataset {}: {}", dataset.name(), error.told()));
                exit = exit_of(&error);
            }
        }
    }
    signal.abort();
    Ok(exit)
}

/// A bar on a terminal, else a line every few seconds. Never returns.
async fn show(dataset: &str, mut told: tokio::sync::watch::Receiver<Progress>) {
    if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {prefix}: {human_pos} entries, {per_sec}, {elapsed}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(dataset.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        loop {
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            bar.set_position(told.borrow_and_update().entries);
        }
    }
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        tracing::info!(dataset, entries = told.borrow().entries, "backfill under way");
    }
}
