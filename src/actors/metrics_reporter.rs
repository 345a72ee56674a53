//! Exports the numbers: `/metrics`, `/livez`, `/readyz` on the admin listener, and a log line now and then.
//!
//! A port that is taken is a warning, and tried again. If the actor dies, scrapes fail until it is back.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::health::Health;
use super::task::Task;
use crate::admin;
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::chain;

const REPORT_EVERY: Duration = Duration::from_secs(30);
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct MetricsReporterArguments {
    /// Stores and metrics.
    pub context: Context,
    /// The facts behind readiness.
    pub health: Health,
    /// Where to listen; none: nowhere.
    pub listen: Option<String>,
}

/// Messages.
#[derive(Debug)]
pub enum MetricsReporterMessage {
    /// Write the log line. Sent by the actor's own timer.
    Report,
}

/// What the actor knows.
#[derive(Debug)]
pub struct MetricsReporterState {
    arguments: MetricsReporterArguments,
    timer: Option<JoinHandle<Result<(), ractor::MessagingErr<MetricsReporterMessage>>>>,
    _listener: Option<Task>,
}

/// The actor.
#[derive(Debug)]
pub struct MetricsReporter;

impl Actor for MetricsReporter {
    type Msg = MetricsReporterMessage;
    type State = MetricsReporterState;
    type Arguments = MetricsReporterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<MetricsReporterMessage>,
        arguments: MetricsReporterArguments,
    ) -> Result<MetricsReporterState, ActorProcessingErr> {
        let listener = arguments.listen.clone().map(|listen| {
            let (context, health) = (arguments.context.clone(), arguments.health.clone());
            Task::run(async move { listen_forever(&listen, context, health).await })
        });
        let mut state = MetricsReporterState { arguments, timer: None, _listener: listener };
        state.arm(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<MetricsReporterMessage>,
        message: MetricsReporterMessage,
        state: &mut MetricsReporterState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MetricsReporterMessage::Report => {
                state.on_report().await;
                state.arm(&myself);
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<MetricsReporterMessage>,
        state: &mut MetricsReporterState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(timer) = state.timer.take() {
            timer.abort();
        }
        Ok(())
    }
}

impl MetricsReporterState {
    fn arm(&mut self, myself: &ActorRef<MetricsReporterMessage>) {
        self.timer = Some(myself.send_after(REPORT_EVERY, || MetricsReporterMessage::Report));
    }

    async fn on_report(&mut self) {
        let context = &self.arguments.context;
        match context.redis.facts().await {
            Ok(facts) => {
                context.metrics.redis_used_memory.set(facts.used_memory);
                context.metrics.redis_evicted.set(facts.evicted_keys);
                let reasons = self.arguments.health.reasons();
                info!(ready = reasons.is_empty(), not_ready = %reasons.join("; "), redis.bytes = facts.used_memory,
                    redis.evicted = facts.evicted_keys, "still running");
            }
            Err(error) => debug!(error = %chain(&error), "no report this time"),
        }
    }
}

async fn listen_forever(listen: &str, context: Context, health: Health) {
    loop {
        match tokio::net::TcpListener::bind(listen).await {
            Ok(listener) => {
                if let Ok(address) = listener.local_addr() {
                    info!(%address, "admin listener is open: /livez /readyz /metrics /api/v1/status");
                }
                if let Err(error) = admin::serve(listener, context.clone(), health.clone()).await {
                    warn!(%error, "admin listener ended, opening it again");
                }
            }
            Err(error) => warn!(listen, %error, "admin listener could not open, trying again"),
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}
