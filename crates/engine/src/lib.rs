//! Cachekeeper's engine: what the worker and the client library share.
//!
//! [`stores`] holds every SQL statement and every Redis command, one function each; the other modules are the procedures
//! on them. Nothing here decides *when* something is done: the worker's tasks and the library's callers do. Start
//! reading in [`load`], which everything that fills Redis ends in, or in [`change_feed`].

pub mod audit;
pub mod backfill;
pub mod backoff;
pub mod catalog;
pub mod change_feed;
pub mod commands;
pub mod compress;
pub mod context;
pub mod coverage;
pub mod dead_letters;
pub mod encode;
pub mod epoch;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod invalidate;
pub mod lease;
pub mod load;
pub mod metrics;
pub mod refresh;
pub mod revalidation;
pub mod stores;
pub mod tokens;
mod watermark_watch;
pub mod write;
