//! `cachekeeper run`

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::output::{Exit, Output};
use crate::app::StartError;
use crate::control::Control;
use crate::service::{Place, Service};
use crate::supervisor::Outcome;
use crate::telemetry;
use cachekeeper_config::Config;
use cachekeeper_engine::error::chain;

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// Runs the worker until a signal; a second one ends it at once. SIGHUP loads the configuration again, SIGUSR1 drains.
pub async fn run(config: Config, place: Place, out: &Output) -> Exit {
    telemetry::log_panics();
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            out.error(&format!("signals cannot be handled: {error}"));
            return Exit::Failed;
        }
    };
    let started = tokio::select! {
        started = Service::start(config, place) => started,
        // Nothing is done yet that would have to be ended in order.
        _ = signals.ending() => return Exit::Ok,
    };
    let mut service = match started {
        Ok(service) => service,
        Err(error) => {
            out.error(&chain(&error));
            return match error {
                StartError::Flow(_)
                | StartError::Schedule { .. }
                | StartError::RedisTooOld { .. }
                | StartError::PostgresTooOld { .. }
                | StartError::Evicting { .. }
                | StartError::FormerVersion { .. }
                | StartError::ClusterNode
                | StartError::Pooler(_)
                | StartError::SharedNames { .. } => Exit::Configuration,
                StartError::Spawn(_) => Exit::Failed,
            };
        }
    };
    let control = service.control();
    let ended = tokio::select! {
        outcome = service.run() => Some(outcome),
        _ = signals.ending_after_orders(&control) => None,
    };
    if let Some(Outcome::GaveUp { task }) = ended {
        error!(actor = task, "the worker gives up");
        service.stop().await;
        return Exit::Failed;
    }
    info!("stopping; a second signal ends the worker at once");
    tokio::select! {
        in_time = service.stop() => {
            telemetry::say_left_out(Duration::ZERO);
            if in_time {
                info!("stopped");
                return Exit::Ok;
            }
            warn!("not everything stopped in time");
            Exit::Failed
        }
        number = signals.ending() => Exit::Signal(number),
    }
}

/// The signals that a worker knows.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    reload: Signal,
    drain: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            reload: signal(SignalKind::hangup())?,
            drain: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for one that ends the worker; answers its number.
    async fn ending(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => SIGINT,
            _ = self.terminate.recv() => SIGTERM,
        }
    }

    /// The same, and has orders carried out meanwhile. What becomes of them is said in the log.
    async fn ending_after_orders(&mut self, control: &Control) -> u8 {
        loop {
            tokio::select! {
                number = async { tokio::select! {
                    _ = self.interrupt.recv() => SIGINT,
                    _ = self.terminate.recv() => SIGTERM,
                } } => return number,
                _ = self.reload.recv() => {
                    let control = control.clone();
                    tokio::spawn(async move { drop(control.reload(false).await) });
                }
                _ = self.drain.recv() => drop(control.drain()),
            }
        }
    }
}
