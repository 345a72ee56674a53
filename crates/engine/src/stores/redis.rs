//! Redis: every command and script, one function each, and what their replies mean.

mod connection;
mod counters;
mod entries;
mod epoch;
mod error;
mod leases;
mod metadata;
mod pending;
mod precondition;
mod scan;
mod script;
mod server;
mod store;
mod stream;
mod subscription;
mod tags;
mod watermark;

pub use connection::Redis;
pub use counters::{BatchCommand, BatchReply};
pub use entries::ValueAndLife;
pub use epoch::{Creation, Epoch, NewEpoch, Registration};
pub use error::{CacheError, Refusal};
pub use leases::{LeaseAttempt, LeaseGrant};
pub use metadata::Metadata;
pub use pending::{Claim, PendingRevalidation, Settled};
pub use precondition::{Answer, Precondition, PreconditionFailed};
pub use scan::{ScanPage, ScannedEntry, UseSign, Wanted};
pub use server::ServerFacts;
pub use store::{CounterRule, StoreMode};
pub use stream::{Finished, StreamConsumer, StreamEntry, StreamReader, StreamState, dead_of};
pub use subscription::{Notice, Subscription};
pub use watermark::{Advance, Advanced, Watermark};
