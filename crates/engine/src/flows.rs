//! The procedures: what is done. Actors decide when.

pub mod backfill;
pub mod backoff;
pub mod catalog;
pub mod commands;
pub mod compare;
pub mod context;
pub mod coverage;
pub mod encode;
pub mod epoch;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod follow;
pub mod fresh;
pub mod invalidate;
pub mod lease;
pub mod load;
pub mod refresh;
pub mod rejected;
pub mod revalidation;
mod watermark_watch;
pub mod write;
