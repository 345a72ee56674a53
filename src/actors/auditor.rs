//! Looks slowly at every entry, all the time, and says if one is wrong: nobody should have to believe the worker.
//!
//! What is found wrong is counted, logged, and loaded again. A round that is broken off begins again.

use std::time::Duration;

use tracing::{debug, error, info};

use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_engine::audit::{Comparison, Extent, compare, fix};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::error::{EngineError, chain};
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::metrics::{ByDataset, ByDatasetOutcome};

/// Between two rounds, and before the first: a worker that starts has better things to do.
const PAUSE: Duration = Duration::from_secs(60);

/// Compares entries with the database.
#[derive(Debug)]
pub struct Auditor;

impl Task for Auditor {
    const NAME: &'static str = "auditor";
    const LEASE: Option<LeaseName> = Some(LeaseName::AUDIT);

    fn is_wanted(context: &TaskContext) -> bool {
        0 < context.config.feed.audit_rate
    }

    async fn run(context: TaskContext, _wake: Wake) {
        let extent = Extent { sample: None, rate: Some(context.config.feed.audit_rate) };
        loop {
            tokio::time::sleep(PAUSE).await;
            round(&context.engine, &extent).await;
        }
    }
}

/// Every dataset once.
async fn round(context: &Context, extent: &Extent) {
    for dataset in context.catalog.iter().filter(|dataset| !dataset.is_paused()) {
        match compare(context, dataset, extent).await {
            Ok(found) => {
                note(context, &found);
                if !found.is_clean()
                    && let Err(error) = fix(context, dataset, &found).await
                {
                    debug!(error = %chain(&error), "wrong entries could not be loaded again, trying after the next round");
                }
            }
            // A newer process audits it.
            Err(EngineError::Superseded { .. }) => {}
            Err(error) => debug!(error = %chain(&error), "the audit begins again later"),
        }
    }
}

fn note(context: &Context, found: &Comparison) {
    let audited = &context.metrics.audited;
    let count = |outcome: &str, number: u64| {
        audited.get_or_create(&ByDatasetOutcome::new(&found.dataset, outcome)).inc_by(number);
    };
    count("right", found.right);
    for (outcome, keys) in [
        ("stale", &found.stale),
        ("extra", &found.extra),
        ("missing", &found.missing),
        ("undecodable", &found.undecodable),
        ("unreadable", &found.unreadable),
        ("unsure", &found.unsure),
        ("clock", &found.clock),
    ] {
        count(outcome, keys.len() as u64);
    }
    if let Some(nines) = found.nines() {
        context.metrics.nines.get_or_create(&ByDataset::new(&found.dataset)).set(nines);
    }
    if found.stale.is_empty() && found.extra.is_empty() {
        info!(dataset = found.dataset, checked = found.checked, "every entry was compared with the database");
    } else {
        error!(dataset = found.dataset, "audit found stale entries: {found}");
    }
}
