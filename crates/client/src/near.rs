//! The near cache: decoded values in this process, kept coherent by what Redis tells of changes (R19).
//!
//! A read is answered from here only while it is proved that whatever was changed more than `staleness` ago was heard of. Where that
//! cannot be proved (the connection is cut, slow, or leads to another server), reads go to Redis as if there were no near cache.

mod hub;
mod store;

use std::time::Duration;

pub(super) use hub::NearHub;
pub(super) use store::{NearHit, NearStore, NearTicket};

use super::error::ClientError;
use cachekeeper_protocol::units::{parse_duration, parse_size};

/// The least bound: below it heartbeats would cost more than they save.
const STALENESS_MIN: Duration = Duration::from_millis(100);
/// The default bound.
const STALENESS: Duration = Duration::from_millis(500);

/// How large a near cache is, and how stale its values may be.
///
/// ```
/// use cachekeeper_client::Near;
///
/// let near = Near::bytes("64MiB").staleness("500ms");
/// # drop(near);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Near {
    bytes: Result<u64, String>,
    staleness: Result<Duration, String>,
    is_bounded: bool,
}

impl Near {
    /// One that holds as much as this many bytes: of keys and of values as they stand in Redis, with 128 for each entry. A number, or a
    /// text such as `"64MiB"`. It is held in parts, of 4 MiB at least and 32 at most: a value larger than a part is read each time.
    #[must_use]
    pub fn bytes(size: impl IntoBytes) -> Self {
        Self { bytes: size.into_bytes(), staleness: Ok(STALENESS), is_bounded: true }
    }

    /// How long a value may be served after it was changed, whoever changed it (default 500 ms, at least 100 ms). A duration, or a text
    /// such as `"500ms"`. What this process changes is not served for a moment longer.
    #[must_use]
    pub fn staleness(mut self, at_most: impl IntoDuration) -> Self {
        self.staleness = at_most.into_duration();
        self
    }

    /// Serves what it has, proved or not: for the control run of tests, which must see that go wrong.
    #[doc(hidden)]
    #[must_use]
    pub fn unproved(mut self) -> Self {
        self.is_bounded = false;
        self
    }

    pub(super) fn checked(&self) -> Result<NearLimits, ClientError> {
        let wrong = |problem: &String| ClientError::Setting { setting: "near", problem: problem.clone() };
        let bytes = *self.bytes.as_ref().map_err(wrong)?;
        let staleness = *self.staleness.as_ref().map_err(wrong)?;
        if staleness < STALENESS_MIN {
            let problem = format!("a staleness of {staleness:?} is below the least, 100 ms");
            return Err(ClientError::Setting { setting: "near", problem });
        }
        Ok(NearLimits { bytes, staleness, is_bounded: self.is_bounded })
    }
}

/// The same, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct NearLimits {
    pub bytes: u64,
    pub staleness: Duration,
    pub is_bounded: bool,
}

/// A size: a number of bytes, or a text with a unit.
pub trait IntoBytes {
    /// The number of bytes, or what to write instead.
    ///
    /// # Errors
    /// What to write instead.
    fn into_bytes(self) -> Result<u64, String>;
}

impl IntoBytes for u64 {
    fn into_bytes(self) -> Result<u64, String> {
        Ok(self)
    }
}

impl IntoBytes for &str {
    fn into_bytes(self) -> Result<u64, String> {
        parse_size(self)
    }
}

/// A duration, or a text with a unit.
pub trait IntoDuration {
    /// The duration, or what to write instead.
    ///
    /// # Errors
    /// What to write instead.
    fn into_duration(self) -> Result<Duration, String>;
}

impl IntoDuration for Duration {
    fn into_duration(self) -> Result<Duration, String> {
        Ok(self)
    }
}

impl IntoDuration for &str {
    fn into_duration(self) -> Result<Duration, String> {
        parse_duration(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bounds_are_numbers_or_texts_and_wrong_ones_are_told() {
        let limits = Near::bytes("64MiB").staleness("250ms").checked().unwrap();
        assert_eq!((limits.bytes, limits.staleness), (64 << 20, Duration::from_millis(250)));
        assert_eq!(Near::bytes(1_000).checked().unwrap().staleness, STALENESS);
        for near in [Near::bytes("64"), Near::bytes(1).staleness("soon"), Near::bytes(1).staleness("99ms")] {
            assert!(matches!(near.checked(), Err(ClientError::Setting { .. })), "{near:?}");
        }
    }
}
