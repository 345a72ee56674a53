//! Keys of which something holds until a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

/// Keys that are remembered before those that are over are dropped; where all of them still hold, the new one is not.
const KEYS_MAX: usize = 10_000;

/// Keys, each with a moment. What is forgotten costs a load.
#[derive(Debug, Default)]
pub(super) struct KeysUntil(Mutex<HashMap<Arc<str>, Instant>>);

impl KeysUntil {
    /// It holds of this key until then.
    pub fn put(&self, key: &Arc<str>, until: Instant) {
        let mut keys = self.lock();
        if KEYS_MAX <= keys.len() {
            let now = Instant::now();
            keys.retain(|_, until| now < *until);
        }
        if keys.len() < KEYS_MAX {
            keys.insert(Arc::clone(key), until);
        }
    }

    /// Whether it holds.
    pub fn holds(&self, key: &str) -> bool {
        let mut keys = self.lock();
        match keys.get(key) {
            Some(until) if Instant::now() < *until => true,
            Some(_) => {
                keys.remove(key);
                false
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
