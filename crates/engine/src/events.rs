//! Batches of events: each thing that they ask for, once.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::{debug, instrument, warn};

use super::context::Context;
use super::epoch::with_current_epoch;
use super::error::{EngineError, chain};
use super::{epoch, invalidate, log_limit};
use crate::metrics::{ByReason, BySourceKind};
use crate::shown::cut;
use crate::stores::postgres::ErrorKind;
use crate::stores::redis::OlderLoads;
use cachekeeper_protocol::event::{Event, Op};

/// Events of a channel, as a label of metrics.
pub const PUBSUB: &str = "pubsub";
/// Events of the durable stream.
pub const STREAM: &str = "stream";
/// How long an old value may stay readable while no stamp can be had.
const STAMP_WITHIN: Duration = Duration::from_millis(500);

/// Applies a batch of invalidation events. Where no stamp can be taken soon, the keys are deleted at once, but for those of events
/// that ask for a refresh: their old values stay readable. The events must be applied all the same, because an older load could
/// still come.
///
/// Answers the datasets of which a backfill is wanted; that they are pending is recorded in Redis.
///
/// # Errors
/// [`EngineError`]; the batch must be applied again.
#[instrument(level = "debug", name = "events", skip_all, fields(source, events = batch.len()))]
pub async fn apply(context: &Context, source: &str, batch: &[Event]) -> Result<Vec<String>, EngineError> {
    let mut merged = Merged::of(context, batch);
    merged.leave_out(context).await?;
    let is_down = match tokio::time::timeout(STAMP_WITHIN, context.postgres.poll()).await {
        Ok(Ok(_)) => false,
        Ok(Err(error)) => error.is_transient() && error.kind != ErrorKind::NoIncarnation,
        Err(_elapsed) => true,
    };
    if is_down && let Err(error) = invalidate::delete_now(context, &merged.keys_to_delete()).await {
        debug!(error = %chain(&error), "keys could not be deleted yet");
    }
    merged.apply(context).await?;
    merged.count(context, source);
    Ok(merged.datasets)
}

