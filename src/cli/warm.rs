//! `cachekeeper warm`

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::choose::{choose, exit_of, with_reason};
use super::output::{Exit, Output};
use cachekeeper_engine::backfill::{BackfillOptions, Progress, backfill};
use cachekeeper_engine::catalog::Dataset;
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::with_current_epoch;
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::plan::{PlanOptions, plan};

const TICK_EVERY: Duration = Duration::from_millis(100);
/// How often the numbers move on a terminal, and how often there is a line where there is none.
const MOVE_EVERY: Duration = Duration::from_millis(250);
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How long Postgres may count rows for it, beside the backfill.
const COUNT_WITHIN: Duration = Duration::from_secs(20);
/// A short backfill is over before that is worth it.
const COUNT_AFTER: Duration = Duration::from_millis(500);

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
        let (progress, told) = watch::channel(Progress::default());
        let rate = dataset.backfill_rate();
        let options = BackfillOptions { cancel: cancel.clone(), rate, progress: Some(progress), resume };
        let began = Instant::now();
        let result = tokio::select! {
            result = with_current_epoch(context, || backfill(context, dataset, &options)) => result,
            () = show(context, dataset, told, out) => Err(EngineError::Cancelled),
        };
        match result {
            Ok(report) => {
                let seconds = began.elapsed().as_secs_f64();
                let text = format!(
                    "{}: {} {} stored in {seconds:.1} s{}",
                    dataset.name(),
                    report.stored,
                    if report.stored == 1 { "entry" } else { "entries" },
                    match report.failed {
                        0 => String::new(),
                        1 => ", 1 row has no entry".to_owned(),
                        rows => format!(", {rows} rows have no entry"),
                    }
                );
                let failed: Vec<_> = report
                    .failures
                    .iter()
                    .map(|one| json!({ "key": one.key, "reason": one.reason }))
                    .collect();
                out.result(&text, &json!({ "dataset": dataset.name(), "stored": report.stored, "seconds": seconds, "failed": failed, "failed_rows": report.failed }));
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

/// A line that moves on a terminal, else one every few seconds. Never returns. How many entries there are is counted meanwhile, which
/// holds up nothing.
async fn show(context: &Context, dataset: &Arc<Dataset>, mut told: watch::Receiver<Progress>, out: &Output) {
    let spinner = io::stderr().is_terminal().then(ProgressBar::new_spinner);
    if let Some(spinner) = &spinner {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(TICK_EVERY);
    }
    let counting = total(context, dataset);
    tokio::pin!(counting);
    let mut ticks = tokio::time::interval(if spinner.is_some() { MOVE_EVERY } else { LINE_EVERY });
    // The first tick is at once.
    ticks.tick().await;
    let (mut total, mut is_counted) = (None, false);
    let mut pace: Option<(u64, Instant)> = None;
    loop {
        tokio::select! {
            counted = &mut counting, if !is_counted => (total, is_counted) = (counted, true),
            _ = ticks.tick() => {
                let entries = told.borrow_and_update().entries;
                // What an earlier run has stored says nothing about the rate of this one.
                let (first, began) = *pace.get_or_insert((entries, Instant::now()));
                let done = Done { entries, new: entries - first.min(entries), within: began.elapsed() };
                let line = line(dataset.name(), &done, total);
                match &spinner {
                    Some(spinner) => spinner.set_message(line),
                    None => out.note(&line),
                }
            }
        }
    }
}

/// How many entries there will be.
#[derive(Debug, Clone, Copy)]
struct Total {
    entries: u64,
    /// Counting took too long.
    is_estimated: bool,
}

async fn total(context: &Context, dataset: &Arc<Dataset>) -> Option<Total> {
    tokio::time::sleep(COUNT_AFTER).await;
    let options = PlanOptions { sample: 1, within: COUNT_WITHIN };
    let plan = plan(context, dataset, None, options).await.ok()?;
    let entries = plan.backfilled.unwrap_or(plan.keys);
    Some(Total { entries, is_estimated: plan.counted.is_none() }).filter(|total| 0 < total.entries)
}

/// What was done.
struct Done {
    /// Entries that are stored.
    entries: u64,
    /// Those of them that were stored within this time.
    new: u64,
    within: Duration,
}

fn line(dataset: &str, done: &Done, total: Option<Total>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
    let rate = done.new as f64 / done.within.as_secs_f64().max(0.001);
    let mut line = match total {
        Some(Total { entries, is_estimated }) => {
            // Rows may have come since they were counted.
            let percent = (100 * done.entries).checked_div(entries).unwrap_or_default().min(100);
            let about = if is_estimated { "about " } else { "" };
            format!("{dataset}: {} of {about}{entries} entries ({percent} %)", done.entries)
        }
        None => format!("{dataset}: {} entries", done.entries),
    };
    if 0 < done.new {
        line.push_str(&format!(", {rate:.0} a second"));
        let left = total.map(|total| total.entries.saturating_sub(done.entries));
        if let Some(left) = left {
            #[expect(clippy::cast_precision_loss, reason = "a time to look at")]
            let seconds = (left as f64 / rate).ceil();
            line.push_str(&format!(", {seconds:.0} s left"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_the_rate_and_the_time_that_is_left_are_told_as_far_as_they_are_known() {
        let done = |entries, new| Done { entries, new, within: Duration::from_secs(2) };
        let total = |is_estimated| Some(Total { entries: 1_000, is_estimated });
        assert_eq!(line("p", &done(0, 0), None), "p: 0 entries");
        assert_eq!(line("p", &done(300, 100), None), "p: 300 entries, 50 a second");
        assert_eq!(
            line("p", &done(300, 100), total(false)),
            "p: 300 of 1000 entries (30 %), 50 a second, 14 s left"
        );
        assert_eq!(
            line("p", &done(1_200, 100), total(true)),
            "p: 1200 of about 1000 entries (100 %), 50 a second, 0 s left"
        );
    }
}
