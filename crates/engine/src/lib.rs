//! Cachekeeper's engine: what the worker and the client library share.
//!
//! [`stores`] holds every SQL statement and every Redis command, one function each; [`flows`] the procedures on
//! them. Nothing here decides *when* something is done: the worker's actors and the library's callers do.

pub mod compress;
pub mod flows;
pub mod metrics;
pub mod stores;
