//! What every path may ask.

use crate::actors::health::Health;
use cachekeeper_engine::context::Context;

#[derive(Clone)]
pub(super) struct Shared {
    pub context: Context,
    pub health: Health,
}
