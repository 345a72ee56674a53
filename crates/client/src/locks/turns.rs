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
    /// Waits for the turn at all of these names. Whoever waits for one of them keeps none of the others from anybody.
    pub async fn of(&self, names: &[String]) -> Vec<OwnedSemaphorePermit> {
        let mut awaited = 0;
        'again: loop {
            let Some(name) = names.get(awaited) else { return Vec::new() };
            // It is never closed.
            let Ok(turn) = self.semaphore(name).acquire_owned().await else { return Vec::new() };
            let mut turns = vec![turn];
            for (at, name) in names.iter().enumerate().filter(|(at, _)| *at != awaited) {
                match self.semaphore(name).try_acquire_owned() {
                    Ok(turn) => turns.push(turn),
                    Err(_taken) => {
                        awaited = at;
                        continue 'again;
                    }
                }
            }
            return turns;
        }
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
