//! The cache as an application uses it: the same scripts and stamps as the worker, as a library.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use cachekeeper_client::{Cache, Policy};
//!
//! let cache = Cache::connect("redis://localhost:6379/0", "shop")?.build();
//! let policy = Policy::ttl(Duration::from_secs(300)).fail_safe(Duration::from_secs(3600)).jitter(0.1);
//! let rate: Option<f64> = cache
//!     .get_or_load("rate:eur", &policy, || async { Ok::<_, std::io::Error>(Some(1.08)) })
//!     .await?;
//! # drop(rate);
//! # Ok(())
//! # }
//! ```
//!
//! - Reading: [`Cache::get`], [`Cache::get_many`], [`Cache::get_sliding`], [`Cache::exists`], [`Cache::batch`].
//! - Writing: [`Cache::set`], [`Cache::set_with_tags`], [`Cache::set_many`], [`Cache::expire`], [`Cache::delete`],
//!   [`Cache::invalidate_tags`], [`Cache::publish`].
//! - Messages of the application's own on any channel: [`Cache::publish_to`], [`Cache::subscribe_to`].
//! - Writing through to Postgres: [`DatasetCache::write`].
//! - Locks: [`Cache::locks`].
//! - Loading what is missing: [`Cache::get_or_load`], [`Cache::get_or_load_many`], [`Cache::dataset`].
//!
//! An entry whose key belongs to a dataset of the configuration comes from Postgres only, ordered by its stamp. Any other
//! entry is the application's own: a fill of it is refused if the key or one of its tags was invalidated, deleted or
//! set since before the load began, whoever did it.

mod backend;
mod batch;
mod breaker;
mod builder;
mod chaos;
mod codec;
mod core;
#[cfg(feature = "postgres")]
mod dataset;
mod error;
mod events;
mod flight;
mod get_or_load;
mod hash_value;
mod in_memory;
mod key_class;
mod keys_until;
#[cfg(feature = "postgres")]
mod later_loads;
mod load;
mod load_task;
mod locks;
mod messages;
mod moments;
mod near;
mod policy;
mod prefixes;
mod read;
#[cfg(feature = "postgres")]
mod rows;
mod set_many;
#[cfg(feature = "postgres")]
mod source;
#[cfg(not(feature = "postgres"))]
#[path = "no_source.rs"]
mod source;
mod space;
mod waits;
mod windows;
mod write;
#[cfg(feature = "postgres")]
mod write_through;

pub use self::core::Cache;
pub use batch::{Batch, Handle, Results};
pub use breaker::{BreakerSettings, BreakerState};
pub use builder::CacheBuilder;
pub use chaos::{Chaos, Fault, Place};
pub use codec::{Codec, ValueFormat};
#[cfg(feature = "postgres")]
pub use dataset::DatasetCache;
pub use error::{ClientError, LoaderError};
pub use events::{Events, Heard};
pub use get_or_load::{Loaded, ManyLoaded, Partial};
pub use locks::{LockError, LockGuard, LockOptions, Locks};
pub use messages::{HeardMessage, Messages};
pub use near::{IntoBytes, IntoDuration, Near};
pub use policy::{Lifetime, LoadLockOptions, Policy, Sliding};
pub use read::Read;
#[cfg(feature = "postgres")]
pub use rows::Rows;
pub use set_many::{Identified, SetManyOptions, SetReport};
#[cfg(feature = "postgres")]
pub use source::Snapshot;
pub use space::{Aged, IntoLoaded, Shown, Space, SpaceBuilder, SpaceKey};
#[cfg(feature = "postgres")]
pub use space::{Freshness, ReadAt};

// What the functions above ask for and answer with.
#[cfg(feature = "file")]
pub use cachekeeper_config::ConfigError;
pub use cachekeeper_config::{Codec as CompressionCodec, Compression, Config};
#[cfg(feature = "postgres")]
pub use cachekeeper_engine::context::Context;
pub use cachekeeper_engine::stores::redis::CacheError;
#[cfg(feature = "postgres")]
pub use cachekeeper_engine::write::{CacheState, Parameter, Parameters, WriteEffects, WriteError, Written};
pub use cachekeeper_protocol::event::{Event, Op};
pub use cachekeeper_protocol::token::Token;
pub use prometheus_client::registry::Registry;
