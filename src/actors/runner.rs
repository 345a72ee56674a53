//! The actor that runs a task: all that ractor knows of it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::JoinHandle;

use super::context::TaskContext;
use super::task::TaskEntry;

/// Runs one task, beside its mailbox, so that it can be stopped and killed at any time.
#[derive(Debug)]
pub struct Runner;

/// The task has ended, which none should: why.
#[derive(Debug)]
pub struct Ended(String);

/// A task that runs.
#[derive(Debug)]
pub struct Running {
    entry: TaskEntry,
    context: TaskContext,
    work: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Actor for Runner {
    type Msg = Ended;
    type State = Running;
    type Arguments = (TaskEntry, TaskContext);

    async fn pre_start(
        &self,
        myself: ActorRef<Ended>,
        (entry, context): (TaskEntry, TaskContext),
    ) -> Result<Running, ActorProcessingErr> {
        let task = (entry.run)(context.clone());
        let work = tokio::spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            let reason =
                ended.err().map_or_else(|| "its work has ended".to_owned(), |panic| text_of(&*panic));
            // If the actor has ended too, nobody needs to know.
            drop(myself.cast(Ended(reason)));
        });
        Ok(Running { entry, context, work })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Ended>,
        Ended(reason): Ended,
        _running: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        Err(reason.into())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Ended>,
        running: &mut Running,
    ) -> Result<(), ActorProcessingErr> {
        running.work.abort();
        // Waited for, so that its leases are dropped before the renewer is stopped.
        drop((&mut running.work).await);
        (running.entry.on_stopped)(running.context.clone()).await;
        Ok(())
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_default())
}
