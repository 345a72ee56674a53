//! Leases and locks: taken, renewed while they are held, given back when their holder ends.
//!
//! A lease saves work; it does not guard correctness: a holder that is paused for longer than the lease lives goes on
//! beside the next one, and the scripts refuse whoever comes too late. So everything here may err towards "lost", and
//! nothing waits for a lease longer than its life.
//!
//! - [`Renewer`]: one task renews every lock of the process.
//! - [`Lease`]: what the holder has in its hand. Dropped, on whatever path, it gives the lock back.
//! - [`Elector`]: how a worker gets to lead, and waits for it.

mod elector;
mod goes_on;
mod guard;
mod held;
mod renewer;
mod table;
mod terms;
mod wakeups;

use std::sync::LazyLock;

pub use elector::Elector;
pub use guard::Lease;
pub use renewer::{LeaseReply, Renewer};
pub use terms::{LeaseName, Terms};
pub use wakeups::{Wakeup, Wakeups};

/// Names a worker: as a holder is named, and by its version, so that people see which one runs where.
#[must_use]
pub fn worker_name() -> String {
    format!("{}:v{}", unique_owner(), env!("CARGO_PKG_VERSION"))
}

/// Names a holder: host, process, and a number of its own.
#[must_use]
pub fn unique_owner() -> String {
    static HOST: LazyLock<String> = LazyLock::new(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        host.trim().to_owned()
    });
    format!("{}:{}:{:016x}", *HOST, std::process::id(), rand::random::<u64>())
}
