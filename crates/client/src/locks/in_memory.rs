//! Locks within the process. They end as those in Redis do: by release, by their lifetime where nobody renews them, by `max_hold`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::LockError;
use super::options::LockOptions;
use super::turns::Turns;
use crate::moments::after;

/// All locks of one cache in memory: to have one is to have its turn.
#[derive(Debug, Default)]
pub struct MemoryLocks {
    turns: Turns,
    tokens: AtomicU64,
    /// When those that are held end, as far as it is known.
    ends: Arc<Mutex<HashMap<String, Option<Instant>>>>,
}

/// Locks that are held, until it is dropped or they end.
#[derive(Debug)]
pub struct Hold {
    pub names: Vec<String>,
    pub token: u64,
    pub lost: CancellationToken,
    held: Arc<Held>,
    /// Ends the task that waits for the end.
    _timer: DropGuard,
}

#[derive(Debug)]
struct Held {
    names: Vec<String>,
    turns: Mutex<Vec<OwnedSemaphorePermit>>,
    ends: Arc<Mutex<HashMap<String, Option<Instant>>>>,
}

impl MemoryLocks {
    /// Takes all of these, whose names are sorted.
    pub async fn take(&self, names: Vec<String>, options: LockOptions) -> Result<Hold, LockError> {
        let Ok(turns) = timeout_at(after(options.wait), self.turns.of(&names)).await else {
            return Err(self.held(&names));
        };
        let life = (!options.is_renewed).then_some(options.life);
        let end = [life, options.max_hold].into_iter().flatten().min().map(after);
        lock(&self.ends).extend(names.iter().map(|name| (name.clone(), end)));
        let ends = Arc::clone(&self.ends);
        let held = Arc::new(Held { names: names.clone(), turns: Mutex::new(turns), ends });
        let (lost, ended) = (CancellationToken::new(), CancellationToken::new());
        if let Some(end) = end {
            let (held, lost, ended) = (Arc::clone(&held), lost.clone(), ended.clone());
            drop(tokio::spawn(async move {
                if timeout_at(end, ended.cancelled()).await.is_err() {
                    lost.cancel();
                    held.give_back();
                }
            }));
        }
        let token = self.tokens.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Hold { names, token, lost, held, _timer: ended.drop_guard() })
    }

    /// Waits until a lock is free; false: it was not within this time.
    pub async fn wait_for_unlock(&self, name: &str, at_most: Duration) -> bool {
        timeout_at(after(at_most), self.turns.of(&[name.to_owned()])).await.is_ok()
    }

    fn held(&self, names: &[String]) -> LockError {
        let ends = lock(&self.ends);
        let name = names.iter().find(|name| ends.contains_key(*name)).or(names.first());
        let end = name.and_then(|name| ends.get(name).copied().flatten());
        let left = end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        let name = name.cloned().unwrap_or_default();
        LockError::Held { name, owner: "another task of this process".to_owned(), left }
    }
}

impl Held {
    /// False: it had ended.
    fn give_back(&self) -> bool {
        let turns = std::mem::take(&mut *lock(&self.turns));
        if turns.is_empty() {
            return false;
        }
        // Before the turns end: whoever comes next says when its own end.
        let mut ends = lock(&self.ends);
        for name in &self.names {
            ends.remove(name);
        }
        drop(ends);
        drop(turns);
        true
    }
}

impl Hold {
    /// Gives it back; false: it had ended.
    pub fn release(self) -> bool {
        self.held.give_back()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.give_back();
    }
}

/// Nobody leaves it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
