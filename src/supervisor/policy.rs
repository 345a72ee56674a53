//! What to do after a task ended. Pure: time comes in, a decision goes out.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use cachekeeper_engine::backoff::Backoff;

/// Exits within the window that are too many.
const EXITS_MAX: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After running for this long a task begins with a clean record.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this.
    RestartAfter(Duration),
    /// It fails again and again.
    GiveUp,
}

/// The record of each task, by its name.
#[derive(Debug, Default)]
pub struct RestartPolicy {
    histories: HashMap<&'static str, History>,
}

#[derive(Debug)]
struct History {
    exits: VecDeque<Instant>,
    backoff: Backoff,
}

impl RestartPolicy {
    /// A task ended at `now` after it had run for `ran`.
    pub fn on_exit(&mut self, task: &'static str, ran: Duration, now: Instant) -> Decision {
        let history = self.histories.entry(task).or_insert_with(|| History {
            exits: VecDeque::new(),
            backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
        });
        history.exits.retain(|exit| now.saturating_duration_since(*exit) < WINDOW);
        if STABLE_AFTER <= ran {
            history.backoff.reset();
        }
        history.exits.push_back(now);
        if EXITS_MAX < history.exits.len() {
            return Decision::GiveUp;
        }
        Decision::RestartAfter(history.backoff.pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn restarts_after(decision: Decision, whole: Duration) {
        let Decision::RestartAfter(pause) = decision else { panic!("{decision:?}") };
        assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
    }

    #[test]
    fn delays_grow_until_it_gives_up_and_a_long_run_clears_the_record() {
        let mut policy = RestartPolicy::default();
        let start = Instant::now();
        let mut exit =
            |ran, at| policy.on_exit("warmer", Duration::from_secs(ran), start + Duration::from_secs(at));
        restarts_after(exit(0, 0), BACKOFF_MIN);
        restarts_after(exit(0, 1), BACKOFF_MIN * 2);
        restarts_after(exit(40, 45), BACKOFF_MIN);
        for at in 46..53 {
            assert!(matches!(exit(0, at), Decision::RestartAfter(_)));
        }
        assert_eq!(exit(0, 54), Decision::GiveUp);
        assert!(matches!(exit(0, 200), Decision::RestartAfter(_)), "exits outside the window do not count");
    }

    #[test]
    fn tasks_do_not_share_a_record() {
        let mut policy = RestartPolicy::default();
        let now = Instant::now();
        restarts_after(policy.on_exit("warmer", Duration::ZERO, now), BACKOFF_MIN);
        restarts_after(policy.on_exit("refresher", Duration::ZERO, now), BACKOFF_MIN);
    }
}
