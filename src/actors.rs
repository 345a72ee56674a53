//! The actors. They decide *when*; the flows decide *what*.
//!
//! A handler dispatches and never fails; long work runs in a task that the actor holds and that tells it when it is
//! over; messages are hints, because each actor also looks by itself on its own timer.

pub mod address;
pub mod auditor;
pub mod change_feed;
pub mod clock;
pub mod epoch_keeper;
pub mod event_log;
pub mod health;
pub mod invalidation_listener;
pub mod lock_renewer;
pub mod metrics_reporter;
pub mod refresher;
pub mod seen;
pub mod task;
pub mod warmer;
pub mod writer;
