//! Keeps held leases held, or tells that they are lost.
//!
//! One actor renews all leases of the process in one script, and does nothing else, so that no slow work can delay
//! it. A lease is trusted only until a moment counted from before its renewal was sent. If this actor dies, every
//! holder is told that its lease is lost; the lease itself ends in Redis by its own lifetime.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use crate::flows::context::Context;
use crate::flows::error::chain;
use crate::stores::redis::{LeaseAttempt, LeaseGrant};

/// How long a lease lives without renewal (DESIGN 3.3: at most 10 s).
pub const LEASE_LIFE: Duration = Duration::from_secs(10);
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Trust ends this much before the lease does, for clocks that run at different speeds.
const MARGIN: Duration = Duration::from_secs(1);
const TRUSTED_FOR: Duration = LEASE_LIFE.saturating_sub(MARGIN);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct LockRenewerArguments {
    /// Stores.
    pub context: Context,
    /// Who holds the leases: unique for each process.
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

/// Messages.
#[derive(Debug)]
pub enum LockRenewerMessage {
    /// Take a lease. Sent by actors before work that only one worker should do.
    Acquire {
        /// Its name.
        name: String,
        /// How it ended.
        reply: RpcReplyPort<Wish>,
    },
    /// Give a lease back. If it is lost, the lease ends by its own lifetime.
    Release {
        /// Its name.
        name: String,
    },
    /// Renew all. Sent by the actor's own timer.
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
    grant: LeaseGrant,
    lost: CancellationToken,
    /// Cancels `lost` also when the actor dies.
    _guard: DropGuard,
    trusted_until: Instant,
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
        myself: ActorRef<LockRenewerMessage>,
        arguments: LockRenewerArguments,
    ) -> Result<LockRenewerState, ActorProcessingErr> {
        let mut state = LockRenewerState { arguments, held: Vec::new(), timer: None };
        state.arm(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<LockRenewerMessage>,
        message: LockRenewerMessage,
        state: &mut LockRenewerState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            LockRenewerMessage::Acquire { name, reply } => {
                let wish = state.on_acquire(&name).await;
                if let (Err(_gone), true) = (reply.send(wish.clone()), matches!(wish, Wish::Granted(_))) {
                    // Whoever asked has left: nobody would ever give the lease back.
                    state.on_release(&name).await;
                }
            }
            LockRenewerMessage::Release { name } => state.on_release(&name).await,
            LockRenewerMessage::Renew => {
                state.on_renew().await;
                state.arm(&myself);
            }
        }
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
        let names: Vec<String> = state.held.iter().map(|held| held.grant.name.clone()).collect();
        for name in names {
            state.on_release(&name).await;
        }
        Ok(())
    }
}

impl LockRenewerState {
    fn arm(&mut self, myself: &ActorRef<LockRenewerMessage>) {
        self.timer = Some(myself.send_after(RENEW_EVERY, || LockRenewerMessage::Renew));
    }

    async fn on_acquire(&mut self, name: &str) -> Wish {
        if self.held.iter().any(|held| held.grant.name == name) {
            return Wish::Held(LEASE_LIFE);
        }
        let asked = Instant::now();
        match self.arguments.context.redis.acquire_lease(name, &self.arguments.owner, LEASE_LIFE).await {
            Ok(LeaseAttempt::Granted(grant)) => {
                let lost = CancellationToken::new();
                let lease = Lease { name: name.to_owned(), token: grant.token, lost: lost.clone() };
                let guard = lost.clone().drop_guard();
                let trusted_until = asked + TRUSTED_FOR;
                self.held.push(Held { grant, lost, _guard: guard, trusted_until });
                Wish::Granted(lease)
            }
            Ok(LeaseAttempt::Held { owner, left }) => {
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
        let Some(position) = self.held.iter().position(|held| held.grant.name == name) else {
            return;
        };
        let held = self.held.swap_remove(position);
        if let Err(error) = self.arguments.context.redis.release_lease(&held.grant).await {
            debug!(lease = name, error = %chain(&error), "lease was not released, it ends by itself");
        }
    }

    async fn on_renew(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let asked = Instant::now();
        let grants: Vec<LeaseGrant> = self.held.iter().map(|held| held.grant.clone()).collect();
        match self.arguments.context.redis.renew_leases(&grants, LEASE_LIFE).await {
            Ok(renewed) => {
                for (held, is_held) in self.held.iter_mut().zip(renewed) {
                    held.trusted_until = if is_held { asked + TRUSTED_FOR } else { asked };
                }
            }
            Err(error) => warn!(error = %chain(&error), leases = grants.len(), "leases could not be renewed"),
        }
        let now = Instant::now();
        // The next renewal comes too late for a lease whose trust ends before it.
        self.held.retain(|held| {
            let is_trusted = now + RENEW_EVERY < held.trusted_until;
            if !is_trusted {
                warn!(lease = %held.grant.name, "lease may be lost, its holder stops");
                self.arguments.context.metrics.leases_lost.inc();
                held.lost.cancel();
            }
            is_trusted
        });
    }
}
