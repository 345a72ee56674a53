//! The demonstration: private servers, a shop, load, and a comparison at the end.

pub mod servers;
