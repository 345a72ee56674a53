//! Every SQL statement and every Redis command, one function each.

pub mod postgres;
pub mod redis;
