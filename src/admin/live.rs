//! What happens to entries, as it comes, for everybody who follows it: one task looks, and renders each touch once.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};

use super::filter::{Filter, LIMIT_MAX};
use super::leave::Leave;
use cachekeeper_engine::history::{History, Touch};

/// Between two looks: what comes faster than people can read is sampled. The more follow, the less often it comes to each.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const FEW: usize = 256;
/// Batches that wait for a stream that is slow; what is older is lost to it.
const BATCHES_MAX: usize = 16;
/// Filters of which the rendered batch is kept for the next stream.
const FILTERS_MAX: usize = 64;
/// A stream on which nothing happens is told so, that whatever is between does not close it.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What all streams share.
#[derive(Debug)]
pub(super) struct Live {
    history: Option<Arc<History>>,
    sender: broadcast::Sender<Arc<Batch>>,
}

impl Live {
    pub(super) fn new(history: Option<Arc<History>>) -> Self {
        Self { history, sender: broadcast::channel(BATCHES_MAX).0 }
    }

    /// Looks for ever, as long as anybody follows.
    pub(super) async fn run(&self) {
        let Some(history) = &self.history else { return pending().await };
        let mut after = history.last();
        loop {
            let share = u32::try_from(self.sender.receiver_count() / FEW).unwrap_or(u32::MAX);
            sleep(LOOK_EVERY.saturating_mul(share.saturating_add(1))).await;
            // Read first: whoever joins after the count begins behind it.
            let last = history.last();
            if self.sender.receiver_count() == 0 {
                after = last;
            } else if after < last {
                let batch = Batch::new(after, history);
                after = batch.last;
                // Nobody is left, then.
                drop(self.sender.send(Arc::new(batch)));
            }
        }
    }

    /// A stream from this number on, or from now on; none: no history is kept.
    pub(super) fn follow(&self, filter: Filter, after: Option<u64>, leave: Leave) -> Option<Stream> {
        let history = self.history.as_ref()?;
        // Joined before it is looked, so that nothing falls between.
        let batches = self.sender.subscribe();
        let first = after.map(|after| Batch::new(after, history));
        let after = first.as_ref().map_or_else(|| history.last(), |first| first.last);
        let first = first.and_then(|first| first.render(&filter, first.after));
        Some(Stream { filter, after, first, batches, leave })
    }
}

/// What happened between two looks.
#[derive(Debug)]
struct Batch {
    /// Behind the touch of this number, and up to the other.
    after: u64,
    last: u64,
    /// The newest of them, with their JSON.
    touches: Vec<(Arc<Touch>, String)>,
    rendered: Mutex<HashMap<String, Option<Bytes>>>,
}

impl Batch {
    fn new(after: u64, history: &History) -> Self {
        let (touches, last) = history.since(after, LIMIT_MAX, |_| true);
        let render = |touch: Arc<Touch>| {
            let json = serde_json::to_string(&*touch).unwrap_or_else(|_never| "null".to_owned());
            (touch, json)
        };
        Self { after, last, touches: touches.into_iter().map(render).collect(), rendered: Mutex::default() }
    }

    /// The event for a stream that has seen everything up to this number; none: nothing that it wants.
    fn event(&self, filter: &Filter, after: u64) -> Option<Bytes> {
        if self.after < after {
            return self.render(filter, after);
        }
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = rendered.get(&filter.text) {
            return event.clone();
        }
        let event = self.render(filter, after);
        if rendered.len() < FILTERS_MAX {
            rendered.insert(filter.text.clone(), event.clone());
        }
        event
    }

    fn render(&self, filter: &Filter, after: u64) -> Option<Bytes> {
        let newer = self.touches.iter().filter(|(touch, _)| after < touch.number && filter.wants(touch));
        let wanted: Vec<&str> = newer.map(|(_, json)| json.as_str()).collect();
        let (begin, last) = (wanted.len().saturating_sub(filter.limit), self.last);
        let is_cut = self.touches.first().is_some_and(|(first, _)| self.after + 1 < first.number);
        let touches = wanted.get(begin..).filter(|touches| !touches.is_empty())?.join(",");
        let is_sampled = 0 < begin || is_cut;
        let event = format!(
            "event: touches\ndata: {{\"touches\":[{touches}],\"last\":{last},\"is_sampled\":{is_sampled}}}\n\n"
        );
        Some(Bytes::from(event))
    }
}

/// What one of those who follow is sent.
pub(super) struct Stream {
    filter: Filter,
    /// The number up to which everything was looked through.
    after: u64,
    first: Option<Bytes>,
    batches: broadcast::Receiver<Arc<Batch>>,
    leave: Leave,
}

impl Stream {
    /// What comes next; none: it may not stay, or the listener ends.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let received = tokio::select! {
                () = self.leave.is_over() => return None,
                received = timeout(KEEP_ALIVE, self.batches.recv()) => received,
            };
            let batch = match received {
                Ok(Ok(batch)) => batch,
                // The next one tells by its number how much that was.
                Ok(Err(RecvError::Lagged(_))) => continue,
                Ok(Err(RecvError::Closed)) => return None,
                Err(_elapsed) => return Some(Bytes::from_static(b":\n\n")),
            };
            let lost = batch.after.saturating_sub(self.after);
            let event = batch.event(&self.filter, self.after);
            self.after = self.after.max(batch.last);
            if 0 < lost {
                let told = format!("event: lost\ndata: {{\"lost\":{lost}}}\n\n");
                return Some([Bytes::from(told), event.unwrap_or_default()].concat().into());
            }
            if event.is_some() {
                return event;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachekeeper_engine::history::What;

    fn filter(key: &str) -> Filter {
        let wanted = serde_json::json!({ "key": key });
        Filter::new(serde_json::from_value(wanted).unwrap()).unwrap()
    }

    #[test]
    fn streams_with_the_same_filter_share_the_same_bytes() {
        let history = History::default();
        history.note(("t", "change"), ["a:1", "b:1"].iter().map(|key| (*key, What::Stored, None)));
        let batch = Batch::new(0, &history);
        let (one, other) = (batch.event(&filter("a:*"), 0).unwrap(), batch.event(&filter("a:*"), 0).unwrap());
        assert_eq!(one.as_ptr(), other.as_ptr());
        let text = String::from_utf8(one.to_vec()).unwrap();
        assert!(text.contains("\"a:1\"") && !text.contains("b:1") && text.ends_with("}\n\n"), "{text}");
        assert_eq!(batch.event(&filter("c:*"), 0), None);
        assert_eq!(batch.event(&filter("a:*"), 2), None, "it has been seen");
    }
}
