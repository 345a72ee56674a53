//! Redis: every command and script, one function each, and what their replies mean.

mod advance;
mod attempt;
mod connection;
mod counters;
mod definitions;
mod denied;
mod endpoint;
mod entries;
mod epoch;
mod error;
mod hello;
mod leases;
mod metadata;
mod namespaces;
mod pending_slots;
mod prefixes;
mod probe;
mod revalidation_progress;
mod scan;
mod script;
mod sentinels;
mod server;
mod server_life;
mod shared;
mod stream;
mod stream_state;
mod subscription;
mod tags;
mod tls;
mod trouble;

pub use advance::{Advance, Advanced, Followed, Watermark};
pub use connection::Redis;
pub use counters::{BatchCommand, BatchReply};
pub use definitions::{Declared, REDEFINED, Registered};
pub use denied::Denied;
pub use entries::{CounterRule, StoreMode, ValueAndLife};
pub use epoch::{Creation, NewEpoch};
pub use error::{CacheError, Refusal};
pub use leases::{LeaseAttempt, LeaseGrant};
pub use metadata::{
    Backfilled, Claim, Metadata, Missing, OlderLoads, PendingRevalidation, PendingSlots, Settled,
};
pub use namespaces::OwnKeys;
pub use pending_slots::{Failed, SlotsSeen};
pub use revalidation_progress::{RevalidationProgress, ScanPlace};
pub use scan::{ScanPage, ScannedEntry, UseSign, Wanted};
pub use script::{Answer, Epoch, Precondition, PreconditionFailed};
pub use server::ServerFacts;
pub use server_life::ServerLife;
pub use stream::{ENTRY_BYTES_MAX, Finished, StreamEntry, StreamReader, dead_of};
pub use stream_state::{StreamConsumer, StreamState};
pub use subscription::{Notice, Subscription};
pub use tags::{AddedMembers, DroppedWindows, TagMembers};
pub use trouble::{Trouble, TroubleKind};
