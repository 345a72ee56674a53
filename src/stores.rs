//! Every SQL statement and every Redis command, one function each.

pub mod postgres;
