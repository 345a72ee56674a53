//! What to do after a child ended. Pure: time comes in, a decision goes out.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::ChildKind;

/// Exits within the window that are too many.
const EXITS_MAX: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After running for this long an actor begins with a clean record.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this.
    RestartAfter(Duration),
    /// It fails again and again.
    GiveUp,
}

/// The record of each child.
#[derive(Debug, Default)]
pub struct RestartPolicy {
    histories: HashMap<ChildKind, History>,
}

#[derive(Debug, Default)]
struct History {
    exits: VecDeque<Instant>,
    attempts: u32,
}

impl RestartPolicy {
    /// A child of this kind ended at `now` after it had run for `ran`.
    pub fn on_exit(&mut self, kind: ChildKind, ran: Duration, now: Instant) -> Decision {
        let history = self.histories.entry(kind).or_default();
        history.exits.retain(|exit| now.saturating_duration_since(*exit) < WINDOW);
        if STABLE_AFTER <= ran {
            history.attempts = 0;
        }
        history.exits.push_back(now);
        history.attempts += 1;
        if EXITS_MAX < history.exits.len() {
            return Decision::GiveUp;
        }
        let doubled = BACKOFF_MIN.saturating_mul(1 << (history.attempts - 1).min(10));
        Decision::RestartAfter(doubled.min(BACKOFF_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_until_it_gives_up_and_a_long_run_clears_the_record() {
        let mut policy = RestartPolicy::default();
        let start = Instant::now();
        let mut exit = |ran, at| {
            policy.on_exit(ChildKind::Warmer, Duration::from_secs(ran), start + Duration::from_secs(at))
        };
        assert_eq!(exit(0, 0), Decision::RestartAfter(BACKOFF_MIN));
        assert_eq!(exit(0, 1), Decision::RestartAfter(BACKOFF_MIN * 2));
        assert_eq!(exit(40, 45), Decision::RestartAfter(BACKOFF_MIN));
        for at in 46..53 {
            assert!(matches!(exit(0, at), Decision::RestartAfter(_)));
        }
        assert_eq!(exit(0, 54), Decision::GiveUp);
        assert!(matches!(exit(0, 200), Decision::RestartAfter(_)), "exits outside the window do not count");
    }

    #[test]
    fn children_do_not_share_a_record() {
        let mut policy = RestartPolicy::default();
        let now = Instant::now();
        assert_eq!(
            policy.on_exit(ChildKind::Warmer, Duration::ZERO, now),
            Decision::RestartAfter(BACKOFF_MIN)
        );
        assert_eq!(
            policy.on_exit(ChildKind::Refresher, Duration::ZERO, now),
            Decision::RestartAfter(BACKOFF_MIN)
        );
    }
}
