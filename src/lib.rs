//! Cachekeeper keeps Redis consistent with Postgres.
//!
//! Every value is ordered by the database snapshot it was read at, and a small table in Redis remembers, for each
//! hash slot, the newest snapshot that touched it; whoever comes with an older one is refused.
//!
//! Imports go one way: `cli → app → supervisor → actors → flows → stores → domain`; [`config`] holds checked values
//! and imports only [`domain`]; [`admin`] and [`demo`] stand at the side. Start reading in [`flows::warm`].

pub mod cli;

pub mod app;
pub mod supervisor;

pub mod actors;
pub mod client;

pub mod flows;

pub mod stores;

pub mod domain;

pub mod config;
pub mod metrics;
pub mod schedule;
pub mod telemetry;

pub mod admin;
pub mod demo;
