//! One binary for all integration tests: real servers, started and killed by the tests themselves.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod cli;
mod config;
mod flows;
mod readers;
mod scripts;
mod support;
mod tidy;
mod transcode;
mod worker;
