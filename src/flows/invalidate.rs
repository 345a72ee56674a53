//! What an event asks for: raise first, then reload or delete (R6, R8).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch;
use super::error::FlowError;
use super::reload::{Cause, Job, Report, current_epoch, reload};
use crate::config::OnChange;
use crate::domain::event::Op;
use crate::domain::keyspace::RESERVED_PREFIX;
use crate::metrics::{ByDatasetCause, ByReason};
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::{Answer, Epoch, Gone, Paid, Standing};

/// Keys of one script.
const PAGE: usize = 256;
/// Label of entries that belong to no dataset.
const NO_DATASET: &str = "none";

/// Invalidates keys: those of a dataset as the event or the dataset says, those of none are deleted.
///
/// # Errors
/// [`FlowError`]; the event must then be obeyed again.
pub async fn keys(context: &Context, keys: &[String], op: Option<Op>) -> Result<Report, FlowError> {
    let poll = epoch::poll(context).await?;
    let mut report = Report::default();
    let (mut to_delete, mut to_reload) = (Vec::new(), Reloads::new());
    for key in keys.iter().filter(|key| !key.starts_with(RESERVED_PREFIX)) {
        sort_key(context, key, op, &mut to_delete, &mut to_reload);
    }
    for page in to_delete.chunks(PAGE) {
        report.invalidated += delete(context, &poll, page, None).await?;
    }
    for (dataset, keys) in to_reload.into_values() {
        report.add(reload_existing(context, &dataset, &poll, keys).await?);
    }
    Ok(report)
}

