//! Locks that processes share, with a lifetime, a fencing token, and a holder who is told when the lock may be lost.
//!
//! A lock saves work; it does not guard correctness: a holder that is paused longer than the lifetime goes on beside the
//! next one. Where two at a time would do harm, let the database refuse the older holder by its fencing token, which grows
//! from holder to holder:
//!
//! ```sql
//! update accounts set balance = balance - 100, fence = $token where id = $id and fence <= $token   -- 0 rows: too late
//! ```
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use cachekeeper_client::{Cache, LockOptions};
//! let cache = Cache::connect("redis://localhost:6379/0", "bank")?.build();
//! let guard = cache.locks().acquire_all(&["account:1", "account:2"], LockOptions::default()).await?;
//! tokio::select! {
//!     () = transfer(guard.token()) => {}
//!     () = guard.lost().cancelled() => {} // somebody else may hold it now: stop
//! }
//! guard.release().await?;
//! # async fn transfer(_token: u64) {}
//! # Ok(())
//! # }
//! ```

mod error;
mod guard;
mod in_memory;
mod options;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

pub use error::LockError;
pub use guard::LockGuard;
pub use options::LockOptions;

use self::in_memory::MemoryLocks;
use self::turns::Turns;
use super::moments::after;
use cachekeeper_engine::lease::{LeaseReply, Renewer, Terms, Wakeup, Wakeups, unique_owner};
use cachekeeper_engine::metrics::{ByReason, Metrics};
use cachekeeper_engine::stores::redis::{CacheError, LeaseAttempt, Redis};

/// Shorter lives are over before they can be used.
const LIFE_MIN: Duration = Duration::from_millis(10);

/// All locks of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Locks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    place: LockPlace,
}

/// Where the locks are.
#[derive(Debug)]
enum LockPlace {
    Redis(Box<RedisLocks>),
    Memory(MemoryLocks),
}

#[derive(Debug)]
struct RedisLocks {
    redis: Redis,
    turns: Turns,
    wakeups: Wakeups,
    renewer: Renewer,
}

impl Locks {
    /// Locks in this Redis.
    #[must_use]
    pub fn new(redis: Redis, metrics: Arc<Metrics>) -> Self {
        let wakeups = Wakeups::new(redis.clone());
        let renewer = Renewer::new(redis.clone(), Arc::clone(&metrics));
        let turns = Turns::default();
        let place = LockPlace::Redis(Box::new(RedisLocks { redis, turns, wakeups, renewer }));
        Self { shared: Arc::new(Shared { metrics, place }) }
    }

    /// Locks of this process alone.
    pub(super) fn in_memory(metrics: Arc<Metrics>) -> Self {
        let place = LockPlace::Memory(MemoryLocks::default());
        Self { shared: Arc::new(Shared { metrics, place }) }
    }

    /// Takes a lock, waiting for it as long as the options say.
    ///
    /// # Errors
    /// [`LockError`]; never taken while Redis is down.
    pub async fn acquire(&self, name: &str, options: LockOptions) -> Result<LockGuard, LockError> {
        self.acquire_all(&[name], options).await
    }

