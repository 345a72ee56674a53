//! Keeps held leases held, or has their loss told. The work is the engine's; this is its place under the supervisor: it
//! starts first and stops last, so that every lease is given back before the process ends.

use super::context::TaskContext;
use super::task::Task;
use super::wake::Wake;

/// See above.
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
