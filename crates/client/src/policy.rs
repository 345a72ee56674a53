//! How long values live, and what a read does when one is missing, old or slow to come.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::moments::{self, FAR};
use cachekeeper_protocol::entry::LIFE_WITHOUT_END;
use cachekeeper_protocol::keyspace::key_hash;

/// When an entry ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// So long after it is stored (milliseconds count).
    For(Duration),
    /// At this moment; one in the past deletes.
    Until(SystemTime),
    /// Never by itself.
    Forever,
}

impl From<Duration> for Lifetime {
    fn from(life: Duration) -> Self {
        Self::For(life)
    }
}

impl From<SystemTime> for Lifetime {
    fn from(end: SystemTime) -> Self {
        Self::Until(end)
    }
}

/// Redis counts milliseconds since 1970 in 64 bits with a sign; a life beyond this does not end.
const LONGEST_MS: u64 = 1 << 55;

impl Lifetime {
    /// Milliseconds from now; 0: it is over, delete.
    pub(super) fn millis(self) -> u64 {
        // A started millisecond counts as one, so that only what is over deletes.
        let of = |life: Duration| match u64::try_from(life.as_millis()) {
            Ok(whole) if whole < LONGEST_MS => whole.max(u64::from(!life.is_zero())),
            Ok(_) | Err(_) => LIFE_WITHOUT_END,
        };
        match self {
            Self::For(life) => of(life),
            Self::Until(end) => end.duration_since(SystemTime::now()).map_or(0, of),
            Self::Forever => LIFE_WITHOUT_END,
        }
    }
}

/// A life that every read extends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sliding {
    /// How long an entry lives without being read.
    pub idle: Duration,
    /// When it ends in any case.
    pub until: Option<SystemTime>,
}

impl Sliding {
    /// Lives as long as it is read at least this often.
    #[must_use]
    pub fn idle(idle: Duration) -> Self {
        Self { idle, until: None }
    }

    /// The end that a read gives: none if `idle` decides, else since 1970.
    pub(super) fn cap(&self) -> Option<Duration> {
        let until = self.until?;
        let by_idle = SystemTime::now() + self.span();
        let at_least = Duration::from_millis(1);
        (until < by_idle).then(|| until.duration_since(UNIX_EPOCH).unwrap_or_default().max(at_least))
    }

    /// How long a read lets it live, as Redis takes it.
    pub(super) fn span(&self) -> Duration {
        self.idle.clamp(Duration::from_millis(1), FAR)
    }
}

/// How [`super::Cache::get_or_load`] behaves.
///
/// Values stay plain, so the logical lifetime is told from what remains of the physical one: an entry is stored for
/// `life + fail_safe`; once no more than `fail_safe` is left of that, it is *stale* and the next read loads again. A plain
/// `GET` from another program sees the stale value until its physical end.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) life: Duration,
    pub(super) jitter: f64,
    pub(super) fail_safe: Option<Duration>,
    pub(super) throttle: Duration,
    pub(super) soft: Option<Duration>,
    pub(super) hard: Option<Duration>,
    pub(super) eager: Option<f64>,
    pub(super) negative: Option<Duration>,
    pub(super) lock: Option<LoadLockOptions>,
    pub(super) tags: Vec<String>,
}

/// The lock that keeps several processes from loading one key at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLockOptions {
    /// How long it lives without renewal (default 2 s): so long a load waits for a holder that was killed.
    pub life: Duration,
    /// How long others wait for the holder's value before they load themselves, without storing it (default 5 s).
    pub wait: Duration,
}

impl Default for LoadLockOptions {
    fn default() -> Self {
        Self { life: Duration::from_secs(2), wait: Duration::from_secs(5) }
    }
}

/// How long a look at Redis may take where no policy says: the connection's own limit is below it.
const LOOK_MAX: Duration = Duration::from_secs(60);

impl Policy {
    /// Values live this long. Everything else is off, but for single flight and the load lock.
    #[must_use]
    pub fn ttl(life: Duration) -> Self {
        Self {
            life,
            jitter: 0.0,
            fail_safe: None,
            throttle: Duration::from_secs(5),
            soft: None,
            hard: None,
            eager: None,
            negative: None,
            lock: Some(LoadLockOptions::default()),
            tags: Vec::new(),
        }
    }

