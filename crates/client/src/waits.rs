//! Which loads wait for which: a loader that asks for a value whose own loader waits for it would wait for ever.
//!
//! What a loader asks for in its own task is seen; what it asks for in a task that it spawns is not.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

tokio::task_local! {
    static LOADING: Arc<Loading>;
}

/// The load that runs in this task.
#[derive(Debug)]
pub(super) struct Loading {
    keys: Vec<Arc<str>>,
    waits: Arc<Waits>,
    /// Keys whose values have tags that were not known before.
    late: Mutex<HashSet<Arc<str>>>,
}

impl Loading {
    pub fn new(keys: Vec<Arc<str>>, waits: &Arc<Waits>) -> Arc<Self> {
        Arc::new(Self { keys, waits: Arc::clone(waits), late: Mutex::default() })
    }

    /// Runs a loader as this load.
    pub async fn run<T>(self: &Arc<Self>, loader: impl Future<Output = T>) -> T {
        LOADING.scope(Arc::clone(self), loader).await
    }

    pub fn has_late_tags(&self, key: &str) -> bool {
        lock(&self.late).contains(key)
    }
}

/// Whether a loader runs in this task.
pub(super) fn is_within_load() -> bool {
    LOADING.try_with(|_| ()).is_ok()
}

/// What was loaded under this key has tags that were not known before.
pub(super) fn note_late_tags(key: &str) {
    // Outside of a load nobody asks for it.
    if let Ok(loading) = LOADING.try_with(Arc::clone) {
        lock(&loading.late).insert(key.into());
    }
}

/// For each key that is loaded, the keys that its loader waits for.
#[derive(Debug, Default)]
pub(super) struct Waits {
    by_key: Mutex<HashMap<Arc<str>, Vec<Arc<str>>>>,
}

/// A loader waits for a key while this lives; for nothing where no loader asks.
#[derive(Debug)]
pub(super) struct Waiting(Option<(Arc<Loading>, Arc<str>)>);

impl Waits {
    /// Whoever runs in this task begins to wait for a key. None: it would wait for itself.
    pub fn begin(self: &Arc<Self>, key: &Arc<str>) -> Option<Waiting> {
        let own = LOADING.try_with(Arc::clone).ok().filter(|loading| Arc::ptr_eq(&loading.waits, self));
        let Some(loading) = own else { return Some(Waiting(None)) };
        let mut by_key = lock(&self.by_key);
        if leads_to(&by_key, key, &loading.keys) {
            return None;
        }
        for own in &loading.keys {
            by_key.entry(Arc::clone(own)).or_default().push(Arc::clone(key));
        }
        drop(by_key);
        Some(Waiting(Some((loading, Arc::clone(key)))))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((loading, key)) = &self.0 else { return };
        let mut by_key = lock(&loading.waits.by_key);
        for own in &loading.keys {
            let Some(waits) = by_key.get_mut(own) else { continue };
            if let Some(at) = waits.iter().position(|one| one == key) {
                waits.swap_remove(at);
            }
            if waits.is_empty() {
                by_key.remove(own);
            }
        }
    }
}

/// Whether whoever waits for `from` waits, over any number of steps, for one of `ends`.
fn leads_to(by_key: &HashMap<Arc<str>, Vec<Arc<str>>>, from: &Arc<str>, ends: &[Arc<str>]) -> bool {
    let (mut seen, mut next) = (HashSet::new(), vec![from]);
    while let Some(key) = next.pop() {
        if ends.contains(key) {
            return true;
        }
        if seen.insert(key) {
            next.extend(by_key.get(key).into_iter().flatten());
        }
    }
    false
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