/// What a batch of events asks for, each thing once.
#[derive(Debug, Default)]
struct Merged {
    keys: Vec<(Option<Op>, Vec<String>)>,
    tags: Vec<(Option<Op>, Vec<String>)>,
    datasets: Vec<String>,
    /// Keys and tags as they were named, repetitions too.
    named: [(&'static str, u64); 2],
    /// Keys that events may not touch.
    ignored: Vec<String>,
    /// What cannot be done, and how often: names of datasets that are not configured, and datasets of ids with another number of
    /// parts than the key.
    unknown: BTreeMap<String, u64>,
    wrong_ids: BTreeMap<String, u64>,
}

impl Merged {
    fn of(context: &Context, batch: &[Event]) -> Self {
        let mut merged = Self { named: [("key", 0), ("tag", 0)], ..Self::default() };
        for op in [None, Some(Op::Refresh), Some(Op::Delete)] {
            let (mut keys, mut tags) = (Vec::new(), Vec::new());
            for event in batch.iter().filter(|event| event.op == op) {
                keys.extend(event.keys.iter().cloned());
                tags.extend(event.tags.iter().cloned());
                let Some(name) = &event.dataset else { continue };
                let Some(dataset) = context.catalog.get(name) else {
                    *merged.unknown.entry(name.clone()).or_default() += 1;
                    continue;
                };
                if event.ids.is_empty() {
                    merged.datasets.push(name.clone());
                }
                for id in &event.ids {
                    match dataset.key_of(id) {
                        Some(key) => keys.push(key),
                        None => *merged.wrong_ids.entry(name.clone()).or_default() += 1,
                    }
                }
            }
            let [of_keys, of_tags] = &mut merged.named;
            for (list, named, all) in
                [(&mut keys, of_keys, &mut merged.keys), (&mut tags, of_tags, &mut merged.tags)]
            {
                named.1 += list.len() as u64;
                list.sort_unstable();
                list.dedup();
                if !list.is_empty() {
                    all.push((op, std::mem::take(list)));
                }
            }
        }
        merged.datasets.sort_unstable();
        merged.datasets.dedup();
        merged
    }

    /// Leaves out what events may not touch.
    async fn leave_out(&mut self, context: &Context) -> Result<(), EngineError> {
        for (_, keys) in &mut self.keys {
            self.ignored.append(&mut leave_out(context, keys).await?);
        }
        let [(_, of_keys), _] = &mut self.named;
        *of_keys = of_keys.saturating_sub(self.ignored.len() as u64);
        Ok(())
    }

    /// Keys whose old values may not stay readable until a stamp can be had. Whoever asks for a refresh wants to keep them.
    fn keys_to_delete(&self) -> Vec<String> {
        let events = self.keys.iter().filter(|(op, _)| *op != Some(Op::Refresh));
        events.flat_map(|(_, keys)| keys.iter().cloned()).collect()
    }

    async fn apply(&self, context: &Context) -> Result<(), EngineError> {
        for (op, keys) in &self.keys {
            with_current_epoch(context, || invalidate::keys(context, keys, *op)).await?;
        }
        for (op, tags) in &self.tags {
            with_current_epoch(context, || invalidate::tags(context, tags, *op)).await?;
        }
        if !self.datasets.is_empty() {
            mark_pending(context, &self.datasets, "event", None).await?;
        }
        Ok(())
    }

    /// Counts what was applied. Only then, because a batch that fails is applied again, and its keys may have been deleted
    /// before.
    fn count(&self, context: &Context, source: &str) {
        for (kind, count) in self.named {
            context.metrics.events.get_or_create(&BySourceKind::new(source, kind)).inc_by(count);
        }
        count_left_out(context, &self.ignored);
        for (reason, named) in [("unknown_dataset", &self.unknown), ("wrong_id", &self.wrong_ids)] {
            let count = named.values().sum();
            if 0 < count {
                context.metrics.events_invalid.get_or_create(&ByReason::new(reason)).inc_by(count);
            }
        }
        for (dataset, count) in &self.wrong_ids {
            let what = "events have ids with another number of parts than the key";
            if let Some(count) = log_limit::due(what, dataset, *count) {
                warn!(%dataset, count, "{what}");
            }
        }
        // Anybody may name anything: these names are no labels.
        if let Some(dataset) = self.unknown.keys().next() {
            let what = "events name a dataset that is not configured";
            if let Some(count) = log_limit::due(what, "", self.unknown.values().sum()) {
                warn!(dataset = %cut(dataset), count, "{what}");
            }
        }
    }
}

/// Records that every entry of these datasets must be revalidated: by a cause that was numbered before, since when anything may
/// have happened; none: by a change that was committed by now.
pub async fn mark_pending(
    context: &Context,
    datasets: &[String],
    reason: &str,
    cause: Option<u64>,
) -> Result<(), EngineError> {
    with_current_epoch(context, || async {
        let state = epoch::ensure(context, "").await?;
        let at = (&state.epoch, state.poll.incarnation.as_str());
        let older = match cause {
            Some(_) => OlderLoads::OfDatasets,
            None => OlderLoads::Below(state.poll.snapshot.stamp()),
        };
        context
            .checked(None, context.redis.mark_pending(at, (reason, cause), datasets, older, "").await?)
            .map(drop)
    })
    .await
}

/// Deletes the keys that events name, because they cannot be applied now; not those of which a refresh is asked for.
pub async fn delete_named(context: &Context, batch: &[Event]) {
    let mut merged = Merged::of(context, batch);
    let deleted = async {
        merged.leave_out(context).await?;
        invalidate::delete_now(context, &merged.keys_to_delete()).await
    };
    if let Err(error) = deleted.await {
        debug!(error = %chain(&error), "keys could not be deleted yet");
    }
}

/// Takes the keys that may not be touched out of a list, and answers them. Those of datasets stay, and those that the
/// configuration allows or that begin as an application with the library has registered.
///
/// # Errors
/// [`EngineError`] where Redis does not say what is registered.
pub async fn leave_out(context: &Context, keys: &mut Vec<String>) -> Result<Vec<String>, EngineError> {
    let scope = &context.event_scope;
    let is_known = |key: &String| {
        let is_entry = !scope.is_internal(key) && context.catalog.position_of_key(key).is_some();
        is_entry || scope.is_allowed(key) && !scope.is_protected(key)
    };
    if keys.iter().all(is_known) {
        return Ok(Vec::new());
    }
    // Asked only where it matters, and then anew: an application may have registered a moment ago.
    let prefixes = context.redis.registered_prefixes().await?;
    let is_registered = |key: &String| prefixes.iter().any(|prefix| key.starts_with(prefix));
    let is_in_scope = |key: &String| is_known(key) || !scope.is_protected(key) && is_registered(key);
    let (kept, left_out) = std::mem::take(keys).into_iter().partition(is_in_scope);
    *keys = kept;
    Ok(left_out)
}

/// Counts keys that events named and may not touch, and says once that there are such.
fn count_left_out(context: &Context, keys: &[String]) {
    let Some(example) = keys.first() else { return };
    let protected = keys.iter().filter(|key| context.event_scope.is_protected(key)).count();
    for (reason, count) in [("protected", protected), ("unknown_key", keys.len() - protected)] {
        if 0 < count {
            context.metrics.events_ignored.get_or_create(&ByReason::new(reason)).inc_by(count as u64);
        }
    }
    if !context.event_scope.is_news() {
        debug!(keys = keys.len(), "events name keys that they may not touch");
        return;
    }
    warn!(
        keys = keys.len(),
        example = %cut(example),
        "events name keys of no dataset, they are ignored and counted; [invalidation] keys says which ones events may delete"
    );
}
