//! From Postgres's binary rows straight to the bytes of a value, without a value in between.

mod guided;
mod hash;
mod json;
mod kind;
mod nested;
mod number;
mod plan;
mod read;
mod sink;
mod text;
mod time;

pub(super) use kind::{Kind, LifetimeKind, ReadAs, base_type, kind_of_catalog_name};
pub(super) use plan::Measure;
pub use plan::{EncodeError, QueryColumn, RowPlan, UnsupportedType};
