//! Keeps held locks held, or tells that they are lost.
//!
//! One actor renews all locks of the process, a hundred in one script, and does nothing else that could delay it. A lock
//! is trusted only until a moment counted from before its last renewal was sent. If this actor dies, every holder is told
//! that its lock is lost; the lock itself ends in Redis by its own lifetime.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use cachekeeper_engine::flows::error::chain;
use cachekeeper_engine::metrics::Metrics;
use cachekeeper_engine::stores::redis::{LeaseAttempt, LeaseGrant, Redis};

/// How long a worker's lease lives without renewal (DESIGN 3.3: at most 10 s).
pub const LEASE_LIFE: Duration = Duration::from_secs(10);
/// Locks of one script.
const BATCH: usize = 100;

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct LockRenewerArguments {
    /// Where the locks are.
    pub redis: Redis,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Who holds the leases of a worker: unique for each process.
    pub owner: String,
}

/// A held lease, as its holder sees it. Tell [`LockRenewerMessage::Release`] when done.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Its name.
    pub name: String,
    /// Grows from holder to holder.
    pub token: u64,
    /// Cancelled when the lease may be lost.
    pub lost: CancellationToken,
}

/// How a wish for a lease ended.
#[derive(Debug, Clone)]
pub enum Wish {
    /// It is ours.
    Granted(Lease),
    /// Somebody else has it for about this long.
    Held(Duration),
    /// Redis could not be asked.
    Unavailable,
}

/// A lock that somebody else has taken and this actor keeps.
#[derive(Debug)]
pub struct Charge {
    /// What was granted, under one token.
    pub grants: Vec<LeaseGrant>,
    /// Its lifetime without renewal.
    pub life: Duration,
    /// When it was asked for.
    pub asked: Instant,
    /// Whether it is to be renewed.
    pub is_renewed: bool,
    /// When it ends in any case.
    pub ends: Option<Instant>,
    /// Cancelled when it may be lost.
    pub lost: CancellationToken,
    /// Set by the holder before it releases: a renewal then finds nothing, and nothing is wrong.
    pub is_released: Arc<AtomicBool>,
    /// What keeps others of this process from trying meanwhile; given back with the lock.
    pub turns: Vec<OwnedSemaphorePermit>,
}

/// Messages.
#[derive(Debug)]
pub enum LockRenewerMessage {
    /// Take a lease. Sent by actors before work that only one worker should do.
    Acquire {
        /// Its name.
        name: String,
        /// How long it lives without renewal: others wait so long for one who died.
        life: Duration,
        /// How it ended.
        reply: RpcReplyPort<Wish>,
    },
    /// Give a lease back. If it is lost, the lease ends by its own lifetime.
    Release {
        /// Its name.
        name: String,
    },
    /// Keep a lock. Sent by the library.
    Keep(Charge),
    /// A lock was given back, by its token. Sent by the library.
    Forget(u64),
    /// Renew what is due. Sent by the actor's own timer.
    Renew,
}

/// What the actor knows.
#[derive(Debug)]
pub struct LockRenewerState {
    arguments: LockRenewerArguments,
    held: Vec<Held>,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<LockRenewerMessage>>>>,
}

#[derive(Debug)]
struct Held {
    charge: Charge,
    /// Cancels `lost` also when the actor dies.
    _guard: DropGuard,
    renew_at: Option<Instant>,
    trusted_until: Instant,
}

impl Held {
    fn new(charge: Charge) -> Self {
        let renew_at = charge.is_renewed.then(|| charge.asked + charge.life / 3);
        let mut held =
            Self { _guard: charge.lost.clone().drop_guard(), renew_at, trusted_until: charge.asked, charge };
        held.trust(held.charge.asked);
        held
    }

    /// It was held at some time after this moment.
    fn trust(&mut self, asked: Instant) {
        let life = self.charge.life;
        // Trust ends before the lock does, for clocks that run at different speeds.
        let margin = (life / 10).max(Duration::from_millis(2));
        let until = asked + life.saturating_sub(margin);
        self.trusted_until = self.charge.ends.map_or(until, |ends| until.min(ends));
    }

    fn wakes_at(&self) -> Instant {
        self.renew_at.map_or(self.trusted_until, |at| at.min(self.trusted_until))
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.charge.is_released.load(Ordering::Acquire) && self.renew_at.is_some_and(|at| at <= now)
    }
}

/// The actor.
#[derive(Debug)]
pub struct LockRenewer;

impl Actor for LockRenewer {
    type Msg = LockRenewerMessage;
    type State = LockRenewerState;
    type Arguments = LockRenewerArguments;

