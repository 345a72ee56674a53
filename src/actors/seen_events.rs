//! Ids of events that were applied, so that one which comes by both ways is applied once.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use cachekeeper_protocol::event::Event;

/// Ids that are remembered.
const IDS_MAX: usize = 10_000;

/// Shared by all who apply events. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct SeenEvents {
    ids: Arc<Mutex<(HashSet<String>, VecDeque<String>)>>,
}

impl SeenEvents {
    /// Whether an event was not applied yet; one without an id never was.
    #[must_use]
    pub fn is_new(&self, event: &Event) -> bool {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        event.id.as_ref().is_none_or(|id| !ids.0.contains(id))
    }

    /// An event was applied.
    pub fn remember(&self, event: &Event) {
        let Some(id) = &event.id else { return };
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let (set, order) = &mut *ids;
        if set.insert(id.clone()) {
            order.push_back(id.clone());
        }
        if IDS_MAX < order.len()
            && let Some(oldest) = order.pop_front()
        {
            set.remove(&oldest);
        }
    }
}
