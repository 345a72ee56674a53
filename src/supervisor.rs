//! The root actor: starts the others in order, restarts what ends, gives up when that does not help, and stops them
//! in reverse order, each within a time limit.
//!
//! ractor restarts nothing by itself, and a parent that ends kills its children without their `post_stop`; so leases
//! are released here, last, before this actor's own `post_stop` returns.

mod child;
mod policy;

use std::collections::HashMap;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

pub use child::{ChildKind, Wiring};
pub use policy::{Decision, RestartPolicy};

use cachekeeper_engine::metrics::ByActor;

/// What the supervisor needs.
#[derive(Debug)]
pub struct SupervisorArguments {
    /// How the children are built.
    pub wiring: Wiring,
    /// How long all children together may take to stop.
    pub stop_within: Duration,
    /// Told how it ended.
    pub outcome: oneshot::Sender<Outcome>,
}

/// How the tree ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to.
    Stopped,
    /// An actor failed too often.
    GaveUp {
        /// Which.
        child: &'static str,
    },
}

/// Messages.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start a child. Sent by this actor's own timer.
    Start(ChildKind),
    /// Kill a child, as a crash would. Sent by tests and the demo.
    Kill(ChildKind),
}

/// What the supervisor knows.
#[derive(Debug)]
pub struct SupervisorState {
    wiring: Wiring,
    policy: RestartPolicy,
    running: HashMap<ActorId, Running>,
    stop_within: Duration,
    outcome: Option<oneshot::Sender<Outcome>>,
    gave_up: Option<&'static str>,
}

#[derive(Debug)]
struct Running {
    kind: ChildKind,
    cell: ActorCell,
    since: Instant,
}

/// The root actor.
#[derive(Debug)]
pub struct Supervisor;

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        arguments: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        for kind in ChildKind::START_ORDER {
            myself.cast(SupervisorMessage::Start(kind))?;
        }
        Ok(SupervisorState {
            wiring: arguments.wiring,
            policy: RestartPolicy::default(),
            running: HashMap::new(),
            stop_within: arguments.stop_within,
            outcome: Some(arguments.outcome),
            gave_up: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Start(kind) => state.start(&myself, kind).await,
            SupervisorMessage::Kill(kind) => {
                for child in state.running.values().filter(|child| child.kind == kind) {
                    child.cell.kill();
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                state.on_exit(&myself, cell.get_id(), &reason.unwrap_or_else(|| "it ended".to_owned()));
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                state.on_exit(&myself, cell.get_id(), &error.to_string());
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<SupervisorMessage>,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        state.stop_all().await;
        let outcome = state.gave_up.map_or(Outcome::Stopped, |child| Outcome::GaveUp { child });
        if let Some(sender) = state.outcome.take() {
            // Nobody waits for it any more: fine.
            drop(sender.send(outcome));
        }
        Ok(())
    }
}

impl SupervisorState {
    async fn start(&mut self, myself: &ActorRef<SupervisorMessage>, kind: ChildKind) {
        match self.wiring.spawn(kind, myself.get_cell()).await {
            Ok(cell) => {
                self.up(kind).set(1);
                self.running.insert(cell.get_id(), Running { kind, cell, since: Instant::now() });
            }
            // A failed start is a failure like any other; ractor does not report it as an event.
            Err(error) => self.after_exit(myself, kind, Duration::ZERO, &error.to_string()),
        }
    }

    fn on_exit(&mut self, myself: &ActorRef<SupervisorMessage>, id: ActorId, reason: &str) {
        let Some(child) = self.running.remove(&id) else {
            return;
        };
        self.wiring.empty_slot(child.kind);
        self.up(child.kind).set(0);
        self.after_exit(myself, child.kind, child.since.elapsed(), reason);
    }

    fn after_exit(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        kind: ChildKind,
        ran: Duration,
        reason: &str,
    ) {
        let metrics = self.wiring.metrics();
        metrics.actor_restarts.get_or_create(&ByActor::new(kind.name())).inc();
        match self.policy.on_exit(kind, ran, Instant::now()) {
            Decision::RestartAfter(delay) => {
                warn!(
                    actor = kind.name(),
                    reason,
                    restart_ms = u64::try_from(delay.as_millis()).unwrap_or_default(),
                    "actor ended, starting it again"
                );
                // The timer's own handle is not kept: a supervisor that stops makes the message undeliverable.
                drop(myself.send_after(delay, move || SupervisorMessage::Start(kind)));
            }
            Decision::GiveUp => {
                error!(actor = kind.name(), reason, "actor fails again and again, giving up");
                self.gave_up = Some(kind.name());
                myself.stop(Some("gave up".to_owned()));
            }
        }
    }

    fn up(&self, kind: ChildKind) -> prometheus_client::metrics::gauge::Gauge {
        self.wiring.metrics().actor_up.get_or_create(&ByActor::new(kind.name())).clone()
    }

    async fn stop_all(&mut self) {
        let deadline = Instant::now() + self.stop_within;
        for kind in ChildKind::START_ORDER.into_iter().rev() {
            let Some((_, child)) = self.running.iter().find(|(_, child)| child.kind == kind) else {
                continue;
            };
            child.cell.stop(Some("shutdown".to_owned()));
            let left = deadline.saturating_duration_since(Instant::now());
            if child.cell.wait(Some(left)).await.is_err() {
                warn!(actor = kind.name(), "actor did not stop in time, killing it");
                child.cell.kill();
            }
            self.wiring.empty_slot(kind);
        }
        info!("all actors have stopped");
    }
}
