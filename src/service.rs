//! The worker as a process runs it: one after another, each with the configuration of its time, and what outlives them.
//!
//! A reload is a rolling restart inside of the process: the next worker starts beside the one before, exactly as another process
//! would (R16), and takes over when it is ready. So there is nothing that only a restart could change, but the format of the log.

mod notify;
mod reload;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::actors::clock::now_ms;
use crate::actors::context::Handover;
use crate::app::{StartError, Worker};
use crate::control::{Control, Order, ReloadError, Reloaded};
use crate::supervisor::{Outcome, SupervisorMessage};
use cachekeeper_config::Config;
use cachekeeper_engine::context::Context;

pub use self::reload::Place;
use self::reload::unavailable;

/// How long a worker waits for the next one to be ready before it leaves all the same: what keeps that one from it is told by then.
const READY_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a worker waits for its last answer to be read.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// Workers, one at a time but for the moment of a reload.
#[derive(Debug)]
pub struct Service {
    place: Place,
    config: Config,
    worker: Worker,
    /// While one takes over from another: the next one until it is ready, then the one before until it has stopped.
    other: Option<Worker>,
    control: Control,
    orders: mpsc::Receiver<Order>,
    /// The worker that systemd is told about.
    current: watch::Sender<notify::Current>,
    notifier: JoinHandle<()>,
}

impl Service {
    /// Starts the first worker.
    ///
    /// # Errors
    /// What waiting cannot mend.
    pub async fn start(config: Config, place: Place) -> Result<Self, StartError> {
        let (control, orders) = Control::new();
        let context = Context::of_worker(&config)?;
        let handover = Handover { control: control.clone(), ..Handover::default() };
        let worker = Worker::start_after(config.clone(), context, handover).await?;
        let (current, follow) = watch::channel(notify::Current::of(&worker));
        let notifier = tokio::spawn(notify::tell(follow));
        Ok(Self { place, config, worker, other: None, control, orders, current, notifier })
    }

    /// Takes orders, from signals too.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Carries out orders until the worker ends by itself: an actor failed too often.
    pub async fn run(&mut self) -> Outcome {
        loop {
            let order = tokio::select! {
                outcome = self.worker.ended() => return outcome,
                Some(order) = self.orders.recv() => order,
            };
            match order {
                Order::Drain => self.drain(),
                Order::Reload { is_dry, answer } => self.reload(is_dry, answer).await,
            }
        }
    }

    /// Stops what runs. True: in time.
    pub async fn stop(self) -> bool {
        notify::stopping(self.config.service.shutdown_timeout);
        self.notifier.abort();
        if let Some(other) = self.other {
            tokio::join!(other.stop(), self.worker.stop()).1
        } else {
            self.worker.stop().await
        }
    }

    fn drain(&self) {
        info!("draining: this worker takes no more work, and lives on until it is stopped");
        self.worker.health.update(|facts| facts.is_draining = true);
        // It ends as well: nothing is left to do.
        drop(self.worker.supervisor().cast(SupervisorMessage::Drain));
    }

    async fn reload(&mut self, is_dry: bool, answer: oneshot::Sender<crate::control::Answered>) {
        let result = if self.worker.health.facts().is_draining {
            Err(ReloadError::Refused(
                "the worker drains; start it again to have it work with the new configuration",
            ))
        } else {
            self.replace(is_dry).await
        };
        if !is_dry {
            self.note(&result);
        }
        let (told, read) = oneshot::channel();
        // Whoever asked may have gone.
        drop(answer.send((result, told)));
        drop(timeout(READ_WITHIN, read).await);
        if let Some(before) = &self.other {
            before.leave_listener().await;
        }
        if let Some(before) = self.other.take()
            && !before.stop().await
        {
            warn!("the worker before did not stop in time");
        }
    }

    fn note(&self, result: &Result<Reloaded, ReloadError>) {
        self.control.note(now_ms(), result);
        let metrics = &self.worker.context.metrics;
        metrics.reload_ok.set(i64::from(result.is_ok()));
        match result {
            Ok(reloaded) => {
                for change in &reloaded.changes {
                    info!(%change, "the configuration has changed");
                }
                for change in &reloaded.needs_restart {
                    warn!(%change, "this change counts after a restart only");
                }
                info!(changes = reloaded.changes.len(), "configuration loaded again");
            }
            Err(error) => warn!(%error, "the configuration stays as it was"),
        }
    }

    /// Puts a worker with the file's configuration in the place of the one that runs, if that changes anything.
    async fn replace(&mut self, is_dry: bool) -> Result<Reloaded, ReloadError> {
        let (newer, reloaded) = reload::load(&self.place, &self.config).await?;
        if is_dry || reloaded.changes.is_empty() {
            return Ok(reloaded);
        }
        let context = Context::of_worker(&newer).map_err(|error| unavailable(&error))?;
        let context = context.with_history_of(&self.worker.context);
        let warmed = reload::warmed(&self.config, &newer, &self.worker.health.facts().not_warmed);
        let handover = Handover { warmed, ..self.worker.handover() };
        let next = Worker::start_after(newer.clone(), context, handover).await;
        // Kept here: a signal that ends the process meanwhile ends it too.
        let next = self.other.insert(next.map_err(|error| unavailable(&error))?);
        is_ready(next).await;
        self.current.send_replace(notify::Current::of(next));
        std::mem::swap(&mut self.worker, next);
        // It was understood a moment ago.
        drop(crate::telemetry::set_level(&newer.log.level));
        self.config = newer;
        Ok(reloaded)
    }
}

/// Waits until a worker is ready, within a limit.
async fn is_ready(worker: &Worker) {
    let ready = async {
        while !worker.health.reasons().is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    if timeout(READY_WITHIN, ready).await.is_err() {
        let reasons = worker.health.reasons().join("; ");
        warn!(
            not_ready = reasons,
            "the worker with the new configuration is not ready, and takes over all the same"
        );
    }
}
