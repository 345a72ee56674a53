//! Backfills during which Postgres has ended. Their statement may be why: whoever writes to the database comes first.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// For each dataset, in how many incarnations of the database in a row a backfill has lost the server.
#[derive(Debug, Default)]
pub struct LostBackfills {
    by_dataset: Mutex<HashMap<String, Lost>>,
}

#[derive(Debug, Default)]
struct Lost {
    last_in: Option<String>,
    times: u32,
}

impl LostBackfills {
    /// One has lost the server, and had begun in this incarnation. While the server does not answer, attempts begin in the same one.
    pub fn note(&self, dataset: &str, incarnation: Option<&str>) {
        let Some(incarnation) = incarnation else { return };
        let mut by_dataset = self.lock();
        let lost = by_dataset.entry(dataset.to_owned()).or_default();
        if lost.last_in.as_deref() != Some(incarnation) {
            lost.last_in = Some(incarnation.to_owned());
            lost.times += 1;
        }
    }

    /// One was carried out, or has failed for a reason that the server gave.
    pub fn clear(&self, dataset: &str) {
        self.lock().remove(dataset);
    }

    /// In how many incarnations in a row.
    #[must_use]
    pub fn times(&self, dataset: &str) -> u32 {
        self.lock().get(dataset).map_or(0, |lost| lost.times)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lost>> {
        self.by_dataset.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_incarnation_counts_once() {
        let lost = LostBackfills::default();
        for incarnation in ["a", "a", "b", "b", "c"] {
            lost.note("product", Some(incarnation));
        }
        lost.note("product", None);
        assert_eq!((lost.times("product"), lost.times("note")), (3, 0));
        lost.clear("product");
        assert_eq!(lost.times("product"), 0);
    }
}
