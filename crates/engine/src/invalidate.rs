//! What an event asks for: raise first, then reload or delete (R6, R8).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::catalog::Dataset;
use super::context::Context;
use super::epoch;
use super::error::EngineError;
use super::history::What;
use super::load::{Cause, Job, Keys, LoadOptions, LoadReport, load};
use crate::metrics::ByDatasetCause;
use crate::stores::postgres::{KeyValues, Poll};
use crate::stores::redis::{Epoch, Precondition, Settled};
use cachekeeper_config::{OnChange, Scope};
use cachekeeper_protocol::event::Op;

/// Keys of one script.
const PAGE: usize = 256;
/// Members of one page of a tag; small sets come whole, whatever is asked for.
const TAG_PAGE: usize = 256;
/// The label of entries that belong to no dataset.
const NO_DATASET: &str = "none";

/// Invalidates keys: those of a dataset as the event or the dataset says, those of none are deleted. What an event may not
/// touch, [`super::event_scope`] has left out before.
///
/// # Errors
/// [`EngineError`]; the event must then be applied again.
pub async fn keys(context: &Context, keys: &[String], op: Option<Op>) -> Result<LoadReport, EngineError> {
    let context = &*context.pinned().await?;
    let poll = epoch::poll(context).await?;
    let mut report = LoadReport::default();
    let sorted = Sorted::new(context, keys.iter().cloned(), op);
    for (dataset, keys) in &sorted.to_delete {
        report.invalidated += delete(context, dataset, &poll, keys, None).await?;
    }
    for (dataset, keys) in sorted.to_reload.into_values() {
        let mut job = Job::uncounted();
        let wanted = raise_keys(context, &dataset, &poll, &keys, &mut job).await?.wanted();
        report.add(load_or_delete(context, &dataset, &poll, &wanted, &mut job).await?);
    }
    Ok(report)
}

/// Invalidates every member of tags.
///
/// # Errors
/// [`EngineError`]; the event must then be applied again. [`EngineError::RedisRolledBack`] where Redis rolled back meanwhile.
pub async fn tags(context: &Context, tags: &[String], op: Option<Op>) -> Result<LoadReport, EngineError> {
    let context = &*context.pinned().await?;
    // What applications hold under these tags without a stamp is guarded by counters.
    context.redis.invalidate_tags(tags).await?;
    let mut job = Job::new("tags");
    let state = epoch::ensure(context, &job.id).await?;
    job.count = state.metadata.counted;
    let precondition = of_no_dataset(&state.epoch, &state.poll);
    let at = (&state.epoch, &state.poll);
    let report = members(context, at, tags, op, &mut PlainReload { context }, &mut job).await?;
    // Nothing is pending here, but a rollback in between would have hidden members from the enumeration.
    let answer = context.redis.finish_job(&precondition, &job.id, job.count, Settled::Nothing).await?;
    context.claimed(None, answer)?;
    Ok(report)
}

/// Loads what was raised; by a definition that is not the registered one nothing may be stored, so it is deleted then.
async fn load_or_delete(
    context: &Context,
    dataset: &Dataset,
    poll: &Poll,
    keys: &[(String, KeyValues)],
    job: &mut Job,
) -> Result<LoadReport, EngineError> {
    match load(context, dataset, keys, LoadOptions::because(Cause::Event), job).await {
        Err(EngineError::Superseded { .. }) => {
            let invalidated = delete_keys(context, poll, keys, job).await?;
            Ok(LoadReport { invalidated, ..LoadReport::default() })
        }
        loaded => loaded,
    }
}

/// How members of a tag, which exist or have existed, come to be loaded again.
pub(super) trait ReloadMembers: Send {
    /// Raises the keys, so that nothing older can be stored any more, and sees to those that exist.
    fn reload(
        &mut self,
        dataset: &Dataset,
        poll: &Poll,
        keys: Keys,
        job: &mut Job,
    ) -> impl Future<Output = Result<LoadReport, EngineError>> + Send;
}

/// At once; whoever asked begins again where that fails.
struct PlainReload<'a> {
    context: &'a Context,
}

impl ReloadMembers for PlainReload<'_> {
    async fn reload(
        &mut self,
        dataset: &Dataset,
        poll: &Poll,
        keys: Keys,
        job: &mut Job,
    ) -> Result<LoadReport, EngineError> {
        let raised = raise_keys(self.context, dataset, poll, &keys, job).await?;
        load_or_delete(self.context, dataset, poll, &raised.existing, job).await
    }
}

