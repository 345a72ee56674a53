//! The demonstration, and what it shares with the tests: private servers.

pub mod servers;
