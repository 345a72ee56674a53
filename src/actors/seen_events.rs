//! Events with an id that were applied, so that one which comes by both ways is applied once. The same id with other contents
//! is another event.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use cachekeeper_protocol::event::Event;
use cachekeeper_protocol::keyspace::key_hash;

/// Ids that are remembered.
const IDS_MAX: usize = 10_000;

/// The id, and a hash of what the event asks for: when it was sent does not matter.
type EventId = (String, u64);

fn id_of(event: &Event) -> Option<EventId> {
    let id = event.id.clone()?;
    let contents = Event { id: None, at_ms: None, ..event.clone() };
    Some((id, key_hash(contents.to_json().as_bytes())))
}

/// Shared by all who apply events. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SeenEvents {
    ids: Arc<Mutex<(HashSet<EventId>, VecDeque<EventId>)>>,
}

impl SeenEvents {
    /// Whether an event was not applied yet; one without an id never was.
    #[must_use]
    pub fn is_new(&self, event: &Event) -> bool {
        let Some(id) = id_of(event) else { return true };
        !self.ids.lock().unwrap_or_else(PoisonError::into_inner).0.contains(&id)
    }

    /// An event was applied.
    pub fn remember(&self, event: &Event) {
        let Some(id) = id_of(event) else { return };
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let (set, order) = &mut *ids;
        if set.insert(id.clone()) {
            order.push_back(id);
        }
        if IDS_MAX < order.len()
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }
}
