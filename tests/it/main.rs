//! One binary for all integration tests: real servers, started and killed by the tests themselves.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod config;
mod flows;
mod scripts;
mod support;
mod transcode;
mod worker;
