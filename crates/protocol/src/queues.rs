//! Work in queues by key: each queue in its order and taken by one worker at a time, all of them side by side.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// Queues by key. A queue is ready, taken, or blocked until it is retried; one without work is forgotten. `M` is a moment: the
/// caller has the clock.
#[derive(Debug)]
pub struct KeyQueues<T, M> {
    queues: HashMap<String, VecDeque<T>>,
    /// Those that may be taken, the longest waiting first.
    ready: VecDeque<String>,
    /// Those that are retried from a moment on, one item at a time. The number tells those of one moment apart.
    blocked: BTreeMap<(M, u64), String>,
    retries: u64,
}

impl<T, M: Ord + Copy> Default for KeyQueues<T, M> {
    fn default() -> Self {
        Self { queues: HashMap::new(), ready: VecDeque::new(), blocked: BTreeMap::new(), retries: 0 }
    }
}

impl<T, M: Ord + Copy> KeyQueues<T, M> {
    /// Adds work at the end of a queue.
    pub fn push(&mut self, queue: &str, item: T) {
        match self.queues.get_mut(queue) {
            Some(items) => items.push_back(item),
            None => {
                self.queues.insert(queue.to_owned(), VecDeque::from([item]));
                self.ready.push_back(queue.to_owned());
            }
        }
    }

    /// Takes up to `most` items of queues that are ready, each queue from its front. Say [`Self::give_back`] for each of
    /// these queues when the work is over.
    pub fn take(&mut self, most: usize) -> Vec<(String, T)> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let Some(queue) = self.ready.pop_front() else { break };
            let Some(items) = self.queues.get_mut(&queue) else { continue };
            let count = items.len().min(most - taken.len());
            taken.extend(items.drain(..count).map(|item| (queue.clone(), item)));
        }
        taken
    }

    /// Takes the first item of a blocked queue whose moment has come: it is retried alone.
    pub fn take_blocked(&mut self, now: M) -> Option<(String, T)> {
        let first = self.blocked.first_entry().filter(|first| first.key().0 <= now)?;
        let queue = first.remove();
        let item = self.queues.get_mut(&queue)?.pop_front()?;
        Some((queue, item))
    }

    /// The moment at which the first blocked queue is retried.
    pub fn next_retry(&self) -> Option<M> {
        self.blocked.keys().next().map(|(moment, _)| *moment)
    }

    /// How many queues are blocked.
    pub fn blocked(&self) -> usize {
        self.blocked.len()
    }

    /// The work that was taken from a queue is over. What was not done goes back to the front, in its order; with a moment,
    /// the queue is blocked until then.
    pub fn give_back(&mut self, queue: &str, undone: Vec<T>, until: Option<M>) {
        let Some(items) = self.queues.get_mut(queue) else { return };
        for item in undone.into_iter().rev() {
            items.push_front(item);
        }
        if items.is_empty() {
            self.queues.remove(queue);
        } else if let Some(moment) = until {
            self.retries += 1;
            self.blocked.insert((moment, self.retries), queue.to_owned());
        } else {
            self.ready.push_back(queue.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(taken: &[(String, u32)]) -> Vec<(&str, u32)> {
        taken.iter().map(|(queue, item)| (queue.as_str(), *item)).collect()
    }

    #[test]
    fn a_queue_is_taken_once_at_a_time_and_keeps_its_order() {
        let mut queues: KeyQueues<u32, u64> = KeyQueues::default();
        queues.push("a", 1);
        queues.push("b", 2);
        queues.push("a", 3);
        let first = queues.take(2);
        assert_eq!(names(&first), [("a", 1), ("a", 3)]);
        queues.push("a", 4);
        assert_eq!(names(&queues.take(9)), [("b", 2)], "the other queue only");
        assert!(queues.take(9).is_empty(), "both are taken");
        // The second item was not done, and what came meanwhile is behind it.
        queues.give_back("a", vec![3], None);
        queues.give_back("b", vec![], None);
        assert_eq!(names(&queues.take(9)), [("a", 3), ("a", 4)]);
        queues.give_back("a", vec![], None);
        assert!(queues.queues.is_empty() && queues.ready.is_empty());
    }

    #[test]
    fn a_queue_that_was_taken_in_part_goes_on_behind_the_others() {
        let mut queues: KeyQueues<u32, u64> = KeyQueues::default();
        (1..=3).for_each(|item| queues.push("a", item));
        queues.push("b", 4);
        assert_eq!(names(&queues.take(2)), [("a", 1), ("a", 2)]);
        queues.give_back("a", vec![], None);
        assert_eq!(names(&queues.take(9)), [("b", 4), ("a", 3)]);
    }

    #[test]
    fn a_blocked_queue_waits_and_is_retried_alone() {
        let mut queues: KeyQueues<u32, u64> = KeyQueues::default();
        queues.push("a", 1);
        queues.push("a", 2);
        queues.push("b", 3);
        let taken = queues.take(9);
        assert_eq!(taken.len(), 3);
        queues.give_back("a", vec![1, 2], Some(50));
        queues.give_back("b", vec![3], Some(20));
        assert!(queues.take(9).is_empty());
        assert_eq!((queues.blocked(), queues.next_retry()), (2, Some(20)));
        assert_eq!(queues.take_blocked(19), None);
        assert_eq!(queues.take_blocked(20), Some(("b".to_owned(), 3)));
        queues.push("b", 4);
        assert_eq!(queues.take_blocked(60), Some(("a".to_owned(), 1)));
        queues.give_back("a", vec![], None);
        queues.give_back("b", vec![], None);
        assert_eq!(names(&queues.take(9)), [("a", 2), ("b", 4)]);
    }
}
