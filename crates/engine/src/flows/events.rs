//! Batches of events: each thing that they ask for, once.

use std::time::Duration;

use tracing::{debug, warn};

use super::context::Context;
use super::error::{FlowError, chain};
use super::reload::with_current_order;
use super::{epoch, invalidate};
use crate::metrics::{ByReason, BySourceKind};
use crate::stores::postgres::ErrorKind;
use crate::stores::redis::{Answer, Debt};
use cachekeeper_protocol::event::{Event, Op};

/// Events of a channel, as a label of metrics.
pub const PUBSUB: &str = "pubsub";
/// Events of the durable stream.
pub const STREAM: &str = "stream";
/// How long an old value may stay readable while no stamp can be had.
const STAMP_WITHIN: Duration = Duration::from_millis(500);

/// Applies a batch. Where no stamp can be taken soon, the keys are deleted at once: absence is always right. The events must
/// be applied all the same, because an older load could still come.
///
/// Answers the datasets of which a backfill is wanted; that they are pending is written down.
///
/// # Errors
/// [`FlowError`]; the batch must be applied again.
pub async fn apply(context: &Context, source: &str, batch: &[Event]) -> Result<Vec<String>, FlowError> {
    let merged = Merged::of(context, batch);
    let is_down = match tokio::time::timeout(STAMP_WITHIN, context.postgres.poll()).await {
        Ok(Ok(_)) => false,
        Ok(Err(error)) => error.is_transient() && error.kind != ErrorKind::NoIncarnation,
        Err(_elapsed) => true,
    };
    if is_down && let Err(error) = invalidate::delete_now(context, &merged.all_keys()).await {
        debug!(error = %chain(&error), "keys could not be deleted yet");
    }
    merged.apply(context).await?;
    // Once for each event, however often its batch was tried.
    merged.count(context, source);
    Ok(merged.datasets)
}

/// What a batch of events asks for, each thing once.
#[derive(Debug, Default)]
struct Merged {
    keys: Vec<(Option<Op>, Vec<String>)>,
    tags: Vec<(Option<Op>, Vec<String>)>,
    datasets: Vec<String>,
    /// Keys and tags that were named, each as often as it was.
    named: (u64, u64),
    /// Events that name something which does not exist: why, and the dataset.
    wrong: Vec<(&'static str, String)>,
}

impl Merged {
    fn of(context: &Context, batch: &[Event]) -> Self {
        let mut merged = Self::default();
        for op in [None, Some(Op::Refresh), Some(Op::Delete)] {
            let (mut keys, mut tags) = (Vec::new(), Vec::new());
            for event in batch.iter().filter(|event| event.op == op) {
                keys.extend(event.keys.iter().cloned());
                tags.extend(event.tags.iter().cloned());
                let Some(name) = &event.dataset else { continue };
                let Some(dataset) = context.catalog.get(name) else {
                    merged.wrong.push(("unknown_dataset", name.clone()));
                    continue;
                };
                if event.ids.is_empty() {
                    merged.datasets.push(name.clone());
                }
                for id in &event.ids {
                    match dataset.key_of(id) {
                        Some(key) => keys.push(key),
                        None => merged.wrong.push(("wrong_id", name.clone())),
                    }
                }
            }
            let named = &mut merged.named;
            for (list, all, count) in
                [(&mut keys, &mut merged.keys, &mut named.0), (&mut tags, &mut merged.tags, &mut named.1)]
            {
                *count += list.len() as u64;
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

    fn count(&self, context: &Context, source: &str) {
        for (kind, count) in [("key", self.named.0), ("tag", self.named.1)] {
            context.metrics.events.get_or_create(&BySourceKind::new(source, kind)).inc_by(count);
        }
        for (reason, dataset) in &self.wrong {
            context.metrics.events_invalid.get_or_create(&ByReason::new(reason)).inc();
            warn!(dataset, reason, "an event names a dataset or an entry that cannot exist");
        }
    }

    fn all_keys(&self) -> Vec<String> {
        self.keys.iter().flat_map(|(_, keys)| keys.iter().cloned()).collect()
    }

    async fn apply(&self, context: &Context) -> Result<(), FlowError> {
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

/// Writes down that these datasets must be revalidated, as of a moment of Redis's clock; none: now.
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
        let debt = Debt::new(reason, made_ms.unwrap_or(order.head.now_ms));
        match context.redis.owe((&order.epoch, &order.poll.incarnation), &debt, datasets, None, "").await? {
            Answer::Done(_) => Ok(()),
            Answer::Gone(gone) => Err(FlowError::Gone(gone)),
        }
    })
    .await
}

/// Deletes the keys that events name, because they cannot be applied now. They are counted when they are.
pub async fn delete_named(context: &Context, batch: &[Event]) {
    let keys = Merged::of(context, batch).all_keys();
    if let Err(error) = invalidate::delete_now(context, &keys).await {
        debug!(error = %chain(&error), "keys could not be deleted yet");
    }
}