    /// Takes a lock if it is free.
    ///
    /// # Errors
    /// [`LockError::Unavailable`].
    pub async fn try_acquire(&self, name: &str, life: Duration) -> Result<Option<LockGuard>, LockError> {
        let options = LockOptions { life, wait: Duration::ZERO, ..LockOptions::default() };
        match self.acquire(name, options).await {
            Ok(guard) => Ok(Some(guard)),
            Err(LockError::Held { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes all of these locks or none, in one step; their order and repetitions do not matter. One guard holds them,
    /// under one token.
    ///
    /// # Errors
    /// [`LockError::Held`] says which one was not to be had.
    pub async fn acquire_all(
        &self,
        names: &[impl AsRef<str>],
        options: LockOptions,
    ) -> Result<LockGuard, LockError> {
        let options = options.bounded();
        let mut names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() || names.iter().any(String::is_empty) || options.life < LIFE_MIN {
            return Err(LockError::Meaningless);
        }
        let began = Instant::now();
        let taking = async {
            match &self.shared.place {
                LockPlace::Redis(locks) => locks.take(names, options).await,
                LockPlace::Memory(locks) => locks.take(names, options).await.map(LockGuard::in_memory),
            }
        };
        let taken = taking.instrument(tracing::info_span!("lock.acquire")).await;
        let outcome = match &taken {
            Ok(_) => "acquired",
            Err(LockError::Held { .. }) => "held",
            Err(_) => "unavailable",
        };
        self.shared.metrics.client.locks.get_or_create(&ByReason::new(outcome)).inc();
        self.shared.metrics.client.lock_wait_seconds.observe(began.elapsed().as_secs_f64());
        taken
    }

    /// Waits until a lock is free; false: it was not within this time.
    ///
    /// # Errors
    /// [`LockError::Unavailable`].
    pub async fn wait_for_unlock(&self, name: &str, at_most: Duration) -> Result<bool, LockError> {
        match &self.shared.place {
            LockPlace::Redis(locks) => locks.wait_for_unlock(name, at_most).await,
            LockPlace::Memory(locks) => Ok(locks.wait_for_unlock(name, at_most).await),
        }
    }
}

impl RedisLocks {
    async fn wait_for_unlock(&self, name: &str, at_most: Duration) -> Result<bool, LockError> {
        let deadline = after(at_most);
        let mut wakeup: Option<Wakeup> = None;
        loop {
            let heard = wakeup.as_ref().map_or(0, Wakeup::begin);
            let Some(left) = self.redis.lock_left(name).await? else { return Ok(true) };
            if deadline <= Instant::now() {
                return Ok(false);
            }
            match &mut wakeup {
                Some(wakeup) => wakeup.wait(heard, left, deadline).await,
                // Who listens first and looks then misses nothing.
                None => wakeup = Some(self.wakeups.of(name)),
            }
        }
    }

    async fn take(&self, names: Vec<String>, options: LockOptions) -> Result<LockGuard, LockError> {
        let deadline = after(options.wait);
        // In this process they come one after the other, first come, first served: a release wakes one, not a thousand.
        // Whoever does not wait asks Redis past the queue: those who stand in it hold nothing yet.
        let turns = if options.wait.is_zero() {
            Vec::new()
        } else {
            let turns = tokio::time::timeout_at(deadline, self.turns.of(&names));
            let Ok(turns) = turns.await else { return Err(self.held(names).await) };
            turns
        };
        let owner = unique_owner();
        let LockOptions { life, is_renewed, max_hold, .. } = options;
        let terms = Terms { life, is_renewed, max_hold, is_common: false };
        let mut wakeup: Option<Wakeup> = None;
        loop {
            let heard = wakeup.as_ref().map_or(0, Wakeup::begin);
            let asked = Instant::now();
            let (name, holder, left) = match self.renewer.acquire(&names, &owner, terms).await {
                LeaseReply::Granted(lease) if asked.elapsed() < life / 10 * 9 => {
                    return Ok(LockGuard::new(lease, turns));
                }
                // So late that it may be over: it is given back.
                LeaseReply::Granted(late) => {
                    drop(late.release().await);
                    if deadline <= Instant::now() {
                        return Err(CacheError::timed_out("take a lock").into());
                    }
                    continue;
                }
                LeaseReply::Held { name, owner, left } => (name, owner, left),
                LeaseReply::Unavailable(error) => return Err(error.into()),
            };
            if deadline <= Instant::now() {
                return Err(LockError::Held { name, owner: holder, left });
            }
            match &mut wakeup {
                Some(wakeup) if wakeup.is_of(&name) => wakeup.wait(heard, left, deadline).await,
                // Who listens first and looks then misses nothing.
                _ => wakeup = Some(self.wakeups.of(&name)),
            }
        }
    }

    /// Who holds one of these, for a caller whose turn did not come.
    async fn held(&self, names: Vec<String>) -> LockError {
        match self.redis.lock_holder(&names).await {
            Ok(Some(LeaseAttempt::Held { name, owner, left })) => LockError::Held { name, owner, left },
            Ok(_) => LockError::Held {
                name: names.into_iter().next().unwrap_or_default(),
                owner: "another task of this process, a moment ago".to_owned(),
                left: Duration::ZERO,
            },
            Err(error) => error.into(),
        }
    }
}
