//! What the demonstration and the tests run on: private servers that are gone with their owner.

pub mod servers;
