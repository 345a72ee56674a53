//! Carries out write commands of the stream, while it holds the lease.
//!
//! The lease keeps workers from getting in each other's way; that nothing is applied twice or out of order is seen to in
//! Postgres and in the scripts. If the actor dies, what it had is claimed by whoever leads next.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tracing::{info, warn};

use super::address::AddressBook;
use super::lock_renewer::{LockRenewerMessage, Wish};
use super::task::Task;
use crate::flows::commands::{CommandError, Commands};
use crate::flows::context::Context;
use crate::flows::error::chain;

/// The lease of the worker that carries out write commands.
pub const LEASE: &str = "writes";
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// What the actor needs.
#[derive(Clone, Debug)]
pub struct WriterArguments {
    /// Stores.
    pub context: Context,
    /// Peers.
    pub peers: AddressBook,
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
        let ask = |reply| LockRenewerMessage::Acquire { name: LEASE.to_owned(), reply };
        let wish = renewer.call(ask, Some(ASK_TIMEOUT)).await;
        let Ok(ractor::rpc::CallResult::Success(Wish::Granted(lease))) = wish else { continue };
        let _released = Release(&arguments.peers);
        tokio::select! {
            () = lease.lost.cancelled() => info!("another worker may apply write commands now"),
            () = lead(&arguments.context, &stream) => {}
        }
        delay = RETRY_DELAY_MIN;
    }
}

/// Gives the lease back, also where this task is ended from outside.
struct Release<'a>(&'a AddressBook);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.lock_renewer.hint(LockRenewerMessage::Release { name: LEASE.to_owned() });
    }
}

/// Leads until somebody else does. Servers that are down are waited for: the commands are in the stream.
async fn lead(context: &Context, stream: &str) {
    let mut delay = RETRY_DELAY_MIN;
    loop {
        let error = match lead_once(context, stream, &mut delay).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        if matches!(*error, CommandError::Displaced) {
            return;
        }
        warn!(error = %chain(&*error), "write commands wait, they are carried out later");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}

async fn lead_once(
    context: &Context,
    stream: &str,
    delay: &mut Duration,
) -> Result<std::convert::Infallible, Box<CommandError>> {
    let mut commands = Commands::lead(context, stream).await?;
    let mut tidied = Instant::now();
    loop {
        commands.step().await?;
        *delay = RETRY_DELAY_MIN;
        if TIDY_EVERY <= tidied.elapsed() {
            commands.tidy().await?;
            tidied = Instant::now();
        }
    }
}
