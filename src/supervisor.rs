//! The root actor: starts the tasks in order, restarts what ends, gives up when that does not help, and stops them in
//! reverse order, each within a time limit.
//!
//! ractor restarts nothing by itself, and a parent that ends kills its children without their `post_stop`; so they are
//! stopped here, the one that releases the leases last, before this actor's own `post_stop` returns.

mod policy;

use std::collections::HashMap;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, info, warn};

pub use policy::{Decision, RestartPolicy};

use crate::actors::clock::now_ms;
use crate::actors::context::TaskContext;
use crate::actors::lock_renewer::LockRenewer;
use crate::actors::metrics_reporter::MetricsReporter;
use crate::actors::runner::Runner;
use crate::actors::task::{Task, TaskEntry};
use cachekeeper_engine::metrics::ByActor;

/// The tasks that a drained worker still has: those that tell how it is, and that give back what it held.
const LASTING: [&str; 2] = [LockRenewer::NAME, MetricsReporter::NAME];

/// What the supervisor needs.
#[derive(Debug)]
pub struct SupervisorArguments {
    /// What the tasks are given.
    pub context: TaskContext,
    /// The tasks, in the order in which they start.
    pub tasks: &'static [TaskEntry],
    /// How long all tasks together may take to stop.
    pub stop_within: Duration,
    /// Told how it ended.
    pub outcome: oneshot::Sender<Outcome>,
}

/// How the tree ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to.
    Stopped,
    /// A task failed too often.
    GaveUp {
        /// Which.
        task: &'static str,
    },
}

/// What the supervisor is asked for.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start a task. Sent by this actor's own timer.
    Start(TaskEntry),
    /// Kill the task of this name, as a crash would. Sent by tests and the demo.
    Kill(&'static str),
    /// Stop every task but those that tell how it is.
    Drain,
    /// Say that this actor still takes messages.
    Beat(oneshot::Sender<()>),
}

/// What the supervisor knows.
#[derive(Debug)]
pub struct SupervisorState {
    context: TaskContext,
    tasks: &'static [TaskEntry],
    policy: RestartPolicy,
    running: HashMap<ActorId, Running>,
    stop_within: Duration,
    outcome: Option<oneshot::Sender<Outcome>>,
    gave_up: Option<&'static str>,
    is_draining: bool,
}

#[derive(Debug)]
struct Running {
    task: TaskEntry,
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
        for task in arguments.tasks {
            myself.cast(SupervisorMessage::Start(*task))?;
        }
        Ok(SupervisorState {
            context: arguments.context,
            tasks: arguments.tasks,
            policy: RestartPolicy::default(),
            running: HashMap::new(),
            stop_within: arguments.stop_within,
            outcome: Some(arguments.outcome),
            gave_up: None,
            is_draining: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Start(task) if !state.may_run(&task) => {}
            SupervisorMessage::Start(task) => state.start(&myself, task).await,
            SupervisorMessage::Drain => {
                state.is_draining = true;
                state.stop_all(|task| !LASTING.contains(&task.name)).await;
                info!("drained: only the admin listener is left");
            }
            // Whoever asked waits no longer.
            SupervisorMessage::Beat(beat) => drop(beat.send(())),
            SupervisorMessage::Kill(name) => {
                for child in state.running.values().filter(|child| child.task.name == name) {
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
        state.stop_all(|_| true).await;
        info!("all actors have stopped");
        let outcome = state.gave_up.map_or(Outcome::Stopped, |task| Outcome::GaveUp { task });
        if let Some(sender) = state.outcome.take() {
            // Nobody waits for it any more: fine.
            drop(sender.send(outcome));
        }
        Ok(())
    }
}

impl SupervisorState {
    async fn start(&mut self, myself: &ActorRef<SupervisorMessage>, task: TaskEntry) {
        // Actors have no names: ractor's registry is shared by the whole process, tests too.
        self.context.health.update(|facts| {
            facts.tasks.insert(task.name);
        });
        let arguments = (task, self.context.clone());
        match Actor::spawn_linked(None, Runner, arguments, myself.get_cell()).await {
            Ok((actor, _join)) => {
                self.up(task.name).set(1);
                let (cell, since) = (actor.get_cell(), Instant::now());
                self.running.insert(cell.get_id(), Running { task, cell, since });
            }
            // A failed start is a failure like any other; ractor does not report it as an event.
            Err(error) => self.after_exit(myself, task, Duration::ZERO, &error.to_string()),
        }
    }

    fn on_exit(&mut self, myself: &ActorRef<SupervisorMessage>, id: ActorId, reason: &str) {
        let Some(child) = self.running.remove(&id) else {
            return;
        };
        self.up(child.task.name).set(0);
        if !self.may_run(&child.task) {
            return;
        }
        self.after_exit(myself, child.task, child.since.elapsed(), reason);
    }

    fn after_exit(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        task: TaskEntry,
        ran: Duration,
        reason: &str,
    ) {
        let name = task.name;
        self.context.engine.metrics.actor_restarts.get_or_create(&ByActor::new(name)).inc();
        self.context.health.update(|facts| drop(facts.ends.insert(name, (now_ms(), reason.to_owned()))));
        match self.policy.on_exit(name, ran, Instant::now()) {
            Decision::RestartAfter(delay) => {
                let restart_ms = u64::try_from(delay.as_millis()).unwrap_or_default();
                warn!(actor = name, reason, restart_ms, "actor ended, starting it again");
                // The timer's own handle is not kept: a supervisor that stops makes the message undeliverable.
                drop(myself.send_after(delay, move || SupervisorMessage::Start(task)));
            }
            Decision::GiveUp => {
                error!(actor = name, reason, "actor fails again and again, giving up");
                self.gave_up = Some(name);
                myself.stop(Some("gave up".to_owned()));
            }
        }
    }

    fn up(&self, name: &str) -> prometheus_client::metrics::gauge::Gauge {
        self.context.engine.metrics.actor_up.get_or_create(&ByActor::new(name)).clone()
    }

    /// Whether a task is not among those that a drained worker has given up.
    fn may_run(&self, task: &TaskEntry) -> bool {
        !self.is_draining || LASTING.contains(&task.name)
    }

    async fn stop_all(&mut self, is_meant: impl Fn(&TaskEntry) -> bool) {
        let deadline = Instant::now() + self.stop_within;
        for task in self.tasks.iter().rev().filter(|task| is_meant(task)) {
            let Some((_, child)) = self.running.iter().find(|(_, child)| child.task.name == task.name) else {
                continue;
            };
            child.cell.stop(Some("shutdown".to_owned()));
            let left = deadline.saturating_duration_since(Instant::now());
            if child.cell.wait(Some(left)).await.is_err() {
                warn!(actor = task.name, "actor did not stop in time, killing it");
                child.cell.kill();
            }
        }
    }
}
