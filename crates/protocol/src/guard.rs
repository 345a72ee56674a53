//! Guards: a key in each cluster slot that says which shard has adopted it. It migrates with the cluster slot, so that no shard takes
//! for its own what another one has had meanwhile.

use std::fmt;
use std::str::FromStr;

/// One adoption of a cluster slot, told from every other one. Random: one that was lost must not come back.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Generation([u8; 8]);

impl Generation {
    /// The one with these bytes. All zeros stand for none.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// What a guard says. As text: `<shard> <generation>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Guard {
    /// The shard that has adopted the cluster slot.
    pub shard: u32,
    /// Of the adoption.
    pub generation: Generation,
}

/// The text is no guard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a guard is the number of a shard and a generation of 16 hexadecimal digits")]
pub struct InvalidGuard;

impl fmt::Display for Guard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.shard, self.generation)
    }
}

impl FromStr for Guard {
    type Err = InvalidGuard;

    fn from_str(text: &str) -> Result<Self, InvalidGuard> {
        let (shard, generation) = text.split_once(' ').ok_or(InvalidGuard)?;
        let shard = shard.parse().map_err(|_number| InvalidGuard)?;
        let bytes = u64::from_str_radix(generation, 16).map_err(|_number| InvalidGuard)?.to_be_bytes();
        let guard = Self { shard, generation: Generation(bytes) };
        // Scripts compare texts.
        if guard.to_string() == text { Ok(guard) } else { Err(InvalidGuard) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_read_back_and_has_one_text() {
        let guard = Guard { shard: 7, generation: Generation::from_bytes(*b"\0\x01abcdef") };
        assert_eq!(guard.to_string(), "7 0001616263646566");
        assert_eq!(guard.to_string().parse(), Ok(guard));
        for text in ["", "7", "7 1", "+7 0001616263646566", "7 0001616263646566 ", "7 00016162636465FF"] {
            assert_eq!(text.parse::<Guard>(), Err(InvalidGuard), "{text:?}");
        }
    }
}
