//! Cachekeeper's engine: what the worker and the client library share.
//!
//! [`stores`] holds every SQL statement and every Redis command, one function each; the other modules are the procedures
//! on them. Nothing here decides *when* something is done: the worker's tasks and the library's callers do. Start
//! reading in [`load`], which everything that fills Redis ends in, or in [`change_feed`].
#![cfg_attr(
    not(feature = "postgres"),
    expect(dead_code, reason = "without Postgres nothing claims jobs, reads tokens or scans")
)]

#[cfg(feature = "postgres")]
pub mod audit;
#[cfg(feature = "postgres")]
pub mod backfill;
pub mod backoff;
#[cfg(feature = "postgres")]
pub mod catalog;
#[cfg(feature = "postgres")]
pub mod change_feed;
#[cfg(feature = "postgres")]
pub mod commands;
pub mod compress;
#[cfg(feature = "postgres")]
pub mod context;
#[cfg(feature = "postgres")]
pub mod coverage;
#[cfg(feature = "postgres")]
pub mod dead_letters;
#[cfg(feature = "postgres")]
pub mod decoded;
#[cfg(feature = "postgres")]
pub mod definitions;
#[cfg(feature = "postgres")]
mod directory;
#[cfg(feature = "postgres")]
pub mod encode;
#[cfg(feature = "postgres")]
pub mod epoch;
#[cfg(feature = "postgres")]
pub mod error;
#[cfg(feature = "postgres")]
pub mod event_scope;
#[cfg(feature = "postgres")]
pub mod events;
#[cfg(feature = "postgres")]
pub mod explain;
#[cfg(feature = "postgres")]
pub mod failpoint;
#[cfg(feature = "postgres")]
pub mod history;
#[cfg(feature = "postgres")]
pub mod invalidate;
#[cfg(feature = "postgres")]
mod key_pages;
pub mod lease;
#[cfg(feature = "postgres")]
mod life;
#[cfg(feature = "postgres")]
pub mod lifetimes;
#[cfg(feature = "postgres")]
pub mod load;
pub mod log_limit;
pub mod metrics;
#[cfg(feature = "postgres")]
pub mod miss_events;
#[cfg(feature = "postgres")]
pub mod namespaces;
#[cfg(feature = "postgres")]
pub mod plan;
pub mod process;
#[cfg(feature = "postgres")]
pub mod proposal;
#[cfg(feature = "postgres")]
mod rate_limit;
#[cfg(feature = "postgres")]
pub mod refresh;
#[cfg(feature = "postgres")]
mod registrar;
#[cfg(feature = "postgres")]
pub mod revalidation;
#[cfg(feature = "postgres")]
pub mod rights;
#[cfg(feature = "postgres")]
pub mod shard;
#[cfg(feature = "postgres")]
pub mod shorten;
pub mod shown;
pub mod stores;
#[cfg(feature = "postgres")]
pub mod tokens;
#[cfg(feature = "postgres")]
mod use_scan;
#[cfg(feature = "postgres")]
mod watermark_watch;
#[cfg(feature = "postgres")]
pub mod write;
