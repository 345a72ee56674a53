//! Runs the engine's renewer of leases under the supervisor. It keeps held leases held, or tells their holders that they are
//! lost. It starts first and stops last, so that every lease is given back before the process ends; a lease that was not ends
//! by itself.

use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;

/// The task that renews leases.
#[derive(Debug)]
pub struct LockRenewer;

impl Task for LockRenewer {
    const NAME: &'static str = "lock_renewer";

    async fn run(context: TaskContext, _wake: Wake) {
        context.renewer.run().await;
    }

    async fn on_stopped(context: TaskContext) {
        context.renewer.close().await;
    }
}
