//! The protocol on Redis Cluster (R20): a model of its own, in which a single Redis is one node among others.
//!
//! Two nodes, each a master with a shard of the protocol; two cluster slots, each with one key; slots that move with a guard and an
//! entry as separate steps, turn back, or end early; a node that fails over to an older copy, is flushed, or loses a guard; tools
//! that bring keys back from a node that does not own them; a home slot that moves, so that a third shard begins. Tasks follow
//! changes and adopt slots, each one thing at a time: two of them are two leaders, or one that does both at once. An application
//! fills by what it read of guard and metadata before. One statement, one commit, one script is a step.
//!
//! How shards keep stamps is proven by the other model, so this one has only what slots add. `Rule` lists what is needed: `holding`
//! keeps all rules, `needed` leaves out one at a time, and must see it.

mod database;
mod feed;
mod holding;
mod invariants;
mod model;
mod needed;
mod outside;
mod rules;
mod scripts;
mod state;
mod tasks;
mod topology;
