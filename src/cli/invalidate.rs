//! `cachekeeper invalidate` and `cachekeeper refresh`

use std::collections::BTreeSet;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::choose::choose;
use super::output::{Exit, Output};
use cachekeeper_engine::backfill::{BackfillOptions, backfill};
use cachekeeper_engine::context::Context;
use cachekeeper_engine::epoch::{self, with_current_epoch};
use cachekeeper_engine::error::EngineError;
use cachekeeper_engine::load::LoadReport;
use cachekeeper_engine::revalidation;
use cachekeeper_engine::shown::few;
use cachekeeper_engine::stores::redis::OlderLoads;
use cachekeeper_engine::{events, invalidate};
use cachekeeper_protocol::event::Op;
use cachekeeper_protocol::template::{Alphabet, Template};

/// What to invalidate.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Targets {
    /// Keys
    keys: Vec<String>,
    /// A tag; may be given several times
    #[arg(short, long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A whole dataset; may be given several times
    #[arg(short, long = "dataset", value_name = "NAME")]
    datasets: Vec<String>,
    /// Delete, whatever the dataset says
    #[arg(long)]
    delete: bool,
}

/// Does at once, in this process, what an event would make the worker do: on a single Redis, or on each shard of a cluster.
pub async fn invalidate(
    contexts: &[Context],
    targets: &Targets,
    op: Option<Op>,
    out: &Output,
) -> Result<Exit, EngineError> {
    if targets.keys.is_empty() && targets.tags.is_empty() && targets.datasets.is_empty() {
        out.failure("nothing is named: give keys, --tag or --dataset");
        return Ok(Exit::Usage);
    }
    let op = if targets.delete { Some(Op::Delete) } else { op };
    let Some(context) = contexts.first() else { return Ok(Exit::Failed) };
    if !targets.datasets.is_empty()
        && let Err(exit) = choose(context, &targets.datasets, out)
    {
        return Ok(exit);
    }
    let (mut report, mut left_out) = (LoadReport::default(), BTreeSet::new());
    for context in contexts {
        let (done, left) = on_one(context, targets, op).await?;
        report.add(done);
        left_out.extend(left);
    }
    let text = format!(
        "{} stored again, {} gone, {} deleted{}",
        report.stored,
        report.gone,
        report.invalidated,
        if report.failures.is_empty() { String::new() } else { format!(", {} failed", report.failed) }
    );
    let unknown = unknown_tags(context, &targets.tags);
    let failed: Vec<_> =
        report.failures.iter().map(|one| json!({ "key": one.key, "reason": one.reason })).collect();
    out.result(
        &text,
        &json!({ "stored": report.stored, "gone": report.gone, "deleted": report.invalidated, "failed": failed,
            "ignored": left_out, "unknown_tags": unknown }),
    );
    for tag in unknown {
        out.note(&format!("note: no dataset has the tag {tag}; {}", known_tags(context)));
    }
    for key in &left_out {
        out.error(&format!(
            "{key} is a key of no dataset, and [invalidation] keys does not name it: left alone"
        ));
    }
    Ok(if report.failures.is_empty() && left_out.is_empty() { Exit::Ok } else { Exit::Failed })
}

/// What was done on one Redis, or on one shard; the keys that were left alone.
async fn on_one(
    context: &Context,
    targets: &Targets,
    op: Option<Op>,
) -> Result<(LoadReport, Vec<String>), EngineError> {
    let mut report = LoadReport::default();
    // The query's types decide to which dataset a key belongs. One that cannot work has no keys.
    for dataset in context.catalog.iter() {
        match dataset.source(&context.postgres).await {
            Ok(_) | Err(EngineError::Dataset { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let mut keys = targets.keys.clone();
    let left_out = events::leave_out(context, &mut keys).await?;
    if !keys.is_empty() {
        report.add(with_current_epoch(context, || invalidate::keys(context, &keys, op)).await?);
    }
    if !targets.tags.is_empty() {
        report.add(with_current_epoch(context, || invalidate::tags(context, &targets.tags, op)).await?);
    }
    for dataset in targets.datasets.iter().filter_map(|name| context.catalog.get(name)) {
        report.add(with_current_epoch(context, || whole(context, dataset, op)).await?);
    }
    Ok((report, left_out))
}

/// Tags that no dataset's entries can have. Entries of applications may have any.
fn unknown_tags<'a>(context: &Context, tags: &'a [String]) -> Vec<&'a str> {
    let is_known = |tag: &str| {
        let all = context.catalog.iter().flat_map(|dataset| &dataset.settings.tags);
        all.into_iter().any(|template| template.could_be(|_| Alphabet::Any, tag))
    };
    tags.iter().map(String::as_str).filter(|tag| !is_known(tag)).collect()
}

fn known_tags(context: &Context) -> String {
    let all = context.catalog.iter().flat_map(|dataset| &dataset.settings.tags);
    let all: BTreeSet<&str> = all.map(Template::as_str).collect();
    if all.is_empty() {
        return "none has any".to_owned();
    }
    format!("there are {}", few(&all.into_iter().collect::<Vec<_>>()))
}

/// Every entry of a dataset: those in Redis are revalidated, then what is missing is filled.
async fn whole(
    context: &Context,
    dataset: &cachekeeper_engine::catalog::Dataset,
    op: Option<Op>,
) -> Result<LoadReport, EngineError> {
    let state = epoch::ensure(context, "").await?;
    let names = [dataset.name().to_owned()];
    let at = (&state.epoch, state.poll.incarnation.as_str());
    let older = OlderLoads::Below(state.poll.snapshot.stamp());
    context.checked(None, context.redis.mark_pending(at, ("command", None), &names, older, "").await?)?;
    let policy = if op == Some(Op::Delete) {
        cachekeeper_config::OnNewEpoch::Drop
    } else {
        cachekeeper_config::OnNewEpoch::Refresh
    };
    let mut report = revalidation::run(context, dataset, policy, &CancellationToken::new()).await?;
    let holds_all = dataset.settings.scope == cachekeeper_config::Scope::All;
    if holds_all && op != Some(Op::Delete) {
        let options =
            BackfillOptions { cancel: CancellationToken::new(), rate: None, progress: None, resume: false };
        // The backfill stores every entry, so its count is the whole.
        report.stored = 0;
        report.add(backfill(context, dataset, &options).await?);
    }
    Ok(report)
}
