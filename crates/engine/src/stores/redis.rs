//! Redis: every command and script, one function each, and what their replies mean.

mod connection;
mod entries;
mod epoch;
mod error;
mod fences;
mod leases;
mod script;
mod server;
mod stream;
mod subscription;
mod tags;
mod walk;
mod watermark;

pub use connection::Redis;
pub use entries::{Refused, StoreMode, Stored};
pub use epoch::{Adoption, Claim, Creation, Debt, Epoch, Head, NewEpoch, Paid};
pub use error::{CacheError, Refusal};
pub use fences::{BatchCommand, BatchReply, Looked, Order};
pub use leases::{LeaseAttempt, LeaseGrant};
pub use script::{Answer, Gone, Standing};
pub use server::ServerFacts;
pub use stream::{Finished, StreamConsumer, StreamEntry, StreamReader, StreamState, dead_of};
pub use subscription::{Notice, Subscription};
pub use walk::{UseSign, WalkPage, Walked, Wanted};
pub use watermark::{Advance, Advanced, Watermark};
