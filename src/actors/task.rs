//! One way to be a task of the worker.
//!
//! A task takes no input beyond the request to run: what there is to do it finds out by looking, in Postgres, in Redis,
//! and in what [`TaskContext`] holds. So a wake-up that is lost, a restart, a second worker need no path of their own; they
//! cost latency only. The runner restarts it when it fails, and drops it at any of its awaits when it must end: whatever
//! must hold has to hold then, and a lease is given back by being dropped.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tracing::info;

use super::context::TaskContext;
use super::wake::Wake;
use cachekeeper_engine::lease::LeaseName;

/// Work that goes on for as long as the worker does.
pub trait Task: 'static {
    /// Its name, in logs and metrics.
    const NAME: &'static str;
    /// The lease under which it runs, where one worker at a time should. Whoever needs leases for some of its work only, or
    /// works without one, asks the elector itself.
    const LEASE: Option<LeaseName> = None;

    /// Whether the configuration asks for it.
    fn is_wanted(_context: &TaskContext) -> bool {
        true
    }

    /// By what others wake it.
    fn wake(_context: &TaskContext) -> Wake {
        Wake::default()
    }

    /// Works until it is dropped. One that has a lease may return, to let others lead.
    fn run(context: TaskContext, wake: Wake) -> impl Future<Output = ()> + Send;

    /// What is left to do when it was stopped, and not where it failed or was killed.
    fn on_stopped(_context: TaskContext) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// A task as the supervisor handles it.
#[derive(Debug, Clone, Copy)]
pub struct TaskEntry {
    /// The name in the supervisor, in logs and in metrics.
    pub name: &'static str,
    pub(super) run: fn(TaskContext) -> BoxFuture<'static, ()>,
    pub(super) on_stopped: fn(TaskContext) -> BoxFuture<'static, ()>,
}

impl TaskEntry {
    /// The entry of a task.
    #[must_use]
    pub const fn of<T: Task>() -> Self {
        Self {
            name: T::NAME,
            run: |context| Box::pin(run::<T>(context)),
            on_stopped: |context| Box::pin(T::on_stopped(context)),
        }
    }
}

/// Between two terms of a leader that gave up by itself.
const PAUSE: Duration = Duration::from_millis(50);

async fn run<T: Task>(context: TaskContext) {
    if !T::is_wanted(&context) {
        return std::future::pending().await;
    }
    let wake = T::wake(&context);
    let Some(lease) = T::LEASE else { return T::run(context, wake).await };
    loop {
        let held = context.elector.lead(&lease).await;
        tokio::select! {
            () = held.lost().cancelled() => info!(lease = %lease.name, "the lease is lost, another worker may lead"),
            () = T::run(context.clone(), wake.clone()) => {}
        }
        drop(held);
        tokio::time::sleep(PAUSE).await;
    }
}
