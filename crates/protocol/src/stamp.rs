//! Stamps: the order in which database snapshots may write an entry.
//!
//! A stamp is `xmax` (48 bits) followed by `65535 - number of running transactions` (16 bits). On one running
//! primary it never falls from one snapshot to a later one, and equal stamps see the same data.

use std::fmt;
use std::str::FromStr;

/// The most running transactions a stamp can count. A snapshot with this many or more is refused.
const RUNNING_MAX: usize = 65_535;
const XMAX_LIMIT: u64 = 1 << 48;

/// Where a database snapshot stands in the order of all snapshots of one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Stamp(u64);

impl Stamp {
    /// Older than every snapshot.
    pub const ZERO: Self = Self(0);

    /// Builds a stamp from a snapshot's `xmax` and its number of running transactions.
    ///
    /// # Errors
    /// [`StampError`] when either does not fit: then two different snapshots could look the same.
    pub fn new(xmax: u64, running: usize) -> Result<Self, StampError> {
        if XMAX_LIMIT <= xmax {
            return Err(StampError::XmaxTooLarge { xmax });
        }
        if RUNNING_MAX <= running {
            return Err(StampError::TooManyRunning { running });
        }
        let finished = (RUNNING_MAX - running) as u64;
        Ok(Self(xmax << 16 | finished))
    }

    /// The eight bytes that stand in Redis. Scripts unpack them as two numbers and never compare them as strings.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Reads a stamp back from Redis.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.0 >> 16, RUNNING_MAX as u64 - (self.0 & 0xffff))
    }
}

/// A database snapshot as `pg_current_snapshot()` prints it: `xmin:xmax:running,running,…`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    text: String,
    stamp: Stamp,
}

impl Snapshot {
    /// Where this snapshot stands in the order.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The text that Postgres printed, for the cursor and the watermark.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Snapshot {
    type Err = StampError;

    fn from_str(text: &str) -> Result<Self, StampError> {
        let malformed = || StampError::Malformed { text: text.to_owned() };
        let mut parts = text.split(':');
        let (Some(_xmin), Some(xmax), Some(running), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let Ok(xmax) = xmax.parse() else {
            return Err(malformed());
        };
        let running = if running.is_empty() { 0 } else { running.split(',').count() };
        Ok(Self { text: text.to_owned(), stamp: Stamp::new(xmax, running)? })
    }
}

/// Why a snapshot cannot be stamped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// The text is not a snapshot.
    #[error("{text:?} is not a snapshot of the form xmin:xmax:running")]
    Malformed {
        /// What came instead.
        text: String,
    },
    /// More transactions run at once than a stamp can count.
    #[error("{running} transactions run at once, a stamp counts fewer than {RUNNING_MAX}")]
    TooManyRunning {
        /// How many run.
        running: usize,
    },
    /// The transaction counter has outgrown 48 bits.
    #[error("transaction id {xmax} does not fit 48 bits")]
    XmaxTooLarge {
        /// The transaction id.
        xmax: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(text: &str) -> Stamp {
        text.parse::<Snapshot>().unwrap().stamp()
    }

    #[test]
    fn later_snapshots_have_later_stamps() {
        let in_order = ["10:10:", "10:12:10,11", "10:12:10", "10:12:", "12:70000:12,13", "70000:70000:"];
        for pair in in_order.windows(2) {
            assert!(stamp(pair[0]) < stamp(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn bytes_keep_the_order_and_come_back() {
        let stamp = stamp("10:4294967299:10,11");
        assert_eq!(Stamp::from_bytes(stamp.to_bytes()), stamp);
        assert_eq!(stamp.to_string(), "4294967299-2");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(Stamp::new(1, RUNNING_MAX), Err(StampError::TooManyRunning { running: RUNNING_MAX }));
        assert!(Stamp::new(1, RUNNING_MAX - 1).is_ok());
        assert!(matches!(Stamp::new(1 << 48, 0), Err(StampError::XmaxTooLarge { .. })));
        for text in ["", "1:2", "1:x:", "1:2:3:4"] {
            assert!(matches!(text.parse::<Snapshot>(), Err(StampError::Malformed { .. })), "{text}");
        }
    }
}
