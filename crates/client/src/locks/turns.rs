//! Whose turn it is within this process: for each name, first come, first served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Debug, Default)]
pub(super) struct Turns {
    by_name: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// From so many names on those that nobody uses are dropped.
const SWEEP_FROM: usize = 1_024;

impl Turns {
    /// Waits for the turn at all of these names, which are sorted: so nobody waits for each other.
    pub async fn of(&self, names: &[String]) -> Vec<OwnedSemaphorePermit> {
        let mut turns = Vec::with_capacity(names.len());
        for name in names {
            // It is never closed.
            if let Ok(turn) = self.semaphore(name).acquire_owned().await {
                turns.push(turn);
            }
        }
        turns
    }

    fn semaphore(&self, name: &str) -> Arc<Semaphore> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if SWEEP_FROM <= by_name.len() && by_name.len().is_power_of_two() {
            // Whoever waits or holds has a clone.
            by_name.retain(|_, semaphore| 1 < Arc::strong_count(semaphore));
        }
        Arc::clone(by_name.entry(name.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))))
    }
}
