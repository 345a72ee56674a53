//! The beginnings of an application's own keys, which it makes known to workers: events of anybody may delete such keys.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::backend::Backend;
use cachekeeper_engine::stores::chain;
use cachekeeper_protocol::keyspace::RESERVED_PREFIX;

/// Registered prefixes are forgotten after a week, so once an hour is plenty.
const EVERY: Duration = Duration::from_secs(3600);
/// After an attempt that failed.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The prefixes, and when they are to be registered again.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    list: Mutex<Vec<String>>,
    /// None: at once.
    due: Mutex<Option<Instant>>,
}

impl Prefixes {
    /// Those that can be prefixes of an application's keys.
    pub fn new(list: Vec<String>) -> Self {
        let (list, wrong): (Vec<String>, Vec<String>) =
            list.into_iter().partition(|prefix| !prefix.is_empty() && !prefix.starts_with(RESERVED_PREFIX));
        for prefix in wrong {
            warn!(prefix, "this cannot be the prefix of an application's keys, it is not registered");
        }
        Self { list: Mutex::new(list), due: Mutex::default() }
    }

    /// One more.
    pub fn add(&self, prefix: &str) {
        let mut list = lock(&self.list);
        if !list.iter().any(|known| known == prefix) {
            list.push(prefix.to_owned());
            drop(list);
            *lock(&self.due) = None;
        }
    }

    /// Whether it is time; then the caller registers them, and nobody else meanwhile.
    pub fn begin(&self) -> bool {
        if lock(&self.list).is_empty() {
            return false;
        }
        let mut due = lock(&self.due);
        let now = Instant::now();
        let is_time = due.is_none_or(|due| due <= now);
        if is_time {
            *due = Some(now + RETRY_AFTER);
        }
        is_time
    }

    fn done(&self) {
        *lock(&self.due) = Some(Instant::now() + EVERY);
    }

    /// Registers them with workers.
    pub async fn register(&self, backend: &Backend) {
        let list = lock(&self.list).clone();
        match backend.register_prefixes(&list).await {
            Ok(true) => self.done(),
            Ok(false) => {
                self.done();
                warn!("this namespace has too many prefixes, some of this application's are not registered");
            }
            Err(error) => debug!(error = %chain(&error), "prefixes are registered later"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
