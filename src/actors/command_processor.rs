//! Carries out the write commands of the stream.
//!
//! The lease only avoids double work. Postgres and the scripts make sure that nothing is applied twice or out of order. What a
//! leader that died has begun is claimed by the next one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::context::TaskContext;
use super::health::Health;
use super::task::Task;
use super::wake::Wake;
use cachekeeper_engine::backoff::Backoff;
use cachekeeper_engine::commands::{CommandConsumer, CommandError};
use cachekeeper_engine::error::chain;
use cachekeeper_engine::lease::LeaseName;
use cachekeeper_engine::log_limit;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What readiness calls the stream.
const STREAM: &str = "writes";

/// Carries out write commands.
#[derive(Debug)]
pub struct CommandProcessor;

impl Task for CommandProcessor {
    const NAME: &'static str = "command_processor";
    const LEASE: Option<LeaseName> = Some(LeaseName::COMMANDS);

    fn is_wanted(context: &TaskContext) -> bool {
        context.config.writes.stream.is_some()
            && context.engine.catalog.iter().any(|dataset| dataset.settings.write.is_some())
    }

    /// Leads until somebody else does. Servers that are down are waited for: the commands are in the stream.
    async fn run(context: TaskContext, _wake: Wake) {
        let Some(stream) = context.config.writes.stream.as_deref() else { return };
        let health = &context.health;
        let _trouble = ClearOnDrop(health);
        let mut retry = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            let began = Instant::now();
            let on_ready = || health.note_stream(STREAM, Ok(()));
            let error = CommandConsumer::lead(&context.engine, stream, on_ready).await;
            if matches!(*error, CommandError::NotLeader) {
                info!("another worker carries out write commands now");
                return;
            }
            let text = chain(&*error);
            let what = "write commands wait, they are carried out later";
            if let Some(attempts) = log_limit::due(what, "", 1) {
                warn!(error = text, attempts, "{what}");
            }
            health.note_stream(STREAM, Err(text));
            retry.reset_after(began.elapsed());
            retry.wait_or(context.engine.redis.connected_again()).await;
        }
    }
}

/// When this worker stops leading, for whatever reason, it reports no trouble with the stream.
struct ClearOnDrop<'a>(&'a Health);

impl Drop for ClearOnDrop<'_> {
    fn drop(&mut self) {
        self.0.note_stream(STREAM, Ok(()));
    }
}
