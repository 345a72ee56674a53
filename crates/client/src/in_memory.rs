//! The cache in this process's memory, for an application's own tests: entries, channels and datasets as with servers.

mod channels;
mod mutex;
mod store;
#[cfg(feature = "postgres")]
mod table;

pub(super) use channels::Listening;
pub(super) use store::InMemory;
#[cfg(feature = "postgres")]
pub(super) use table::{Row, Table};
