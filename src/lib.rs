//! Cachekeeper keeps Redis consistent with Postgres.
//!
//! Imports go one way: `cli → app → supervisor → actors → flows → stores → domain`; `config` holds checked values.

pub mod actors;
pub mod admin;
pub mod app;
pub mod config;
pub mod demo;
pub mod domain;
pub mod flows;
pub mod metrics;
pub mod stores;
pub mod supervisor;
