//! What systemd is told of a unit with `Type=notify` (`sd_notify(3)`): ready once the worker is, one line of its state, and a sign of
//! life that the supervisor itself gives. Where nobody listens, nothing is told.

use std::time::Duration;

use ractor::ActorRef;
use sd_notify::NotifyState;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::actors::health::Health;
use crate::app::Worker;
use crate::supervisor::SupervisorMessage;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// While the worker waits for its servers, systemd is told each time to wait so much longer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The worker that is told about.
#[derive(Clone, Debug)]
pub(super) struct Current {
    supervisor: ActorRef<SupervisorMessage>,
    health: Health,
}

impl Current {
    pub fn of(worker: &Worker) -> Self {
        Self { supervisor: worker.supervisor().clone(), health: worker.health.clone() }
    }
}

/// Tells for ever.
pub(super) async fn tell(current: watch::Receiver<Current>) {
    let every = sd_notify::watchdog_enabled().map_or(EVERY, |limit| EVERY.min(limit / 4));
    let (mut is_ready, mut told) = (false, String::new());
    loop {
        let Current { supervisor, health } = current.borrow().clone();
        let reasons = health.reasons();
        let state = if reasons.is_empty() {
            "ready".to_owned()
        } else {
            format!("not ready: {}", one_line(&reasons.join("; ")))
        };
        if state != told {
            say(&[NotifyState::Status(&state)]);
            told = state;
        }
        if reasons.is_empty() && !is_ready {
            is_ready = true;
            say(&[NotifyState::Ready]);
        } else if !is_ready {
            say(&[NotifyState::ExtendTimeoutUsec(microseconds(PATIENCE))]);
        }
        if lives(&supervisor, every).await {
            say(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(every).await;
    }
}

/// The worker stops, which may take so long.
pub(super) fn stopping(within: Duration) {
    say(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds(within))]);
}

/// Whether the supervisor still takes messages.
async fn lives(supervisor: &ActorRef<SupervisorMessage>, within: Duration) -> bool {
    let (beat, beats) = oneshot::channel();
    supervisor.cast(SupervisorMessage::Beat(beat)).is_ok()
        && matches!(timeout(within, beats).await, Ok(Ok(())))
}

/// Where nobody listens, or no more, there is nobody to tell.
fn say(states: &[NotifyState<'_>]) {
    drop(sd_notify::notify(states));
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// What follows a line break would be taken for another message.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