/// Raises tags and invalidates their members, as steps of a counted job that makes a claim later.
pub(super) async fn members(
    context: &Context,
    at: (&Epoch, &Poll),
    tags: &[String],
    op: Option<Op>,
    reload: &mut impl ReloadMembers,
    job: &mut Job,
) -> Result<LoadReport, EngineError> {
    let precondition = of_no_dataset(at.0, at.1);
    let stamp = at.1.snapshot.stamp();
    let sets = context.checked(None, context.redis.raise_tags(&precondition, stamp, &job.id, tags).await?)?;
    job.count += 1;
    let mut report = LoadReport::default();
    for (set, _size) in sets {
        report.add(invalidate_set(context, at, (&set, op), reload, job).await?);
    }
    Ok(report)
}

/// Invalidates the members of one set; while one page is worked off, the next is on its way.
async fn invalidate_set(
    context: &Context,
    at: (&Epoch, &Poll),
    (set, op): (&str, Option<Op>),
    reload: &mut impl ReloadMembers,
    job: &mut Job,
) -> Result<LoadReport, EngineError> {
    let precondition = of_no_dataset(at.0, at.1);
    let id = job.id.clone();
    let fetch = async |cursor: u64| {
        let page = context.redis.members(&precondition, &id, set, cursor, TAG_PAGE).await?;
        context.checked(None, page)
    };
    let mut report = LoadReport::default();
    let (mut cursor, mut members) = fetch(0).await?;
    job.count += 1;
    loop {
        let keys = members.into_iter().filter_map(|member| String::from_utf8(member).ok());
        let sorted = Sorted::new(context, keys, op);
        let work = invalidate_members(context, at.1, (set, sorted), reload, job);
        if cursor == 0 {
            report.add(work.await?);
            return Ok(report);
        }
        let (next, worked) = tokio::join!(fetch(cursor), work);
        report.add(worked?);
        (cursor, members) = next?;
        job.count += 1;
    }
}

async fn invalidate_members(
    context: &Context,
    poll: &Poll,
    (set, sorted): (&str, Sorted),
    reload: &mut impl ReloadMembers,
    job: &mut Job,
) -> Result<LoadReport, EngineError> {
    let mut report = LoadReport::default();
    for (dataset, keys) in &sorted.to_delete {
        report.invalidated += delete(context, dataset, poll, keys, Some((&mut *job, set))).await?;
    }
    for (dataset, keys) in sorted.to_reload.into_values() {
        report.add(reload.reload(&dataset, poll, keys, job).await?);
    }
    Ok(report)
}

/// Deletes keys at once and without a stamp, because none can be had while Postgres is down. The event is kept and
/// applied again: until then an older load could still bring the old value back.
pub(crate) async fn delete_now(context: &Context, keys: &[String]) -> Result<(), EngineError> {
    let context = &*context.pinned().await?;
    let keys: Vec<&String> = keys.iter().filter(|key| context.redis.takes(key)).collect();
    for page in keys.chunks(PAGE) {
        context.redis.invalidate_keys(page, "").await?;
    }
    Ok(())
}

/// Keys to load again, by dataset.
pub(super) type Reloads = BTreeMap<String, (Arc<Dataset>, Keys)>;

/// Keys by what is to be done with them.
#[derive(Default)]
struct Sorted {
    to_delete: BTreeMap<String, Vec<String>>,
    to_reload: Reloads,
}

impl Sorted {
    fn new(context: &Context, keys: impl Iterator<Item = String>, op: Option<Op>) -> Self {
        let mut sorted = Self::default();
        // Members of tags may have left with their cluster slot, and events name keys of every shard.
        for key in keys.filter(|key| context.redis.takes(key)) {
            let Some((dataset, values)) = context.catalog.of_key(&key) else {
                if !context.event_scope.is_protected(&key) {
                    sorted.delete(NO_DATASET, key);
                }
                continue;
            };
            let refresh = match op {
                Some(Op::Refresh) => true,
                Some(Op::Delete) => false,
                None => dataset.settings.on_change == OnChange::Refresh,
            };
            if !refresh || dataset.is_superseded() {
                sorted.delete(dataset.name(), key);
                continue;
            }
            match sorted.to_reload.get_mut(dataset.name()) {
                Some((_, keys)) => keys.push((key, values)),
                None => {
                    let entry = (Arc::clone(dataset), vec![(key, values)]);
                    sorted.to_reload.insert(dataset.name().to_owned(), entry);
                }
            }
        }
        sorted
    }

