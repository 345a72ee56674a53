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
//! use cachekeeper::client::{Cache, LockOptions};
//! let cache = Cache::connect("redis://localhost:6379/0", "bank")?.build();
//! let guard = cache.locks()?.acquire_all(&["account:1", "account:2"], LockOptions::default()).await?;
//! tokio::select! {
//!     () = transfer(guard.token()) => {}
//!     () = guard.lost().cancelled() => {} // somebody else may hold it now: stop
//! }
//! guard.release().await?;
//! # async fn transfer(_token: u64) {}
//! # Ok(())
//! # }
//! ```

mod guard;
mod turns;
mod wakeups;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef, ActorStatus};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument;

pub use guard::LockGuard;

use self::turns::Turns;
use self::wakeups::{Wakeup, Wakeups};
use crate::actors::lock_renewer::{Charge, LockRenewer, LockRenewerArguments, LockRenewerMessage};
use cachekeeper_engine::metrics::{ByReason, Metrics};
use cachekeeper_engine::stores::redis::{CacheError, LeaseAttempt, Redis};

/// How a lock is taken and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockOptions {
    /// How long it lives without renewal (default 10 s).
    pub life: Duration,
    /// How long to wait for it (default 5 s); zero: not at all.
    pub wait: Duration,
    /// Whether it is renewed while it is held (default).
    pub is_renewed: bool,
    /// How long it may be held in any case; then the holder is told that it is lost, and it ends.
    pub max_hold: Option<Duration>,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { life: Duration::from_secs(10), wait: Duration::from_secs(5), is_renewed: true, max_hold: None }
    }
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("lock {name:?} is held by {owner} for another {left:?}")]
    Held {
        /// Which one.
        name: String,
        /// Who: host, process and a number.
        owner: String,
        /// For how much longer, unless it is renewed.
        left: Duration,
    },
    /// Redis could not be asked: nothing is held, or it ends by itself.
    #[error("lock cannot be taken: {0}")]
    Unavailable(#[from] CacheError),
    /// A lock without a name, or a lifetime of zero.
    #[error("a lock needs a name and a lifetime of at least 10 ms")]
    Meaningless,
}

impl LockError {
    /// Whether somebody else holds it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }
}

/// How one attempt ended.
enum Attempt {
    Taken(LockGuard),
    Held { name: String, owner: String, left: Duration },
}

/// Shorter lives are over before they can be used.
const LIFE_MIN: Duration = Duration::from_millis(10);

/// All locks of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Locks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    redis: Redis,
    metrics: Arc<Metrics>,
    turns: Turns,
    wakeups: Wakeups,
    renewer: Mutex<Option<ActorRef<LockRenewerMessage>>>,
}

impl Locks {
    /// Locks in this Redis.
    #[must_use]
    pub fn new(redis: Redis, metrics: Arc<Metrics>) -> Self {
        let wakeups = Wakeups::new(redis.clone());
        let (turns, renewer) = (Turns::default(), Mutex::default());
        Self { shared: Arc::new(Shared { redis, metrics, turns, wakeups, renewer }) }
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
        let mut names: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() || names.iter().any(String::is_empty) || options.life < LIFE_MIN {
            return Err(LockError::Meaningless);
        }
        let began = Instant::now();
        let taken = self.take(names, options).instrument(tracing::info_span!("lock.acquire")).await;
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
        let deadline = Instant::now() + at_most;
        let mut wakeup: Option<Wakeup> = None;
        loop {
            let heard = wakeup.as_ref().map_or(0, Wakeup::begin);
            let Some(left) = self.shared.redis.lock_left(name).await? else { return Ok(true) };
            if deadline <= Instant::now() {
                return Ok(false);
            }
            match &mut wakeup {
                Some(wakeup) => wakeup.wait(heard, left, deadline).await,
                // Who listens first and looks then misses nothing.
                None => wakeup = Some(self.shared.wakeups.of(name)),
            }
        }
    }

    fn redis(&self) -> &Redis {
        &self.shared.redis
    }

