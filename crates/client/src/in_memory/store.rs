//! What Redis would hold: entries and channels, and what a worker would make of events.

use std::sync::{Arc, Mutex, MutexGuard};

use super::channels::Channels;
use super::mutex::lock;
use cachekeeper_engine::stores::memory::Memory;
use cachekeeper_protocol::event::Event;
use cachekeeper_protocol::stamp::Stamp;
use cachekeeper_protocol::template::Template;

/// What Redis would hold. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InMemory {
    entries: Arc<Mutex<Memory>>,
    pub channels: Channels,
    events_channel: Arc<str>,
    /// Names and keys of datasets.
    datasets: Vec<(String, Template)>,
    /// What the application's own keys begin with whose events a worker would apply.
    prefixes: Vec<String>,
}

impl InMemory {
    /// An empty one; on `events_channel` a worker would listen.
    pub fn new(events_channel: &str) -> Self {
        let entries = Arc::new(Mutex::new(Memory::new(Stamp::default())));
        Self {
            entries,
            channels: Channels::default(),
            events_channel: events_channel.into(),
            datasets: Vec::new(),
            prefixes: Vec::new(),
        }
    }

    /// Knows what the application has registered.
    pub fn with_prefixes(self, prefixes: Vec<String>) -> Self {
        Self { prefixes, ..self }
    }

    /// Knows a dataset's entries, so that an event can name it.
    #[cfg(feature = "postgres")]
    pub fn add_dataset(&mut self, name: &str, key: Template) {
        self.datasets.push((name.to_owned(), key));
    }

    /// The longest that they are held is one operation.
    pub fn entries(&self) -> MutexGuard<'_, Memory> {
        lock(&self.entries)
    }

    /// Listens on another channel for events.
    pub fn with_events_channel(self, name: &str) -> Self {
        Self { events_channel: name.into(), ..self }
    }

    /// Publishes a message; an event is applied, as a worker would, before anybody hears it. Answers how many hear it.
    pub fn publish(&self, channel: &str, body: &[u8]) -> u64 {
        if *channel == *self.events_channel
            && let Ok(event) = Event::decode(body)
        {
            self.apply(&event);
        }
        self.channels.publish(channel, body)
    }

    /// Deletes what an event says.
    pub fn apply(&self, event: &Event) {
        let mut entries = self.entries();
        // Of no dataset and no prefix they are nobody's, and a worker leaves them.
        let is_known = |key: &&String| {
            let is_of_dataset = self.datasets.iter().any(|(_, template)| template.read(key).is_some());
            is_of_dataset || self.prefixes.iter().any(|prefix| key.starts_with(prefix.as_str()))
        };
        let known: Vec<String> = event.keys.iter().filter(is_known).cloned().collect();
        entries.invalidate_keys(&known);
        entries.invalidate_tags(&event.tags);
        let of_dataset = self.keys_of(event, &entries);
        entries.invalidate_keys(&of_dataset);
    }

    /// The entries that an event means by a dataset and ids.
    fn keys_of(&self, event: &Event, entries: &Memory) -> Vec<String> {
        let Some(name) = &event.dataset else { return Vec::new() };
        let Some((_, key)) = self.datasets.iter().find(|(known, _)| known == name) else { return Vec::new() };
        if event.ids.is_empty() {
            let mut keys = entries.keys_beginning_with(key.prefix());
            keys.retain(|text| key.read(text).is_some());
            return keys;
        }
        let rendered = event.ids.iter().map(|id| {
            let parts: Vec<&str> = id.iter().map(String::as_str).collect();
            key.render(&parts)
        });
        rendered.filter_map(Result::ok).collect()
    }
}
