//! What the demonstration and the tests run on: private servers that are gone with their owner.

pub mod certificates;
pub mod proxy;
pub mod servers;
