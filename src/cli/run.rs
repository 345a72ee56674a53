//! `cachekeeper run`

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::output::{Exit, Output};
use crate::app::{StartError, Worker};
use crate::supervisor::Outcome;
use crate::telemetry;
use cachekeeper_config::Config;
use cachekeeper_engine::error::chain;

const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;

/// Runs the worker until a signal; a second one ends it at once.
pub async fn run(config: Config, out: &Output) -> Exit {
    telemetry::log_panics();
    let (mut interrupt, mut terminate) =
        match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
            (Err(error), _) | (_, Err(error)) => {
                out.error(&format!("signals cannot be handled: {error}"));
                return Exit::Failed;
            }
        };
    let started = tokio::select! {
        started = Worker::start(config) => started,
        // Nothing is done yet that would have to be ended in order.
        _ = one_of(&mut interrupt, &mut terminate) => return Exit::Ok,
    };
    let mut worker = match started {
        Ok(worker) => worker,
        Err(error) => {
            out.error(&chain(&error));
            return match error {
                StartError::Flow(_)
                | StartError::Schedule { .. }
                | StartError::RedisTooOld { .. }
                | StartError::Evicting { .. }
                | StartError::FormerVersion { .. }
                | StartError::ClusterNode
                | StartError::Pooler(_)
                | StartError::SharedNames { .. } => Exit::Configuration,
                StartError::Spawn(_) => Exit::Failed,
            };
        }
    };
    let ended = tokio::select! {
        outcome = worker.ended() => Some(outcome),
        _ = one_of(&mut interrupt, &mut terminate) => None,
    };
    if let Some(Outcome::GaveUp { task }) = ended {
        error!(actor = task, "the worker gives up");
        worker.stop().await;
        return Exit::Failed;
    }
    info!("stopping; a second signal ends the worker at once");
    tokio::select! {
        in_time = worker.stop() => {
            telemetry::say_left_out(Duration::ZERO);
            if in_time {
                info!("stopped");
                return Exit::Ok;
            }
            warn!("not everything stopped in time");
            Exit::Failed
        }
        number = one_of(&mut interrupt, &mut terminate) => Exit::Signal(number),
    }
}

async fn one_of(interrupt: &mut Signal, terminate: &mut Signal) -> u8 {
    tokio::select! {
        _ = interrupt.recv() => SIGINT,
        _ = terminate.recv() => SIGTERM,
    }
}
