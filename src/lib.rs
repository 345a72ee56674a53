//! Cachekeeper keeps Redis consistent with Postgres.
//!
//! Imports go one way: `cli → app → supervisor → actors → flows → stores → domain`; `config` holds checked values.

pub mod config;
pub mod domain;
pub mod stores;
