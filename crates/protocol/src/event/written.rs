//! Events as they are published: as JSON, and as the fields of a stream entry.

use serde_json::{Map, Value, json};

use super::Event;

impl Event {
    /// The event as JSON, for publishing. [`Self::decode`] reads the same event.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.to_map()).to_string()
    }

    /// The event as fields of a stream entry. [`Self::from_fields`] reads the same event.
    #[must_use]
    pub fn to_fields(&self) -> Vec<(String, String)> {
        let text = |(name, value): (String, Value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        };
        self.to_map().into_iter().map(text).collect()
    }

    fn to_map(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut put = |name: &str, value| drop(fields.insert(name.to_owned(), value));
        if let Some(op) = self.op {
            put("op", json!(op.as_str()));
        }
        if let Some(id) = &self.id {
            put("id", json!(id));
        }
        if let Some(at_ms) = self.at_ms {
            put("at", json!(at_ms));
        }
        match self.keys.as_slice() {
            [] => {}
            [key] => put("key", json!(key)),
            keys => put("keys", json!(keys)),
        }
        match self.tags.as_slice() {
            [] => {}
            [tag] => put("tag", json!(tag)),
            tags => put("tags", json!(tags)),
        }
        if let Some(dataset) = &self.dataset {
            put("dataset", json!(dataset));
        }
        if !self.ids.is_empty() {
            let ids: Vec<_> = self.ids.iter().map(|id| id_to_json(id)).collect();
            put("ids", json!(ids));
        }
        fields
    }
}

/// An id of one column stands for itself.
fn id_to_json(id: &[String]) -> Value {
    match id {
        [only] => json!(only),
        parts => json!(parts),
    }
}