    async fn pre_start(
        &self,
        _myself: ActorRef<LockRenewerMessage>,
        arguments: LockRenewerArguments,
    ) -> Result<LockRenewerState, ActorProcessingErr> {
        Ok(LockRenewerState { arguments, held: Vec::new(), timer: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<LockRenewerMessage>,
        message: LockRenewerMessage,
        state: &mut LockRenewerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LockRenewerMessage::Acquire { name, life, reply } => {
                let wish = state.on_acquire(&name, life).await;
                if let (Err(_gone), true) = (reply.send(wish.clone()), matches!(wish, Wish::Granted(_))) {
                    // Whoever asked has left: nobody would ever give the lease back.
                    state.on_release(&name).await;
                }
            }
            LockRenewerMessage::Release { name } => state.on_release(&name).await,
            LockRenewerMessage::Keep(charge) => state.held.push(Held::new(charge)),
            LockRenewerMessage::Forget(token) => state.held.retain(|held| held.token() != token),
            LockRenewerMessage::Renew => state.on_renew().await,
        }
        state.arm(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<LockRenewerMessage>,
        state: &mut LockRenewerState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        let grants: Vec<LeaseGrant> = state.held.drain(..).flat_map(|held| held.charge.grants).collect();
        state.release(&grants).await;
        Ok(())
    }
}

impl Held {
    fn token(&self) -> u64 {
        self.charge.grants.first().map_or(0, |grant| grant.token)
    }

    fn has(&self, name: &str) -> bool {
        self.charge.grants.iter().any(|grant| grant.name == name)
    }
}

impl LockRenewerState {
    /// One timer, for what is due first.
    fn arm(&mut self, myself: &ActorRef<LockRenewerMessage>) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let Some(first) = self.held.iter().map(Held::wakes_at).min() else { return };
        let pause = first.saturating_duration_since(Instant::now());
        self.timer = Some(myself.send_after(pause, || LockRenewerMessage::Renew));
    }

    async fn on_acquire(&mut self, name: &str, life: Duration) -> Wish {
        if self.held.iter().any(|held| held.has(name)) {
            return Wish::Held(life);
        }
        let asked = Instant::now();
        let attempt = self.arguments.redis.acquire_locks(&[name], &self.arguments.owner, life).await;
        match attempt {
            Ok(LeaseAttempt::Granted(grants)) => {
                let lost = CancellationToken::new();
                let held = Held::new(Charge {
                    grants,
                    life,
                    asked,
                    is_renewed: true,
                    ends: None,
                    lost: lost.clone(),
                    is_released: Arc::default(),
                    turns: Vec::new(),
                });
                let lease = Lease { name: name.to_owned(), token: held.token(), lost };
                self.held.push(held);
                Wish::Granted(lease)
            }
            Ok(LeaseAttempt::Held { owner, left, .. }) => {
                debug!(lease = name, owner, "lease is held elsewhere");
                Wish::Held(left)
            }
            Err(error) => {
                warn!(lease = name, error = %chain(&error), "lease could not be taken");
                Wish::Unavailable
            }
        }
    }

    async fn on_release(&mut self, name: &str) {
        let Some(position) = self.held.iter().position(|held| held.has(name)) else {
            return;
        };
        let held = self.held.swap_remove(position);
        self.release(&held.charge.grants).await;
    }

    async fn release(&self, grants: &[LeaseGrant]) {
        for batch in grants.chunks(BATCH) {
            if let Err(error) = self.arguments.redis.release_locks(batch).await {
                debug!(error = %chain(&error), "locks were not released, they end by themselves");
            }
        }
    }

    async fn on_renew(&mut self) {
        let asked = Instant::now();
        // What is due a little later goes with the rest.
        let due = |held: &Held| held.is_due(asked + held.charge.life / 20);
        let wanted: Vec<(&LeaseGrant, Duration)> = self
            .held
            .iter()
            .filter(|held| due(held))
            .flat_map(|held| held.charge.grants.iter().map(|grant| (grant, held.charge.life)))
            .collect();
        // A renewal that hangs may not keep anybody from being told in time.
        let deadline = self.held.iter().map(|held| held.trusted_until).min().unwrap_or(asked);
        let mut lost: Vec<(u64, String)> = Vec::new();
        let mut has_failed = false;
        for batch in wanted.chunks(BATCH) {
            match tokio::time::timeout_at(deadline, self.arguments.redis.renew_locks(batch)).await {
                Ok(Ok(renewed)) => {
                    let gone = batch.iter().zip(renewed).filter(|(_, is_held)| !is_held);
                    lost.extend(gone.map(|((grant, _), _)| (grant.token, grant.name.clone())));
                }
                Ok(Err(error)) => {
                    has_failed = true;
                    warn!(error = %chain(&error), locks = batch.len(), "locks could not be renewed");
                }
                Err(_elapsed) => has_failed = true,
            }
        }
        let now = Instant::now();
        for held in self.held.iter_mut().filter(|held| due(held)) {
            if lost.iter().any(|(token, name)| *token == held.token() && held.has(name)) {
                held.trusted_until = asked;
            } else if has_failed {
                held.renew_at = Some(now + held.charge.life / 20);
            } else {
                held.trust(asked);
                held.renew_at = Some(asked + held.charge.life / 3);
            }
        }
        self.drop_lost(now);
    }

    fn drop_lost(&mut self, now: Instant) {
        let metrics = &self.arguments.metrics;
        self.held.retain(|held| {
            let is_trusted = now < held.trusted_until;
            if !is_trusted && !held.charge.is_released.load(Ordering::Acquire) {
                warn!(lock = ?held.charge.grants.first().map(|grant| &grant.name), "lock may be lost, its holder is told");
                metrics.leases_lost.inc();
                held.charge.lost.cancel();
            }
            is_trusted
        });
    }
}
