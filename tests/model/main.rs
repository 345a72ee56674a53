//! The formal model of the stamp table: one SQL statement, one commit, one Redis script is one step; all else
//! interleaves, and faults strike in between.
//!
//! Two keys, each a join of its own row and a row that both share; up to three transactions, two workers,
//! three loaders, two events, a reader, two revalidations beside the feed. `repaired` and `larger` are worlds of the protocol as docs/protocol.md has
//! it: they must be exhausted without a violation. `broken` leaves one rule out at a time: each must be seen.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests say what went wrong by failing"
)]

mod broken;
mod cluster;
mod coverage;
mod database;
#[path = "../decisions/mod.rs"]
mod decisions;
mod definitions;
mod epochs;
mod faults;
mod invariants;
mod keeper;
mod larger;
mod loaders;
mod protocol;
mod repaired;
mod rest;
mod rules;
mod scripts;
mod search;
mod signals;
mod state;
mod table;
mod worker;
mod worlds;
