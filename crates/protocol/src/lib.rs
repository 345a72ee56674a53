//! Keys, tags, stamps and policies as plain values.
//!
//! Nothing here does I/O, reads a clock, or waits; a test enforces it.

pub mod cluster_slot;
pub mod cluster_slot_set;
pub mod counters;
pub mod entry;
pub mod event;
pub mod fields;
pub mod freshness;
pub mod glob;
pub mod guard;
pub mod keyspace;
pub mod moment;
pub mod parameters;
pub mod queues;
pub mod revision;
pub mod slot_set;
pub mod stamp;
pub mod template;
pub mod token;
pub mod units;
pub mod window;
