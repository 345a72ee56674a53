//! The tasks of the worker. They decide *when*; the engine knows *what*.
//!
//! Each is a [`task::Task`], run by an actor under the supervisor. What they tell each other are wake-ups, and what they
//! leave for each other stands in [`context::TaskContext`]: losing a wake-up costs latency only, because each task also
//! looks by itself.

pub mod attempts;
pub mod auditor;
mod background;
pub mod change_feed;
pub mod clock;
pub mod command_processor;
pub mod context;
pub mod durable_event_consumer;
pub mod epoch_keeper;
pub mod health;
pub mod inbox;
pub mod invalidation_listener;
pub mod lock_renewer;
pub mod metrics_reporter;
pub mod poll_interval;
pub mod refresher;
pub mod runner;
pub mod seen_events;
pub mod shard_reporter;
pub mod shards;
pub mod task;
pub mod under_way;
pub mod wake;
pub mod warmer;

use task::TaskEntry;

/// The tasks of a worker on a cluster as a whole.
pub const CLUSTER_TASKS: [TaskEntry; 2] =
    [TaskEntry::of::<metrics_reporter::MetricsReporter>(), TaskEntry::of::<shards::Shards>()];

/// The tasks of each of its shards, in the order in which they start. Streams are not read on a cluster yet.
pub const SHARD_TASKS: [TaskEntry; 8] = [
    TaskEntry::of::<lock_renewer::LockRenewer>(),
    TaskEntry::of::<shard_reporter::ShardReporter>(),
    TaskEntry::of::<epoch_keeper::EpochKeeper>(),
    TaskEntry::of::<change_feed::ChangeFeed>(),
    TaskEntry::of::<refresher::Refresher>(),
    TaskEntry::of::<warmer::Warmer>(),
    TaskEntry::of::<invalidation_listener::InvalidationListener>(),
    TaskEntry::of::<auditor::Auditor>(),
];

/// All tasks on a single Redis, in the order in which they start: those that others rely on first. They stop backwards, so that leases are
/// released last.
pub const TASKS: [TaskEntry; 10] = [
    TaskEntry::of::<lock_renewer::LockRenewer>(),
    TaskEntry::of::<metrics_reporter::MetricsReporter>(),
    TaskEntry::of::<epoch_keeper::EpochKeeper>(),
    TaskEntry::of::<change_feed::ChangeFeed>(),
    TaskEntry::of::<refresher::Refresher>(),
    TaskEntry::of::<warmer::Warmer>(),
    TaskEntry::of::<invalidation_listener::InvalidationListener>(),
    TaskEntry::of::<durable_event_consumer::DurableEventConsumer>(),
    TaskEntry::of::<command_processor::CommandProcessor>(),
    TaskEntry::of::<auditor::Auditor>(),
];