/// Invalidates every member of tags.
///
/// # Errors
/// [`FlowError`]; the event must then be obeyed again. [`FlowError::WentBack`] where Redis went back meanwhile.
pub async fn tags(context: &Context, tags: &[String], op: Option<Op>) -> Result<Report, FlowError> {
    let mut job = Job::new("tags");
    let order = epoch::ensure(context, &job.id).await?;
    job.count = order.head.counted;
    let standing = unfenced(&order.epoch, &order.poll);
    let stamp = order.poll.snapshot.stamp();
    let sets = done(context, context.redis.raise_tags(&standing, stamp, &job.id, tags).await?)?;
    job.count += 1;
    let mut report = Report::default();
    for (set, _size) in sets {
        let mut cursor = 0;
        loop {
            let page = context.redis.members(&standing, &job.id, &set, cursor, PAGE).await?;
            let (next, members) = done(context, page)?;
            job.count += 1;
            let (mut to_delete, mut to_reload) = (Vec::new(), Reloads::new());
            for member in members.into_iter().filter_map(|member| String::from_utf8(member).ok()) {
                sort_key(context, &member, op, &mut to_delete, &mut to_reload);
            }
            // A page may hold more than was asked for: small sets come whole.
            for keys in to_delete.chunks(PAGE) {
                report.invalidated += delete(context, &order.poll, keys, Some((&mut job, &set))).await?;
            }
            for (dataset, keys) in to_reload.into_values() {
                report.add(reload_members(context, &dataset, &order.poll, keys, &mut job).await?);
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    // Nothing is claimed by a debt, but a rollback in between would have hidden members from the walk.
    let claim = done(context, context.redis.claim(&standing, &job.id, job.count, Paid::Nothing).await?)?;
    match claim {
        crate::stores::redis::Claim::Accepted => Ok(report),
        crate::stores::redis::Claim::WentBack => {
            context.metrics.gaps.get_or_create(&ByReason::new("redis_went_back")).inc();
            Err(FlowError::WentBack)
        }
    }
}

/// Deletes keys at once and without a stamp, because none can be had while Postgres is down. The event is kept and
/// obeyed again: until then an older load could still bring the old value back.
///
/// # Errors
/// [`FlowError`].
pub async fn delete_now(context: &Context, keys: &[String]) -> Result<(), FlowError> {
    let keys: Vec<&String> = keys.iter().filter(|key| !key.starts_with(RESERVED_PREFIX)).collect();
    for page in keys.chunks(PAGE) {
        context.redis.delete(page).await?;
    }
    Ok(())
}

/// Keys to load again, by dataset.
pub(super) type Reloads = BTreeMap<String, (Arc<Dataset>, Vec<(String, KeyValues)>)>;

fn sort_key(
    context: &Context,
    key: &str,
    op: Option<Op>,
    to_delete: &mut Vec<String>,
    to_reload: &mut Reloads,
) {
    let Some((dataset, values)) = context.catalog.of_key(key) else {
        to_delete.push(key.to_owned());
        return;
    };
    let refresh = match op {
        Some(Op::Refresh) => true,
        Some(Op::Delete) => false,
        None => dataset.settings.on_change == OnChange::Refresh,
    };
    if refresh && !dataset.is_displaced() {
        let entry = to_reload.entry(dataset.name().to_owned());
        entry.or_insert_with(|| (Arc::clone(dataset), Vec::new())).1.push((key.to_owned(), values));
    } else {
        to_delete.push(key.to_owned());
    }
}

/// Raises the keys, so that nothing older can be stored any more, then loads those that exist again. Where the
/// dataset holds every row, the others too.
async fn reload_existing(
    context: &Context,
    dataset: &Dataset,
    poll: &Poll,
    keys: Vec<(String, KeyValues)>,
) -> Result<Report, FlowError> {
    let mut existing = Vec::with_capacity(keys.len());
    for page in keys.chunks(PAGE) {
        let names: Vec<&str> = page.iter().map(|(key, _)| key.as_str()).collect();
        let epoch = current_epoch(context).await?;
        let standing = dataset.standing(&epoch, &poll.incarnation);
        let positions = done(context, context.redis.raise(&standing, poll.snapshot.stamp(), &names).await?)?;
        if dataset.settings.scope == crate::config::Scope::All {
            existing.extend(page.iter().cloned());
        } else {
            existing.extend(positions.into_iter().filter_map(|position| page.get(position)).cloned());
        }
    }
    reload(context, dataset, existing, Cause::Change, &mut Job::uncounted()).await
}

async fn reload_members(
    context: &Context,
    dataset: &Dataset,
    poll: &Poll,
    keys: Vec<(String, KeyValues)>,
    job: &mut Job,
) -> Result<Report, FlowError> {
    let mut report = Report::default();
    for page in keys.chunks(PAGE) {
        let names: Vec<&str> = page.iter().map(|(key, _)| key.as_str()).collect();
        let epoch = current_epoch(context).await?;
        let standing = dataset.standing(&epoch, &poll.incarnation);
        let answer = context.redis.raise(&standing, poll.snapshot.stamp(), &names).await?;
        let positions = done(context, answer)?;
        let existing = positions.into_iter().filter_map(|position| page.get(position)).cloned().collect();
        report.add(reload(context, dataset, existing, Cause::Change, job).await?);
    }
    Ok(report)
}

async fn delete(
    context: &Context,
    poll: &Poll,
    keys: &[String],
    member_of: Option<(&mut Job, &str)>,
) -> Result<u64, FlowError> {
    let epoch = current_epoch(context).await?;
    let standing = unfenced(&epoch, poll);
    let stamp = poll.snapshot.stamp();
    let answer = match member_of {
        Some((job, set)) => {
            let answer = context.redis.invalidate_counted(&standing, stamp, keys, &job.id, set).await?;
            job.count += 1;
            answer
        }
        None => context.redis.invalidate(&standing, stamp, keys).await?,
    };
    // The delete was carried out in any case; where the order changed, the caller repeats it with the new one.
    let existed = done(context, answer)?;
    for position in &existed {
        let dataset = keys.get(*position).and_then(|key| context.catalog.of_key(key));
        let name = dataset.map_or(NO_DATASET, |(dataset, _)| dataset.name());
        context.metrics.deleted.get_or_create(&ByDatasetCause::new(name, "event")).inc();
    }
    Ok(existed.len() as u64)
}

/// Deleting needs no revision: absence is right under every definition.
fn unfenced<'a>(epoch: &'a Epoch, poll: &'a Poll) -> Standing<'a> {
    Standing { epoch, incarnation: &poll.incarnation, dataset: "", revision: "" }
}

fn done<T>(context: &Context, answer: Answer<T>) -> Result<T, FlowError> {
    match answer {
        Answer::Done(value) => Ok(value),
        Answer::Gone(gone) => {
            if gone != Gone::Revision {
                context.set_epoch(None);
            }
            Err(FlowError::Gone(gone))
        }
    }
}
