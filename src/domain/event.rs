//! Invalidation events.
