//! Carries out write commands of the stream, while it holds the lease.
//!
//! The lease keeps workers from getting in each other's way; that nothing is applied twice or out of order is seen to in
//! Postgres and in the scripts. If the actor dies, what it had is claimed by whoever leads next.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tracing::{info, warn};

use super::address::AddressBook;
use super::health::Health;
use super::lock_renewer::{LockRenewerMessage, Wish};
use super::task::Task;
use cachekeeper_engine::flows::commands::{CommandError, Commands};
use cachekeeper_engine::flows::context::Context;
use cachekeeper_engine::flows::error::chain;

/// The lease of the worker that carries out write commands.
pub const LEASE: &str = "writes";
/// Commands wait so long when the leader's process dies. A leader that is displaced while it is slow loses nothing.
const LEASE_LIFE: Duration = Duration::from_secs(3);
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct WriterArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
    /// Where facts go.
    pub health: Health,
    /// The stream; none: nothing is done.
    pub stream: Option<String>,
}

/// Messages.
#[derive(Debug)]
pub enum WriterMessage {
    /// The loop has ended, which it never should: it panicked.
    Ended,
}

/// The actor.
#[derive(Debug)]
pub struct Writer;

impl Actor for Writer {
    type Msg = WriterMessage;
    type State = Option<Task>;
    type Arguments = WriterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<WriterMessage>,
        arguments: WriterArguments,
    ) -> Result<Option<Task>, ActorProcessingErr> {
        let has_writes = arguments.context.catalog.iter().any(|dataset| dataset.settings.write.is_some());
        let Some(stream) = arguments.stream.clone().filter(|_| has_writes) else { return Ok(None) };
        let work = run(arguments, stream);
        Ok(Some(Task::spawn(&myself, work, |_ended: Option<()>| WriterMessage::Ended)))
    }

    async fn handle(
        &self,
        _myself: ActorRef<WriterMessage>,
        message: WriterMessage,
        _task: &mut Option<Task>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WriterMessage::Ended => Err("the writer's loop has ended".into()),
        }
    }
}

async fn run(arguments: WriterArguments, stream: String) {
    let mut delay = RETRY_DELAY_MIN;
    loop {
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX / 10);
        let Some(renewer) = arguments.peers.lock_renewer.get() else { continue };
        let ask = |reply| LockRenewerMessage::Acquire { name: LEASE.to_owned(), life: LEASE_LIFE, reply };
        let wish = renewer.call(ask, Some(ASK_TIMEOUT)).await;
        let Ok(ractor::rpc::CallResult::Success(Wish::Granted(lease))) = wish else { continue };
        let _released = Release(&arguments);
        tokio::select! {
            () = lease.lost.cancelled() => info!("another worker may apply write commands now"),
            () = lead(&arguments, &stream) => {}
        }
        delay = RETRY_DELAY_MIN;
    }
}

/// Gives the lease back, also where this task is ended from outside. Whoever does not lead has no trouble with the stream.
struct Release<'a>(&'a WriterArguments);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.health.note_stream("writes", Ok(()));
        self.0.peers.lock_renewer.hint(LockRenewerMessage::Release { name: LEASE.to_owned() });
    }
}

/// Leads until somebody else does. Servers that are down are waited for: the commands are in the stream.
async fn lead(arguments: &WriterArguments, stream: &str) {
    let mut delay = RETRY_DELAY_MIN;
    loop {
        let began = Instant::now();
        let on_ready = || arguments.health.note_stream("writes", Ok(()));
        let error = Commands::lead(&arguments.context, stream, on_ready).await;
        if matches!(*error, CommandError::Displaced) {
            info!("another worker applies write commands now");
            return;
        }
        let text = chain(&*error);
        warn!(error = text, "write commands wait, they are carried out later");
        arguments.health.note_stream("writes", Err(text));
        if RETRY_DELAY_MAX < began.elapsed() {
            delay = RETRY_DELAY_MIN;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}
