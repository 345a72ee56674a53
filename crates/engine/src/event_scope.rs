//! What events may touch. Anybody may publish, from every database number: so an event reaches the entries of datasets, and
//! of the other keys only those that somebody allowed by name. Cachekeeper's own keys, streams and lists for replies it
//! never reaches.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::stores::redis::dead_of;
use cachekeeper_config::Config;
use cachekeeper_protocol::glob::Glob;
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;

/// What the configuration says about keys of no dataset.
#[derive(Debug)]
pub struct EventScope {
    /// Patterns of keys that events may delete.
    allowed: Vec<Glob>,
    /// The streams, and what is kept apart of them.
    streams: Vec<String>,
    reply_prefix: String,
    /// Whether it was said that such keys come.
    is_told: AtomicBool,
}

impl EventScope {
    /// What a configuration says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let streams = [&config.invalidation.stream, &config.writes.stream].into_iter().flatten();
        Self {
            allowed: config.invalidation.keys.clone(),
            streams: streams.flat_map(|stream| [stream.clone(), dead_of(stream)]).collect(),
            reply_prefix: config.writes.reply_prefix.clone(),
            is_told: AtomicBool::new(false),
        }
    }

    /// What the names of lists for replies begin with.
    #[must_use]
    pub fn reply_prefix(&self) -> &str {
        &self.reply_prefix
    }

    /// Whether this is a key that Cachekeeper itself uses.
    pub(super) fn is_internal(&self, key: &str) -> bool {
        key.starts_with(RESERVED_PREFIX) || self.streams.iter().any(|stream| stream == key)
    }

    /// Whether a key of no dataset must stay, whoever names it.
    #[must_use]
    pub fn is_protected(&self, key: &str) -> bool {
        self.is_internal(key) || key.starts_with(&self.reply_prefix)
    }

    /// Whether the configuration allows events to delete this key.
    pub(super) fn is_allowed(&self, key: &str) -> bool {
        self.allowed.iter().any(|glob| glob.matches(key))
    }

    /// True once: whoever asks first says that such keys come.
    pub(super) fn is_news(&self) -> bool {
        !self.is_told.swap(true, Ordering::Relaxed)
    }
}
