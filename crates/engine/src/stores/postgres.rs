//! Postgres: statements and the binary format of rows.

pub mod capture;
mod connection;
mod dataset_check;
mod definitions;
mod error;
mod feed;
mod fingerprint;
mod holders;
mod inspect;
pub(crate) mod life;
mod load;
mod mend;
mod migrate;
mod outbox;
pub(crate) mod records;
mod schema;
mod spelling;
mod statement;
pub mod transcode;
mod uninstall;
pub mod write;
mod write_check;

pub use capture::{Capture, CaptureLimits, TreeMember};
pub use connection::{Postgres, QUICK_MAX};
pub use dataset_check::{Finding, MissingRights, Weight, findings_of_reads};
pub use error::{Blame, ErrorKind, SourceError};
pub use feed::{Change, FeedPoll, FeedReader, OutboxState, Verify};
pub use fingerprint::{CatalogScope, CatalogState, Fingerprint, NameKind};
pub use inspect::{Function, Inspection, ReadRelation};
pub use load::{BackfillRows, Loaded, Poll, Row};
pub(crate) use migrate::Before;
pub use migrate::MigrationState;
pub use statement::{DatasetSource, KeyValues, SourceProblem};
pub use uninstall::{Removed, Users};
pub use write_check::Effect;
