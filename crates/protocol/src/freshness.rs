//! Lifetimes, ages, and what is due: pure arithmetic, time comes in as an argument.

use std::time::Duration;

use super::keyspace::key_hash;

/// What the lifetimes of a dataset's entries follow from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lifetimes {
    /// The longest lifetime.
    pub ttl: Duration,
    /// By which share jitter may shorten it.
    pub jitter: f64,
    /// How long past its lifetime an entry may be kept while Postgres is down.
    pub max_stale: Duration,
    /// In which last share of its lifetime an entry is due for a refresh.
    pub ahead: f64,
}

/// Idle time is counted in whole seconds and its clock may lag by one.
const IDLE_SLACK: Duration = Duration::from_secs(2);

impl Lifetimes {
    /// The lifetime of this key's entry: `ttl` shortened by a jitter that follows from the key, so that a herd that
    /// was stored together does not expire together, and the age follows from what remains.
    #[must_use]
    pub fn of(&self, key: &str) -> Duration {
        // The upper bits: the lower ones choose the slot.
        let share = f64::from((key_hash(key.as_bytes()) >> 32) as u32) / f64::from(u32::MAX);
        self.ttl.mul_f64(1.0 - self.jitter * share).max(Duration::from_millis(1))
    }

    /// The remaining time below which no key's entry can be fresh enough to be left alone.
    #[must_use]
    pub fn due_within(&self) -> Duration {
        self.ttl.mul_f64(self.ahead)
    }

    /// The longest that an entry can live: lifetime and extensions.
    #[must_use]
    pub fn longest(&self) -> Duration {
        self.ttl + self.max_stale
    }

    /// What to do with an entry of which `left` remains and that was last used `idle` ago.
    #[must_use]
    pub fn judge(&self, key: &str, left: Duration, idle: Option<Duration>) -> Verdict {
        let life = self.of(key);
        if life.mul_f64(self.ahead) < left {
            return Verdict::Fresh;
        }
        if self.is_unread(key, left, idle) { Verdict::Unread } else { Verdict::Due }
    }

    /// Whether nobody read an entry since it was loaded, as far as the time since its last use tells.
    #[must_use]
    pub fn is_unread(&self, key: &str, left: Duration, idle: Option<Duration>) -> bool {
        let age = self.of(key).saturating_sub(left);
        idle.is_some_and(|idle| age <= idle + IDLE_SLACK)
    }

    /// The lifetime that an extension gives: short enough that the entry stays due.
    #[must_use]
    pub fn extension(&self) -> Duration {
        (self.due_within() / 2).max(Duration::from_secs(1))
    }

    /// Whether an entry that is due was last used by its previous extension and not since. Extending makes an entry
    /// look used, so the idle time of an unread extended entry is exactly the time since its extension.
    #[must_use]
    pub fn is_unread_extension(&self, left: Duration, idle: Option<Duration>) -> bool {
        let Some(since) = self.extension().checked_sub(left) else {
            return false;
        };
        idle.is_some_and(|idle| since.abs_diff(idle) < IDLE_SLACK && IDLE_SLACK <= idle)
    }
}

/// What [`Lifetimes::judge`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Fresh,
    /// In the last part of its lifetime, and read since it was loaded.
    Due,
    /// In the last part of its lifetime, and nobody read it.
    Unread,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFETIMES: Lifetimes = Lifetimes {
        ttl: Duration::from_secs(1000),
        jitter: 0.1,
        max_stale: Duration::from_secs(500),
        ahead: 0.2,
    };

    #[test]
    fn lifetimes_spread_between_the_shortened_and_the_full_one() {
        let lives: Vec<_> = (0..1000).map(|n| LIFETIMES.of(&format!("product:{n}"))).collect();
        let (low, high) = (lives.iter().min().unwrap(), lives.iter().max().unwrap());
        assert!(Duration::from_secs(900) <= *low && *low < Duration::from_secs(905), "{low:?}");
        assert!(*high <= LIFETIMES.ttl && Duration::from_secs(995) < *high, "{high:?}");
    }

    #[test]
    fn only_what_was_read_and_grows_old_is_due() {
        let life = LIFETIMES.of("k");
        let seconds = Duration::from_secs;
        let check = |left, idle, expected| assert_eq!(LIFETIMES.judge("k", left, idle), expected);
        check(life, Some(seconds(0)), Verdict::Fresh);
        check(life.mul_f64(0.21), Some(seconds(0)), Verdict::Fresh);
        check(seconds(100), Some(seconds(3)), Verdict::Due);
        check(seconds(100), Some(life.checked_sub(seconds(100)).unwrap()), Verdict::Unread);
        check(seconds(100), Some(life.checked_sub(seconds(101)).unwrap()), Verdict::Unread);
        check(seconds(100), None, Verdict::Due);
    }

    #[test]
    fn an_extension_keeps_the_entry_due_and_is_told_from_use() {
        let extension = LIFETIMES.extension();
        assert_eq!(LIFETIMES.judge("k", extension, Some(Duration::ZERO)), Verdict::Due);
        let left = extension.checked_sub(Duration::from_secs(50)).unwrap();
        assert!(LIFETIMES.is_unread_extension(left, Some(Duration::from_secs(50))));
        assert!(!LIFETIMES.is_unread_extension(left, Some(Duration::from_secs(10))));
    }
}
