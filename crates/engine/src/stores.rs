//! Every SQL statement and every Redis command, one function each.

pub mod memory;
pub mod postgres;
pub mod redis;