    fn delete(&mut self, dataset: &str, key: String) {
        match self.to_delete.get_mut(dataset) {
            Some(keys) => keys.push(key),
            None => drop(self.to_delete.insert(dataset.to_owned(), vec![key])),
        }
    }
}

/// Keys that were raised: nothing older can be stored any more.
#[derive(Debug, Clone, Default)]
pub(super) struct RaisedKeys {
    /// Those that have an entry.
    pub existing: Keys,
    /// Those that have none, where Redis is to hold every row.
    pub absent: Keys,
}

impl RaisedKeys {
    /// What is to be loaded.
    pub fn wanted(self) -> Keys {
        let mut keys = self.existing;
        keys.extend(self.absent);
        keys
    }
}

/// Raises keys (R6).
pub(super) async fn raise_keys(
    context: &Context,
    dataset: &Dataset,
    poll: &Poll,
    keys: &[(String, KeyValues)],
    job: &mut Job,
) -> Result<RaisedKeys, EngineError> {
    let mut raised = RaisedKeys::default();
    for page in keys.chunks(PAGE) {
        let mut positions = raise(context, poll, page, job).await?.into_iter().peekable();
        for (position, key) in page.iter().enumerate() {
            if positions.next_if_eq(&position).is_some() {
                raised.existing.push(key.clone());
            } else if dataset.settings.scope == Scope::All {
                raised.absent.push(key.clone());
            }
        }
    }
    Ok(raised)
}

async fn raise(
    context: &Context,
    poll: &Poll,
    page: &[(String, KeyValues)],
    job: &mut Job,
) -> Result<Vec<usize>, EngineError> {
    let names: Vec<&str> = page.iter().map(|(key, _)| key.as_str()).collect();
    let current = epoch::current(context).await?;
    let precondition = of_no_dataset(&current, poll);
    let answer = context.redis.raise(&precondition, poll.snapshot.stamp(), &names, &job.id).await?;
    job.count += u64::from(!job.id.is_empty());
    context.checked(None, answer)
}

/// Raises and deletes keys, as steps of a counted job.
pub(super) async fn delete_keys(
    context: &Context,
    poll: &Poll,
    keys: &[(String, KeyValues)],
    job: &mut Job,
) -> Result<u64, EngineError> {
    let mut deleted = 0;
    for page in keys.chunks(PAGE) {
        let names: Vec<&str> = page.iter().map(|(key, _)| key.as_str()).collect();
        let current = epoch::current(context).await?;
        let precondition = of_no_dataset(&current, poll);
        let stamp = poll.snapshot.stamp();
        let answer = context.redis.invalidate(&precondition, stamp, &names, &job.id, "").await?;
        job.count += 1;
        let touches = names.iter().map(|key| (*key, What::Deleted, None));
        context.note_touches((NO_DATASET, "change"), touches);
        deleted += context.checked(None, answer)?;
    }
    Ok(deleted)
}

async fn delete(
    context: &Context,
    dataset: &str,
    poll: &Poll,
    keys: &[String],
    mut member_of: Option<(&mut Job, &str)>,
) -> Result<u64, EngineError> {
    let mut deleted = 0;
    for page in keys.chunks(PAGE) {
        if dataset == NO_DATASET {
            // An application's own: what it is loading meanwhile carries no stamp.
            deleted += context.redis.invalidate_keys(page, "").await?;
        }
        let current = epoch::current(context).await?;
        let precondition = of_no_dataset(&current, poll);
        let stamp = poll.snapshot.stamp();
        let (job, set) = member_of.as_ref().map_or(("", ""), |(job, set)| (job.id.as_str(), *set));
        let answer = context.redis.invalidate(&precondition, stamp, page, job, set).await?;
        if let Some((job, _)) = &mut member_of {
            job.count += 1;
        }
        let touches = page.iter().map(|key| (key.as_str(), What::Deleted, None));
        context.note_touches((dataset, "event"), touches);
        // The delete was carried out in any case; where the epoch changed, the caller repeats it under the new one.
        deleted += context.checked(None, answer)?;
    }
    context.metrics.deleted.get_or_create(&ByDatasetCause::new(dataset, "event")).inc_by(deleted);
    Ok(deleted)
}

/// Deleting needs no revision: absence is right under every definition.
fn of_no_dataset<'a>(epoch: &'a Epoch, poll: &'a Poll) -> Precondition<'a> {
    Precondition { epoch, incarnation: &poll.incarnation, dataset: "", revision: "" }
}