    /// Shortens lives by up to this share, by the key, so that entries stored together do not expire together.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = moments::share(share, 0.99);
        self
    }

    /// Keeps values this much longer, to serve them when the loader fails or is slow.
    #[must_use]
    pub fn fail_safe(mut self, longer: Duration) -> Self {
        // Where nothing ended, it could not be told what is old.
        self.fail_safe = Some(longer.min(FAR));
        self
    }

    /// After a failed load, how long the stale value is served without asking the loader again (default 5 s).
    #[must_use]
    pub fn throttle(mut self, pause: Duration) -> Self {
        self.throttle = pause;
        self
    }

    /// Serves a stale value, if there is one, when the loader takes longer than this; loading goes on.
    #[must_use]
    pub fn soft_timeout(mut self, at_most: Duration) -> Self {
        self.soft = Some(at_most);
        self
    }

    /// Gives up waiting after this long: a stale value, or [`super::ClientError::Timeout`]; loading goes on. Redis is waited for
    /// for half of it, then the loader is asked.
    #[must_use]
    pub fn hard_timeout(mut self, at_most: Duration) -> Self {
        self.hard = Some(at_most);
        self
    }

    /// Loads again in the background when a value is read in this last share of its life (0.2: the last fifth).
    #[must_use]
    pub fn eager(mut self, share: f64) -> Self {
        self.eager = Some(moments::share(share, 1.0));
        self
    }

    /// Remembers for this long that the loader found nothing, as an explicit null.
    #[must_use]
    pub fn negative(mut self, life: Duration) -> Self {
        self.negative = Some(life);
        self
    }

    /// Other lock times; none: no lock between processes.
    #[must_use]
    pub fn lock(mut self, lock: Option<LoadLockOptions>) -> Self {
        self.lock = lock;
        self
    }

    /// The tags of what is loaded.
    #[must_use]
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }

    /// How long Redis is asked at most before the loader is.
    pub(super) fn time_for_a_look(&self) -> Duration {
        self.soft.into_iter().chain(self.hard).min().map_or(LOOK_MAX, |limit| limit / 2)
    }

    /// The same policy after this much of its time has passed.
    pub(super) fn with_time_left(&self, passed: Duration) -> Self {
        let left = |limit: Duration| limit.saturating_sub(passed).max(Duration::from_millis(1));
        Self { soft: self.soft.map(left), hard: self.hard.map(left), ..self.clone() }
    }

    /// How long a value of this key is stored: its life, and as much longer as it is kept for bad times.
    pub(super) fn stored_life(&self, key: &str) -> Duration {
        self.life_of(key, self.life).saturating_add(self.fail_safe.unwrap_or_default())
    }

    /// The logical life of this key's entry.
    pub(super) fn life_of(&self, key: &str, life: Duration) -> Duration {
        // The hash's upper bits as a share from 0 to below 1.
        let share =
            f64::from(u32::try_from(key_hash(key.as_bytes()) >> 32).unwrap_or_default()) / 2_f64.powi(32);
        moments::part(life, 1.0 - self.jitter * share)
    }

    /// Milliseconds for which an entry with this logical life is stored.
    pub(super) fn stored_millis(&self, life: Duration) -> u64 {
        Lifetime::For(life.saturating_add(self.fail_safe.unwrap_or_default())).millis()
    }

    /// Whether anything depends on how old a value is.
    pub(super) fn needs_age(&self) -> bool {
        self.fail_safe.is_some() || self.eager.is_some()
    }

    /// What a value with this remaining lifetime (milliseconds, -1: no end) is.
    pub(super) fn judge(&self, key: &str, left_ms: i64) -> Age {
        let Ok(left) = u64::try_from(left_ms) else { return Age::Fresh };
        let kept = self.fail_safe.unwrap_or_default();
        let left = Duration::from_millis(left).checked_sub(kept).unwrap_or_default();
        if self.fail_safe.is_some() && left.is_zero() {
            return Age::Stale;
        }
        match self.eager {
            Some(share) if left <= moments::part(self.life_of(key, self.life), share) => Age::Due,
            Some(_) | None => Age::Fresh,
        }
    }
}

impl Default for Policy {
    /// An hour.
    fn default() -> Self {
        Self::ttl(Duration::from_secs(3600))
    }
}

/// How old a value is, by its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// To be served.
    Fresh,
    /// To be served, and loaded again in the background.
    Due,
    /// To be loaded again; served only if that fails.
    Stale,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_follows_from_what_remains_of_the_physical_life() {
        let policy = Policy::ttl(Duration::from_secs(10)).fail_safe(Duration::from_secs(60)).eager(0.2);
        assert_eq!(policy.stored_millis(Duration::from_secs(10)), 70_000);
        assert_eq!(policy.judge("k", 69_000), Age::Fresh);
        assert_eq!(policy.judge("k", 62_000), Age::Due);
        assert_eq!(policy.judge("k", 60_000), Age::Stale);
        assert_eq!(policy.judge("k", 1), Age::Stale);
        assert_eq!(policy.judge("k", -1), Age::Fresh);
        assert_eq!(Policy::ttl(Duration::from_secs(10)).judge("k", 1), Age::Fresh);
    }

    #[test]
    fn row_26_a_moment_in_the_past_deletes_and_a_life_without_measure_does_not_end() {
        assert_eq!(Lifetime::Until(UNIX_EPOCH).millis(), 0);
        assert_eq!(Lifetime::For(Duration::MAX).millis(), LIFE_WITHOUT_END);
        assert_eq!(Lifetime::For(Duration::from_millis(1)).millis(), 1);
        let soon = Lifetime::Until(SystemTime::now() + Duration::from_secs(30)).millis();
        assert!((29_000..=30_000).contains(&soon), "{soon}");
    }

    #[test]
    fn jitter_only_shortens_and_depends_on_the_key() {
        let policy = Policy::ttl(Duration::from_secs(100)).jitter(0.1);
        let lives: Vec<Duration> = (0..50).map(|n| policy.life_of(&format!("k{n}"), policy.life)).collect();
        assert!(lives.iter().all(|life| (90.0..=100.0).contains(&life.as_secs_f64())));
        assert!(lives.iter().any(|life| *life != lives[0]));
    }
}
