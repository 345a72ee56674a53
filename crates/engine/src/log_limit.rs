//! What repeats is logged at once when it begins, and then now and then with how often it happened: a producer that is out
//! of order must not fill the disk with lines.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines of one kind.
pub const EVERY: Duration = Duration::from_secs(10);
/// Labels of one kind that are told apart. The others are one.
const LABELS_MAX: usize = 256;

static LIMITS: Mutex<Limits> = Mutex::new(Limits { kinds: BTreeMap::new() });

/// Something of a kind has happened so often. How often it has since the last line of this kind, where a line may be written
/// now. `label` tells apart what is of interest by itself: a dataset, a reason; a name or a fixed word, never a key.
pub fn due(kind: &'static str, label: &str, times: u64) -> Option<u64> {
    limits(|limits| limits.due(kind, label, times, Instant::now()))
}

/// What has happened since its last line, where that is at least so long ago: kind, label, how often. It counts as said then.
pub fn left_out(since: Duration) -> Vec<(&'static str, String, u64)> {
    limits(|limits| limits.left_out(since, Instant::now()))
}

fn limits<T>(change: impl FnOnce(&mut Limits) -> T) -> T {
    change(&mut LIMITS.lock().unwrap_or_else(PoisonError::into_inner))
}

struct Limits {
    kinds: BTreeMap<&'static str, HashMap<String, Said>>,
}

struct Said {
    at: Instant,
    times_since: u64,
}

impl Limits {
    fn due(&mut self, kind: &'static str, label: &str, times: u64, now: Instant) -> Option<u64> {
        let labels = self.kinds.entry(kind).or_default();
        let is_known = labels.contains_key(label);
        let label = if is_known || labels.len() < LABELS_MAX { label } else { "" };
        let Some(said) = labels.get_mut(label) else {
            labels.insert(label.to_owned(), Said { at: now, times_since: 0 });
            return Some(times);
        };
        said.times_since += times;
        if now.saturating_duration_since(said.at) < EVERY {
            return None;
        }
        said.at = now;
        Some(std::mem::take(&mut said.times_since))
    }

    fn left_out(&mut self, since: Duration, now: Instant) -> Vec<(&'static str, String, u64)> {
        let mut left_out = Vec::new();
        for (kind, labels) in &mut self.kinds {
            labels.retain(|label, said| {
                let age = now.saturating_duration_since(said.at);
                if since <= age && 0 < said.times_since {
                    left_out.push((*kind, label.clone(), std::mem::take(&mut said.times_since)));
                    said.at = now;
                    return true;
                }
                age < EVERY
            });
        }
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::{BTreeMap, EVERY, Instant, LABELS_MAX, Limits};

    #[test]
    fn the_first_is_said_at_once_and_the_rest_is_counted() {
        let mut limits = Limits { kinds: BTreeMap::new() };
        let began = Instant::now();
        assert_eq!(limits.due("bad", "a", 3, began), Some(3));
        assert_eq!(limits.due("bad", "b", 1, began), Some(1), "another label");
        (0..1000).for_each(|_| assert_eq!(limits.due("bad", "a", 2, began), None));
        assert_eq!(limits.due("bad", "a", 1, began + EVERY), Some(2001));
        assert_eq!(limits.due("bad", "a", 7, began + EVERY), None);
        assert!(limits.left_out(EVERY, began + EVERY).is_empty(), "of this one a line was just written");
        assert_eq!(limits.left_out(EVERY, began + 2 * EVERY), [("bad", "a".to_owned(), 7)]);
        assert!(limits.left_out(EVERY, began + 3 * EVERY).is_empty());
        assert!(limits.kinds["bad"].is_empty(), "what is over is forgotten");
        for label in 0..2 * LABELS_MAX {
            limits.due("bad", &label.to_string(), 1, began);
        }
        assert!(limits.kinds["bad"].len() <= LABELS_MAX + 1);
    }
}
