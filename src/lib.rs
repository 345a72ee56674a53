//! The Cachekeeper worker: it keeps Redis consistent with Postgres.
//!
//! Every value is ordered by the database snapshot it was read at, and a small table in Redis remembers, for each
//! stamp slot, the newest snapshot that touched it; a store with an older stamp is refused.
//!
//! Imports go one way: `cli → service → app → supervisor → actors → cachekeeper_engine → cachekeeper_protocol`. Actors decide
//! when something is done; what is done stands in the engine, which the client library uses too.

pub mod cli;

pub mod service;

pub mod app;
pub mod check;
pub mod supervisor;

pub mod actors;

pub mod actions;
pub mod control;
pub mod schedule;
pub mod shards;
pub mod telemetry;

pub mod admin;
pub mod demo;
