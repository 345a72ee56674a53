//! The circuit breaker, and the memory of what could not be invalidated.
//!
//! Closed: commands go to Redis. After some failures in a row it opens: commands are refused at once, and a task of its own
//! probes (half-open: its probe is the only command). What was to be invalidated meanwhile is carried out before it
//! closes, so that no reader meets a value that should have been gone. While it is closed, keys that are noted are read as missing.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The breaker's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Commands go through.
    Closed,
    /// Commands are refused.
    Open,
    /// One probe is on its way; commands are refused.
    HalfOpen,
}

/// When it opens, and how often it probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerSettings {
    /// So many failures in a row open it.
    pub failures: u32,
    /// The first pause before a probe; it doubles up to 5 s.
    pub pause: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self { failures: 5, pause: Duration::from_millis(200) }
    }
}

/// The longest pause between probes.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Most keys and tags that are remembered; a delete beyond that is the caller's to repeat, and is told so.
const MISSED_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Breaker {
    pub settings: BreakerSettings,
    state: AtomicU8,
    failures: AtomicU32,
    /// Keys are among what is missed: so that a read takes the lock only then.
    hides_keys: AtomicBool,
    missed: Mutex<Missed>,
}

/// What could not be invalidated.
#[derive(Debug, Default, Clone)]
pub(super) struct Missed {
    pub keys: HashSet<String>,
    pub tags: HashSet<String>,
    /// A task is at work on it.
    is_tended: bool,
}

impl Missed {
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tags.is_empty()
    }
}

impl Breaker {
    pub fn new(settings: BreakerSettings) -> Self {
        let pause = settings.pause.clamp(Duration::from_millis(1), PAUSE_MAX);
        Self { settings: BreakerSettings { failures: settings.failures.max(1), pause }, ..Self::default() }
    }

    pub fn state(&self) -> BreakerState {
        match self.state.load(Ordering::Acquire) {
            0 => BreakerState::Closed,
            1 => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    pub fn set(&self, state: BreakerState) {
        let number = match state {
            BreakerState::Closed => 0,
            BreakerState::Open => 1,
            BreakerState::HalfOpen => 2,
        };
        self.failures.store(0, Ordering::Relaxed);
        self.state.store(number, Ordering::Release);
    }

    /// Notes a command that was answered.
    pub fn on_success(&self) {
        // A read first, so that the hot path shares the line instead of owning it.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a command that was not; true: the breaker has just opened.
    pub fn on_failure(&self) -> bool {
        let count = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let opens = self.settings.failures <= count && self.state() == BreakerState::Closed;
        opens && self.state.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Remembers what must be invalidated later; false: there is no room for it.
    pub fn note(&self, keys: &[impl AsRef<str>], tags: &[impl AsRef<str>]) -> bool {
        self.with_missed(|missed| {
            if MISSED_MAX < missed.keys.len() + missed.tags.len() + keys.len() + tags.len() {
                return false;
            }
            missed.keys.extend(keys.iter().map(|key| key.as_ref().to_owned()));
            missed.tags.extend(tags.iter().map(|tag| tag.as_ref().to_owned()));
            true
        })
    }

    /// A newer value of the key was stored: there is nothing to invalidate any more.
    pub fn settle(&self, keys: &[impl AsRef<str>]) {
        self.with_missed(|missed| {
            if !missed.keys.is_empty() {
                for key in keys {
                    missed.keys.remove(key.as_ref());
                }
            }
        });
    }

    /// What is to be invalidated.
    pub fn missed(&self) -> Missed {
        self.with_missed(|missed| missed.clone())
    }

    /// Whether something is to be invalidated.
    pub fn has_missed(&self) -> bool {
        self.with_missed(|missed| !missed.is_empty())
    }

    /// The positions of keys that are deleted as far as this process is concerned: what Redis still has there is not to be read. To be
    /// asked before the read is sent: what is noted later was deleted while it was under way.
    pub fn hidden(&self, keys: &[impl AsRef<str>]) -> Vec<usize> {
        if !self.hides_keys.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.with_missed(|missed| {
            let is_noted = |(_, key): &(usize, &_)| missed.keys.contains(AsRef::<str>::as_ref(*key));
            keys.iter().enumerate().filter(is_noted).map(|(at, _)| at).collect()
        })
    }

    /// It was; what was noted since stays.
    pub fn done(&self, done: &Missed) {
        self.with_missed(|missed| {
            missed.keys.retain(|key| !done.keys.contains(key));
            missed.tags.retain(|tag| !done.tags.contains(tag));
        });
    }

    /// Closes the breaker, if nothing was noted that is not done.
    pub fn close_if_nothing_is_missed(&self) -> bool {
        self.with_missed(|missed| {
            let is_empty = missed.is_empty();
            if is_empty && self.state() != BreakerState::Closed {
                self.set(BreakerState::Closed);
            }
            is_empty
        })
    }

    /// Whether somebody must begin to tend it: something is wrong, and nobody does.
    pub fn begin_tending(&self) -> bool {
        self.with_missed(|missed| {
            let begins = !missed.is_tended;
            missed.is_tended = true;
            begins
        })
    }

    /// Whoever tended it is gone.
    pub fn abandon_tending(&self) {
        self.with_missed(|missed| missed.is_tended = false);
    }

    /// Ends the tending, unless there is more to do.
    pub fn end_tending(&self) -> bool {
        self.with_missed(|missed| {
            let is_done = missed.is_empty() && self.state() == BreakerState::Closed;
            missed.is_tended = !is_done;
            is_done
        })
    }

    fn with_missed<T>(&self, work: impl FnOnce(&mut Missed) -> T) -> T {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = work(&mut missed);
        self.hides_keys.store(!missed.keys.is_empty(), Ordering::Release);
        answer
    }
}
