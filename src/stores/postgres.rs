//! Postgres: statements and the binary format of rows.

pub mod transcode;
