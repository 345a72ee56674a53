//! Batches of events: each thing that they ask for, once.

use std::time::Duration;

use tracing::{debug, warn};

use super::context::Context;
use super::error::{FlowError, chain};
use super::reload::with_current_order;
use super::{epoch, invalidate};
use crate::metrics::{ByReason, BySourceKind};
use crate::stores::postgres::Trouble;
use crate::stores::redis::{Answer, PendingRevalidation};
use cachekeeper_protocol::event::{Event, Op};

/// Events of a channel, as a label of metrics.
pub const PUBSUB: &str = "pubsub";
/// Events of the durable stream.
pub const STREAM: &str = "stream";
/// How long an old value may stay readable while no stamp can be had.
const STAMP_WITHIN: Duration = Duration::from_millis(500);

/// Obeys a batch. Where no stamp can be taken soon, the keys are deleted at once: absence is always right. The events
/// must be obeyed all the same, because an older load could still come.
///
/// Answers the datasets of which a pass is wanted; that they are owed is written down.
///
/// # Errors
/// [`FlowError`]; the batch must be obeyed again.
pub async fn obey(context: &Context, source: &str, batch: &[Event]) -> Result<Vec<String>, FlowError> {
    let merged = Merged::of(context, source, batch);
    let is_down = match tokio::time::timeout(STAMP_WITHIN, context.postgres.poll()).await {
        Ok(Ok(_)) => false,
        Ok(Err(error)) => error.is_transient() && error.trouble != Trouble::NoIncarnation,
        Err(_elapsed) => true,
    };
    if is_down && let Err(error) = invalidate::delete_now(context, &merged.all_keys()).await {
        debug!(error = %chain(&error), "keys could not be deleted yet");
    }
    merged.obey(context).await?;
    Ok(merged.datasets)
}

/// What a batch of events asks for, each thing once.
#[derive(Debug, Default)]
struct Merged {
    keys: Vec<(Option<Op>, Vec<String>)>,
    tags: Vec<(Option<Op>, Vec<String>)>,
    datasets: Vec<String>,
}

impl Merged {
    fn of(context: &Context, source: &str, batch: &[Event]) -> Self {
        let mut merged = Self::default();
        for op in [None, Some(Op::Refresh), Some(Op::Delete)] {
            let (mut keys, mut tags) = (Vec::new(), Vec::new());
            for event in batch.iter().filter(|event| event.op == op) {
                keys.extend(event.keys.iter().cloned());
                tags.extend(event.tags.iter().cloned());
                let Some(name) = &event.dataset else { continue };
                let Some(dataset) = context.catalog.get(name) else {
                    context.metrics.events_invalid.get_or_create(&ByReason::new("unknown_dataset")).inc();
                    warn!(dataset = %name, "an event names a dataset that is not configured");
                    continue;
                };
                if event.ids.is_empty() {
                    merged.datasets.push(name.clone());
                }
                for id in &event.ids {
                    match dataset.key_of(id) {
                        Some(key) => keys.push(key),
                        None => {
                            context.metrics.events_invalid.get_or_create(&ByReason::new("wrong_id")).inc();
                            warn!(dataset = %name, "an event has an id with another number of parts than the key");
                        }
                    }
                }
            }
            for (kind, list, all) in
                [("key", &mut keys, &mut merged.keys), ("tag", &mut tags, &mut merged.tags)]
            {
                let labels = BySourceKind::new(source, kind);
                context.metrics.events.get_or_create(&labels).inc_by(list.len() as u64);
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

    fn all_keys(&self) -> Vec<String> {
        self.keys.iter().flat_map(|(_, keys)| keys.iter().cloned()).collect()
    }

    async fn obey(&self, context: &Context) -> Result<(), FlowError> {
        for (op, keys) in &self.keys {
            with_current_order(context, || invalidate::keys(context, keys, *op)).await?;
        }
        for (op, tags) in &self.tags {
            with_current_order(context, || invalidate::tags(context, tags, *op)).await?;
        }
        if !self.datasets.is_empty() {
            owe(context, &self.datasets, "event", None).await?;
        }
        Ok(())
    }
}

/// Writes down that every entry of these datasets must be looked at again, as of a moment of Redis's clock; none: now.
///
/// # Errors
/// [`FlowError`].
pub async fn owe(
    context: &Context,
    datasets: &[String],
    reason: &str,
    made_ms: Option<u64>,
) -> Result<(), FlowError> {
    with_current_order(context, || async {
        let order = epoch::ensure(context, "").await?;
        let debt = PendingRevalidation::new(reason, made_ms.unwrap_or(order.head.now_ms));
        match context
            .redis
            .mark_pending((&order.epoch, &order.poll.incarnation), &debt, datasets, None, "")
            .await?
        {
            Answer::Done(_) => Ok(()),
            Answer::Failed(gone) => Err(FlowError::Gone(gone)),
        }
    })
    .await
}

/// Deletes the keys that events name, because they cannot be obeyed now.
pub async fn delete_named(context: &Context, batch: &[Event]) {
    let keys = Merged::of(context, PUBSUB, batch).all_keys();
    if let Err(error) = invalidate::delete_now(context, &keys).await {
        debug!(error = %chain(&error), "keys could not be deleted yet");
    }
}