    async fn take(&self, names: Vec<String>, options: LockOptions) -> Result<LockGuard, LockError> {
        let deadline = Instant::now() + options.wait;
        // In this process they come one after the other, first come, first served: a release wakes one, not a thousand.
        let turns = tokio::time::timeout_at(deadline, self.shared.turns.of(&names));
        let Ok(turns) = turns.await else { return Err(self.held(names).await) };
        let owner = owner();
        let mut wakeup: Option<Wakeup> = None;
        loop {
            let heard = wakeup.as_ref().map_or(0, Wakeup::begin);
            let asked = Instant::now();
            let (name, holder, left) = match self.attempt(&names, &owner, options).await? {
                Attempt::Taken(guard) => return Ok(guard.keep(options, asked, turns).await),
                Attempt::Held { name, owner, left } => (name, owner, left),
            };
            if deadline <= Instant::now() {
                return Err(LockError::Held { name, owner: holder, left });
            }
            match &mut wakeup {
                Some(wakeup) if wakeup.is_of(&name) => wakeup.wait(heard, left, deadline).await,
                // Who listens first and looks then misses nothing.
                _ => wakeup = Some(self.shared.wakeups.of(&name)),
            }
        }
    }

    /// One attempt, in a task of its own: if who asked has left when the answer comes, the guard gives the lock back.
    async fn attempt(
        &self,
        names: &[String],
        owner: &str,
        options: LockOptions,
    ) -> Result<Attempt, LockError> {
        let (sender, receiver) = oneshot::channel();
        let (locks, names, owner) = (self.clone(), names.to_vec(), owner.to_owned());
        drop(tokio::spawn(async move {
            let result = locks.shared.redis.acquire_locks(&names, &owner, options.life).await;
            let result = result.map(|attempt| match attempt {
                LeaseAttempt::Granted(grants) => Attempt::Taken(LockGuard::new(locks, grants)),
                LeaseAttempt::Held { name, owner, left } => Attempt::Held { name, owner, left },
            });
            drop(sender.send(result));
        }));
        match receiver.await {
            Ok(result) => Ok(result?),
            Err(_task_is_gone) => Err(CacheError::timed_out("take a lock").into()),
        }
    }

    /// Who holds one of these, for a caller whose turn did not come.
    async fn held(&self, names: Vec<String>) -> LockError {
        match self.shared.redis.lock_holder(&names).await {
            Ok(Some(LeaseAttempt::Held { name, owner, left })) => LockError::Held { name, owner, left },
            Ok(_) => LockError::Held {
                name: names.into_iter().next().unwrap_or_default(),
                owner: "another task of this process, a moment ago".to_owned(),
                left: Duration::ZERO,
            },
            Err(error) => error.into(),
        }
    }

    /// Hands a lock to the renewer; answers who has it.
    async fn keep(&self, charge: Charge) -> Option<ActorRef<LockRenewerMessage>> {
        let mut charge = charge;
        for _ in 0..2 {
            let Some(renewer) = self.renewer().await else { break };
            match renewer.cast(LockRenewerMessage::Keep(charge)) {
                Ok(()) => return Some(renewer),
                Err(ractor::MessagingErr::SendErr(LockRenewerMessage::Keep(back))) => charge = back,
                Err(_) => return None,
            }
        }
        // Nobody renews it: the holder is told at once.
        charge.lost.cancel();
        None
    }

    /// The actor that renews; started with the first lock, and again where it ended.
    async fn renewer(&self) -> Option<ActorRef<LockRenewerMessage>> {
        if let Some(renewer) = living(&self.slot()) {
            return Some(renewer);
        }
        let arguments = LockRenewerArguments {
            redis: self.shared.redis.clone(),
            metrics: Arc::clone(&self.shared.metrics),
            owner: owner(),
        };
        let (renewer, _join) = Actor::spawn(None, LockRenewer, arguments).await.ok()?;
        let mut slot = self.slot();
        // Somebody may have been faster: then theirs is used, and this one ends.
        if let Some(theirs) = living(&slot) {
            renewer.stop(None);
            return Some(theirs);
        }
        *slot = Some(renewer.clone());
        Some(renewer)
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<ActorRef<LockRenewerMessage>>> {
        self.shared.renewer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn living(slot: &Option<ActorRef<LockRenewerMessage>>) -> Option<ActorRef<LockRenewerMessage>> {
    let ends = |status| matches!(status, ActorStatus::Stopping | ActorStatus::Stopped);
    slot.clone().filter(|renewer| !ends(renewer.get_status()))
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(renewer) = self.renewer.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            renewer.stop(None);
        }
    }
}

/// Names one holder: host, process, and a number of its own.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{}:{:016x}", host.trim(), std::process::id(), rand::random::<u64>())
}
